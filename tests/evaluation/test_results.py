"""What is made of the numbers: verdicts, tables, and `results.json`."""

from __future__ import annotations

import io
import json

import pytest
from doubles import AnyContext, Baseline, Global, Oracle, population

from pluralrlhf.errors import DataError
from pluralrlhf.evaluation.controls import Context
from pluralrlhf.evaluation.printing import markdown_summary, print_summary, to_markdown
from pluralrlhf.evaluation.runner import run_scorers
from pluralrlhf.evaluation.storage import Source
from pluralrlhf.evaluation.summary import Dataset, collect, read_results, write_results
from pluralrlhf.evaluation.tables import (
    controls_table,
    detectable,
    folds_table,
    headline_table,
    headlines,
    label,
    quality_table,
    sections,
)
from pluralrlhf.evaluation.verdicts import (
    headline_split,
    interval,
    knows,
    nothing_to_find,
    points,
    reference_title,
    verdict,
)

SPLITS = ["validation", "test_unseen_users_seen_items", "test_unseen_users_unseen_items"]


def number(value, low=None, high=None):
    return {"value": value, "ci95": None if low is None else [low, high], "n_users": 9, "n_pairs": 99}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    splits, data = population()
    names = {Baseline: "baseline", Oracle: "ceiling", Global: "global", AnyContext: "anycontext"}
    scorers = [cls(splits, data, name) for cls, name in names.items()]
    runs = [
        run_scorers([scorer], data, folder / scorer.method, splits=SPLITS, n_context=[2, 6], progress=False)
        for scorer in scorers
    ]
    dataset = Dataset(
        name="toy",
        sources=[Source(folder / scorer.method) for scorer in scorers],
        runs=runs,
        baseline="baseline",
        ceiling="ceiling",
        info={"data": "data/toy", "data_sha256": "abc", "dropped": {"mixed_items": 3}},
    )
    return folder, collect(dataset, command="pluralrlhf eval ...", n_replicates=100)


def test_results_have_the_contracts_shape(results):
    folder, found = results
    content = write_results(folder, found[:1])
    assert json.loads((folder / "results.json").read_text()) == content
    for key in (
        "schema",
        "model",
        "method",
        "data",
        "data_sha256",
        "seeds",
        "command",
        "versions",
        "splits",
        "controls",
        "timing",
    ):
        assert key in content
    for split in SPLITS:
        assert set(content["splits"][split]["n_context"]) == {"0", "2", "6"}
        for metrics in content["splits"][split]["n_context"].values():
            for name in ("accuracy", "log_loss", "brier", "ece"):
                assert set(metrics[name]) >= {"value", "ci95", "n_users", "n_pairs"}
        assert set(content["controls"][split]) == {"2", "6"}
    assert content["splits"][SPLITS[-1]]["n_context"]["2"]["mean_context_pairs"]["value"] == 2
    assert {"python", "torch", "pluralrlhf"} <= set(content["versions"])


def test_a_headline_on_few_items_says_so_and_brings_its_sibling(results):
    found = json.loads(json.dumps(results[1]))
    for few, others in ((False, []), (True, [SPLITS[1]])):
        for result in found:
            for metrics in result["splits"][SPLITS[2]]["n_context"].values():
                assert "n_items" in metrics["accuracy"]
                metrics["accuracy"] |= {"n_items": 1, "n_pairs": 50} if few else {"n_items": 10, "n_pairs": 200}
        (section,) = sections(found)
        assert headlines(section) == [SPLITS[2], *others]
        assert markdown_summary(found, "x").count("- `anycontext`") == 1 + few
    assert "1 item, 50 pairs" in headline_table(section).notes[0] and "few items" in headline_table(section).notes[1]


def test_no_gain_larger_than_what_is_left_is_called_detectable(results):
    found = json.loads(json.dumps(results[1]))
    gain = next(r for r in found if r["method"] == "anycontext")["splits"][SPLITS[2]]["n_context"]["6"]["gain"]
    gain["smallest_detectable"] = 0.93
    (section,) = sections(found)
    assert "anycontext no gain, however large, over its own k = 0" in detectable(section)


def test_several_methods_are_a_list_beside_the_first(results):
    folder, found = results
    content = write_results(folder, found)
    assert content["method"] == found[0]["method"] and len(content["results"]) == 4
    assert read_results(folder)["results"] == found
    suite = write_results(folder, found[:1], name="a suite")
    assert "method" not in suite and len(suite["results"]) == 1


