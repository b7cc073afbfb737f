"""Runs: rows as the contract says, and controls that tell an oracle from those who ignore or misuse the user."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doubles import AnyContext, Baseline, Constant, Global, Oracle, OrderReader, population

from pluralrlhf.errors import DataError
from pluralrlhf.evaluation import storage
from pluralrlhf.evaluation.results import atypical_users, method_results
from pluralrlhf.evaluation.runner import run_scorers
from pluralrlhf.evaluation.split_run import _pair_ids
from pluralrlhf.evaluation.split_scores import ScoreReader, load_scores
from pluralrlhf.evaluation.storage import PER_PAIR_SCHEMA, Source
from pluralrlhf.evaluation.verdicts import verdict

SPLITS = ["validation", "test_unseen_users_seen_items", "test_unseen_users_unseen_items"]
TARGET = SPLITS[-1]
SIZES = (0, 2, 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    splits, data = population()
    folder = tmp_path_factory.mktemp("run")
    scorers = [
        Baseline(splits, data, "btl", 0),
        Baseline(splits, data, "btl", 1),
        Oracle(splits, data, "oracle", 0),
        Oracle(splits, data, "oracle", 1),
        Global(splits, data, "global"),
        Constant(splits, data, "constant"),
        AnyContext(splits, data, "any_context"),
        OrderReader(splits, data, "order"),
    ]
    record = run_scorers(scorers, data, folder, splits=SPLITS, n_context=SIZES, progress=False)
    return folder, record, splits, data


@pytest.fixture(scope="module")
def found(run):
    scores = load_scores([Source(run[0])], TARGET)
    return {
        name: method_results(scores, name, baseline="btl", ceiling="oracle", n_replicates=200) for name in scores.seeds
    }


def value(found, method, name, k="6"):
    metrics, controls = found[method]
    return {**metrics.get(k, {}), **controls.get(k, {})}[name]["value"]


def test_per_pair_has_the_contracts_columns_and_every_row(run):
    folder, record, _, data = run
    assert pq.read_schema(folder / "per_pair.parquet").equals(PER_PAIR_SCHEMA)
    rows = pq.read_table(folder / "per_pair.parquet").to_pylist()
    targets = {split: len(data.history.rows(split)) for split in SPLITS}
    for split in SPLITS:
        for method, seeds in (("oracle", 2), ("btl", 2), ("constant", 1)):
            for k in SIZES:
                these = [
                    row
                    for row in rows
                    if (row["split"], row["method"], row["n_context"], row["control"]) == (split, method, k, "none")
                ]
                assert len(these) == seeds * targets[split]
                assert all(len(row["context_pair_ids"]) == k for row in these)
                assert all(row["user_id"] == pair.split(":")[0] for row in these for pair in row["context_pair_ids"])
    assert {row["control"] for row in rows if row["n_context"] == 0} == {"none", "context_pair"}
    assert record["context"][TARGET]["6"] == {
        "context_pairs": 6.0,
        "context_items": 6.0,
        "relabelled_coverage": 1.0,
    }
    assert record["methods"]["btl"]["seeds"] == [0, 1]


def test_smaller_contexts_begin_the_larger_ones(run):
    rows = pq.read_table(run[0] / "per_pair.parquet", filters=[("method", "=", "oracle"), ("control", "=", "none")])
    shown = {}
    for row in rows.to_pylist():
        shown[row["seed"], row["pair_id"], row["n_context"]] = row["context_pair_ids"]
    for (seed, pair, k), ids in shown.items():
        assert shown[seed, pair, 6][:k] == ids
        assert shown[0, pair, k] == ids, "all seeds see the same contexts"


def test_controls_tell_the_scorers_apart(found):
    assert value(found, "oracle", "accuracy") == 1
    assert value(found, "oracle", "other_type_accuracy") < 0.3
    assert value(found, "oracle", "flip_rate") > 0.7
    assert value(found, "oracle", "flipped_accuracy") < 0.3
    assert value(found, "oracle", "gain_over_wrong_user") > 0.2
    assert 0.3 < value(found, "oracle", "coin_flip_accuracy") < 0.9
    assert 0.3 < value(found, "oracle", "random_state_accuracy") < 0.8
    assert value(found, "oracle", "empty_context_accuracy") == value(found, "oracle", "accuracy", "0")
    for name in ("global", "constant"):
        assert value(found, name, "flip_rate") == 0
        assert value(found, name, "gain") == 0
        assert value(found, name, "gain_over_wrong_user") == 0
        assert value(found, name, "wrong_user_accuracy") == value(found, name, "accuracy")
    assert value(found, "constant", "accuracy") == 0.5
    assert value(found, "any_context", "gain") > 0.1
    assert value(found, "any_context", "gain_over_wrong_user") == 0
    assert value(found, "oracle", "permutation_max_diff") == 0
    assert value(found, "order", "permutation_max_diff") > 0


def test_verdicts_tell_the_scorers_apart(found):
    kinds = {
        name: verdict(metrics["6"], controls.get("6"), uses_context=name != "btl")["kind"]
        for name, (metrics, controls) in found.items()
    }
    assert kinds == {
        "btl": "no_user",
        "oracle": "uses_user",
        "global": "ignores_user",
        "constant": "ignores_user",
        "any_context": "ignores_user",
        "order": "uses_user",
    }
    metrics, controls = found["any_context"]
    controls = {**controls["6"], "flip_rate": {"value": 0.3}}
    assert verdict(metrics["6"], controls)["kind"] == "any_context"
    without = verdict(metrics["6"], None)
    assert without["kind"] == "no_controls" and "without controls" in without["text"]


def test_gain_over_the_baseline_is_paired_and_shares_of_the_ceiling_are_its_share(found):
    metrics = found["oracle"][0]["6"]
    assert metrics["gain_over_btl"]["value"] == pytest.approx(1 - value(found, "btl", "accuracy"))
    assert metrics["gain_over_btl"]["ci95"][0] > 0
    assert "gain_over_btl" not in found["btl"][0]["6"]
    assert found["global"][0]["6"]["gain_over_btl"]["ci95"] == [0, 0]
    assert found["global"][0]["6"]["share_of_attainable"]["value"] == 0
    assert "share_of_attainable" not in metrics, "the ceiling is no share of itself"


def test_agreed_and_atypical(found, run):
    assert value(found, "global", "agreed_accuracy") == 1
    assert value(found, "order", "agreed_accuracy") < 0.9
    scores = load_scores([Source(run[0])], TARGET)
    atypical = atypical_users(scores, "btl")
    dogs = {user for user in scores.user_ids if int(user.split("-")[1]) % 2}
    assert {user for user, odd in zip(scores.user_ids, atypical) if odd} <= dogs, "the baseline is right about cats"
    assert atypical.sum() == 2
    assert value(found, "btl", "atypical_accuracy") < 0.4 and value(found, "oracle", "atypical_accuracy") == 1
    assert atypical_users(scores, "oracle") is None, "only a method without users says who is atypical"


def test_intervals_and_counts_are_there(found):
    metric = found["oracle"][0]["2"]["gain"]
    assert metric["n_users"] == 20 and metric["n_pairs"] == 120
    assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]
    assert metric["smallest_detectable"] > 0


def test_states_are_those_of_unseen_users(run):
    table = pq.read_table(run[0] / "states.parquet").to_pylist()
    assert {row["method"] for row in table} == {"oracle", "constant", "any_context", "order"}
    oracle = [row for row in table if row["method"] == "oracle" and row["split"] == TARGET and row["seed"] == 0]
    assert len(oracle) == 20
    assert all((row["state"][0] > 0) == (row["type"] == "cat") for row in oracle)


def test_result_does_not_depend_on_the_batch_size(run, tmp_path):
    folder, _, splits, data = run
    other = tmp_path / "again"
    run_scorers(
        [Oracle(splits, data, "oracle")], data, other, splits=[TARGET], n_context=SIZES, batch_size=7, progress=False
    )
    keys = ["n_context", "control", "pair_id"]
    tables = [
        pq.read_table(
            path / "per_pair.parquet", filters=[("method", "=", "oracle"), ("seed", "=", 0), ("split", "=", TARGET)]
        ).sort_by([(key, "ascending") for key in keys])
        for path in (folder, other)
    ]
    assert tables[0].equals(tables[1])


def test_an_interrupted_run_leaves_nothing_half_made(tmp_path):
    splits, data = population()

    class Breaks(Oracle):
        def margin(self, rows, context):
            if "unseen_items" in self.history.item_ids[0] or rows.max() > 500:
                raise RuntimeError("power cut")
            return super().margin(rows, context)

    with pytest.raises(RuntimeError, match="power cut"):
        run_scorers([Breaks(splits, data, "x")], data, tmp_path, splits=SPLITS, n_context=SIZES, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_row_groups_are_bounded_and_hold_one_split(run, tmp_path, monkeypatch):
    _, _, splits, data = run
    monkeypatch.setattr(storage, "_GROUP_VALUES", 500)
    run_scorers(
        [Oracle(splits, data, "oracle")], data, tmp_path, splits=SPLITS, n_context=SIZES, batch_size=50, progress=False
    )
    file = pq.ParquetFile(tmp_path / "per_pair.parquet")
    assert file.num_row_groups > 10
    for number in range(file.num_row_groups):
        assert file.metadata.row_group(number).num_rows <= 600
        assert len(set(file.read_row_group(number, columns=["split"])["split"].to_pylist())) == 1


def test_controls_can_be_left_out(run, tmp_path):
    _, _, splits, data = run
    run_scorers(
        [Oracle(splits, data, "o")], data, tmp_path, splits=[TARGET], n_context=[2], controls=False, progress=False
    )
    assert set(pq.read_table(tmp_path / "per_pair.parquet")["control"].to_pylist()) == {"none"}
    assert json.loads((tmp_path / "run.json").read_text())["n_context"] == [0, 2]


def test_runs_of_one_dataset_join_pair_by_pair(run, tmp_path):
    folder, _, splits, data = run
    parts = []
    for name, scorer in (("a", Oracle(splits, data, "oracle")), ("b", Baseline(splits, data, "btl"))):
        run_scorers([scorer], data, tmp_path / name, splits=[TARGET], n_context=SIZES, progress=False)
        parts.append(Source(tmp_path / name))
    together, apart = load_scores([Source(folder)], TARGET), load_scores(parts, TARGET)
    assert len(apart.users) == len(together.users)
    results = [
        method_results(s, "oracle", baseline="btl", n_replicates=50)[0]["6"]["gain_over_btl"]
        for s in (together, apart)
    ]
    assert results[0] == results[1]


def test_folds_count_the_same_and_are_kept_apart(run):
    folder = run[0]
    scores = load_scores([Source(folder, fold=0), Source(folder, fold=1)], TARGET, {"oracle", "btl"})
    assert len(scores.users) == 2 * len(load_scores([Source(folder)], TARGET).users)
    assert sorted(set(scores.groups)) == [0, 1]
    assert method_results(scores, "oracle", n_replicates=20)[0]["6"]["accuracy"]["value"] == 1


def test_scores_read_one_method_at_a_time_are_the_scores_read_at_once(run, tmp_path):
    folder = run[0]
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for name in ("per_pair.parquet", "pairs.parquet"):
        table = pq.read_table(folder / name)
        table = table.take(np.random.default_rng(0).permutation(len(table))) if name != "pairs.parquet" else table
        pq.write_table(table, shuffled / name, row_group_size=700)
    for sources in ([Source(folder)], [Source(folder, fold=0), Source(shuffled, fold=1)]):
        reader, whole = ScoreReader(sources, TARGET), load_scores(sources, TARGET)
        compared = reader.load({"btl"}, own=True)
        assert {control for _, _, control in compared.margin} == {"none"} and len(compared.on_context["btl"])
        for method in whole.seeds:
            scores = compared.beside(reader.load({method}))
            assert set(scores.seeds) == {"btl", method}
            for key, margin in whole.margin.items():
                if key[0] == method:
                    assert np.array_equal(scores.margin[key], margin, equal_nan=True)
            for fold in range(len(sources)):
                rows = whole.groups == fold
                assert np.array_equal(scores.of_fold(fold).own(method, 6), whole.own(method, 6)[rows])
    n = len(load_scores([Source(folder)], TARGET).users)
    assert np.array_equal(whole.own("oracle", 6)[:n], whole.own("oracle", 6)[n:]), "whatever the order of the rows"


def test_ids_of_pairs_from_several_splits_keep_their_order(run):
    history = run[3].history
    rows = np.random.default_rng(0).permutation(history.n_rows)[:50]
    expected = [history.pair_ids[int(row)].as_py() for row in rows]
    assert len({row for split in SPLITS for row in rows if row in history.rows(split)}) > 1
    assert _pair_ids(history, rows).to_pylist() == expected
    assert _pair_ids(history, rows[:0]).to_pylist() == []


def test_methods_of_one_name_can_be_renamed(run):
    scores = load_scores([Source(run[0], rename=(("oracle", "oracle (old)"),))], TARGET, {"oracle (old)"})
    assert list(scores.seeds) == ["oracle (old)"]


def test_reading_what_is_no_run_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_scores([Source(tmp_path)], TARGET)
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="damaged"):
        load_scores([Source(tmp_path)], TARGET)
    pq.write_table(
        pa.table({"split": ["x"], "user_id": ["u"], "pair_id": ["p"], "item_ids": [["i"]], "agreed": [True]}),
        tmp_path / "pairs.parquet",
    )
    pq.write_table(pa.table({"split": ["x"], "method": ["m"]}), tmp_path / "per_pair.parquet")
    with pytest.raises(DataError, match="column"):
        load_scores([Source(tmp_path)], "x")
    pq.write_table(pa.table({"split": ["x"], "user_id": ["u"], "pair_id": ["p"]}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="item_ids"):
        load_scores([Source(tmp_path)], "x")


def test_users_without_history_are_evaluated_at_no_context(tmp_path):
    splits, data = population(shares={"train": (4, 3), "validation": (6, 1)})
    run_scorers([Oracle(splits, data, "oracle")], data, tmp_path, splits=["validation"], n_context=[2], progress=False)
    scores = load_scores([Source(tmp_path)], "validation")
    metrics, controls = method_results(scores, "oracle", n_replicates=20)
    assert metrics["2"]["accuracy"]["value"] == 0.5
    assert np.isfinite(metrics["2"]["log_loss"]["value"])
    assert "flip_rate" not in controls["2"], "there was no label to turn"