def test_every_interval_lies_on_the_scale_of_its_metric(results):
    for result in results[1]:
        for metrics in (*result["splits"].values(),):
            for values in metrics["n_context"].values():
                for name, found in values.items():
                    if found.get("ci95") and "gain" not in name and name != "log_loss":
                        assert 0 <= found["ci95"][0] <= found["ci95"][1] <= 1


def test_verdicts_are_in_the_results(results):
    kinds = {result["method"]: result["verdicts"][SPLITS[0]]["kind"] for result in results[1]}
    assert kinds == {
        "baseline": "no_user",
        "ceiling": "uses_user",
        "global": "ignores_user",
        "anycontext": "ignores_user",
    }


def test_verdicts_in_words():
    good = {"gain": number(0.05, 0.02, 0.08), "gain_over_btl": number(0.04, 0.01, 0.07)}
    uses = {"flip_rate": number(0.4), "gain_over_wrong_user": number(0.1, 0.05, 0.15)}
    assert verdict(good, uses)["text"] == "uses the user: +5.0 [2.0, 8.0] over its own k = 0, +4.0 [1.0, 7.0] over btl"
    assert verdict(good, {**uses, "gain_over_wrong_user": number(0.0, -0.01, 0.01)})["kind"] == "any_context"
    assert verdict(good, {**uses, "gain_over_wrong_user": number(0.3, -0.02, 0.7)})["kind"] == "not_told_apart"
    blind = {**uses, "flip_rate": number(0.02)}
    assert verdict(good, {**blind, "gain_over_wrong_user": number(0.0, -0.01, 0.01)})["kind"] == "ignores_user"
    assert verdict(good, {"flip_rate": number(0.02)})["kind"] == "ignores_user"
    # A reader of profiles: no label can be turned round, but another user's profile does not do.
    assert verdict(good, blind)["kind"] == "uses_user" and "labels it does not read" in verdict(good, blind)["text"]
    assert verdict({"gain": number(-0.05, -0.08, -0.02)}, uses)["kind"] == "harmed"
    none = {"gain": number(0.0, -0.02, 0.02)}
    assert verdict(none, uses)["kind"] == "no_gain"
    found = verdict(none, uses, ceiling_gain=number(0.004, -0.01, 0.02), placebo_gain=number(0.0, -0.01, 0.01))
    assert found["kind"] == "nothing_to_find" and "equals placebo" in found["text"]
    assert verdict(none, uses, ceiling_gain=number(0.1, 0.05, 0.15))["kind"] == "no_gain"
    behind = verdict({**good, "gain_over_btl": number(-0.05, -0.09, -0.01)}, uses)
    assert behind["kind"] == "worse"
    assert behind["text"] == "is worse than btl: -5.0 [-9.0, -1.0]; uses the user: +5.0 [2.0, 8.0] over its own k = 0"
    assert verdict({**none, "gain_over_btl": number(-0.05, -0.09, 0.01)}, uses)["kind"] == "no_gain"
    assert verdict({}, {})["kind"] == "unknown"
    assert verdict(good, uses, uses_context=False)["kind"] == "no_user"


def test_a_wide_ceiling_is_no_proof_that_nothing_is_to_find():
    assert not nothing_to_find(number(0.08, -0.02, 0.2), None)
    assert nothing_to_find(number(0.01, -0.02, 0.03), None)
    assert not nothing_to_find(None, None)


def test_item_factors_do_not_speak_of_items_never_seen():
    assert knows("ceiling", "test_unseen_users_unseen_items") and knows("item_factors", "test_unseen_users_seen_items")
    assert not knows("item_factors", "test_unseen_users_unseen_items") and not knows(None, "validation")
    assert reference_title("item_factors") == "reference (item factors)" and reference_title("ceiling") == "ceiling"


def test_numbers_in_words():
    assert points(0.1234) == "12.3" and points(0.1234, True) == "+12.3"
    assert points(-0.0001, True) == "0.0" and points(0.0, True) == "0.0" and points(-0.0004) == "0.0"
    assert interval(number(0.5, 0.4, 0.6)) == "50.0 [40.0, 60.0]"
    assert interval(number(0.5)) == "50.0" and interval(None) == "–"


def test_the_headline_is_unseen_users_on_unseen_items():
    assert headline_split(["validation", "test_unseen_users_seen_items"]) == "test_unseen_users_seen_items"
    assert headline_split(["train", "validation"]) == "validation"
    assert headline_split([]) is None


def test_tables(results):
    section = sections(results[1])[0]
    assert section.split == SPLITS[-1]
    headline = headline_table(section)
    assert headline.columns[:4] == ["method", "k = 0", "k = 2", "k = 6"]
    rows = {row[0]: row for row in headline.rows}
    assert rows["ceiling"][3] == "100.0 [100.0, 100.0]"
    assert rows["baseline"][4] == "–", "a method without a user has no gain over its own k = 0"
    assert rows["global"][-1].startswith("0.0"), "its share of the attainable gain"
    assert headline.marked == {headline.rows.index(rows["ceiling"])}
    controls = controls_table(section)
    assert "another type's" in controls.columns and len(controls.rows) == 4
    assert "calibration error" in quality_table(section).columns
    assert folds_table(section) is None
    # Nothing is said of a method whose answers never differ: its interval has no width, whatever the data could show.
    assert "anycontext" in detectable(section)
    assert not {"global", "ceiling"} & set(detectable(section).split())
    assert to_markdown(headline).count("\n|") == 6


def test_placebo_goes_with_its_dataset(results):
    placebo = {
        **next(r for r in results[1] if r["method"] == "global"),
        "dataset": "toy (placebo)",
        "placebo_of": "toy",
    }
    found = sections([*results[1], placebo])
    assert len(found) == 1 and found[0].placebo == [placebo]
    assert label(placebo) == "placebo (global)"
    table = headline_table(found[0])
    assert table.rows[-1][0] == "placebo (global)" and len(table.rows) - 1 in table.marked


def test_printed_and_written_summaries_name_every_method(results):
    from rich.console import Console

    out = io.StringIO()
    print_summary(results[1], Console(file=out, width=200))
    text = markdown_summary(results[1], "Toy")
    for method in ("baseline", "ceiling", "global", "anycontext"):
        assert method in out.getvalue() and method in text
    assert "Smallest gain that this data would have shown" in out.getvalue()
    assert "does not use the user" in text


def test_reading_what_is_no_result_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="folder does not exist"):
        read_results(tmp_path / "no")
    with pytest.raises(DataError, match=r"no results\.json"):
        read_results(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="did not finish"):
        read_results(tmp_path)
    for text in ("{", "[]", '{"schema": 99}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(DataError):
            read_results(tmp_path)


def test_pooled_folds_are_the_mean_of_the_folds(tmp_path):
    """Two folds of items: the pooled gain is the mean of the folds' gains, and every fold is there to see."""

    class Half(Oracle):
        """Right on even prompts only."""

        def margin(self, rows, context: Context):
            even = self.history.items[rows, 0] % 2 == 0
            return super().margin(rows, context) * (1 if self.method == "all" else 0) + even * super().margin(
                rows, context
            )

    splits, data = population()
    sources, runs = [], []
    for fold, cls in enumerate((Oracle, Half)):
        scorers = [cls(splits, data, "method"), Baseline(splits, data, "btl")]
        runs.append(run_scorers(scorers, data, tmp_path / str(fold), splits=SPLITS[:1], n_context=[4], progress=False))
        sources.append(Source(tmp_path / str(fold), fold=fold))
    dataset = Dataset("toy", sources, runs, baseline="btl", info={"data_sha256": "x"})
    result = next(r for r in collect(dataset, command="", n_replicates=50) if r["method"] == "method")
    pooled = result["splits"][SPLITS[0]]["n_context"]["4"]["gain_over_btl"]["value"]
    folds = [result["folds"][f][SPLITS[0]]["n_context"]["4"]["gain_over_btl"]["value"] for f in ("0", "1")]
    assert folds[0] > folds[1] + 0.1
    assert pooled == pytest.approx(sum(folds) / 2)
    table = folds_table(sections([result])[0])
    assert table.columns == ["method", "fold 0", "fold 1", "all folds"] and len(table.rows) == 1


def test_seeds_from_several_runs_are_one_method(tmp_path):
    splits, data = population()
    runs = [
        run_scorers(
            [cls(splits, data, name, seed)],
            data,
            tmp_path / f"{name}{seed}",
            splits=SPLITS[:1],
            n_context=[4],
            progress=False,
        )
        for name, cls in (("vpl", Oracle), ("btl", Baseline))
        for seed in (0, 1)
    ]
    sources = [Source(tmp_path / f"{name}{seed}") for name in ("vpl", "btl") for seed in (0, 1)]
    found = {
        r["method"]: r for r in collect(Dataset("toy", sources, runs, baseline="btl"), command="", n_replicates=20)
    }
    assert found["vpl"]["seeds"] == found["btl"]["seeds"] == [0, 1]
    metrics = found["vpl"]["splits"][SPLITS[0]]["n_context"]["4"]
    assert metrics["accuracy"]["value"] == 1 and metrics["gain_over_btl"]["n_pairs"] == len(
        data.history.rows(SPLITS[0])
    )
