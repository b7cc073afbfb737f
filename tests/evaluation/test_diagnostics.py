"""Vote shares, groups, agreed pairs, collapse, wrong labels, best of n: each shows what it is for, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralrlhf.errors import ConfigError
from pluralrlhf.evaluation import diagnostics, run_scorers
from pluralrlhf.evaluation.best_of_n import Pool, pools_of, true_weights
from pluralrlhf.evaluation.diagnostics import diagnostics_rows, read_diagnostics, stored_diagnostics, write_diagnostics
from pluralrlhf.evaluation.label_noise import label_noise_curve, over_baseline
from pluralrlhf.evaluation.plurality import (
    attributes_of,
    collapse,
    demographic_gaps,
    personalisation_tax,
    user_accuracy,
    vote_shares,
)
from pluralrlhf.evaluation.predictions import Predictions, load_predictions
from pluralrlhf.evaluation.reference import Truth

U, G = 60, 20


def predictions(**methods) -> Predictions:
    """60 users who all judge 20 pairs; the share who prefer the first response runs from 0.1 to 0.9."""
    rng = np.random.default_rng(0)
    user, group = (x.reshape(-1) for x in np.meshgrid(np.arange(U), np.arange(G), indexing="ij"))
    share = np.linspace(0.1, 0.9, G)
    first = rng.random(U * G) < share[group]
    response = np.stack([2 * group, 2 * group + 1], axis=1)
    response[~first] = response[~first][:, ::-1]
    p_first = {
        "knows": np.where(first, 0.95, 0.05),
        "shares": share[group],
        "flat": np.full(U * G, 0.5) + 1e-3,
        "average": np.where(share[group] > 0.5, 0.99, 0.01),
    } | methods  # fmt: skip
    probability = {name: np.where(first, p, 1 - p) for name, p in p_first.items()}
    margin = {name: np.log(p / (1 - p)) for name, p in probability.items()}
    ids = np.array([f"u{u:02d}" for u in user], dtype=object)
    pairs = np.array([f"{u}:{g}" for u, g in zip(user, group)], dtype=object)
    agreed = np.isin(group, [0, G - 1])
    return Predictions("s", pairs, ids, user, 8, margin, probability, group, first, response, agreed)


def test_a_model_of_shares_predicts_shares_and_a_model_of_the_average_user_does_not():
    found = predictions()
    errors = {name: vote_shares(found, name)["pairs"] for name in found.margin}
    assert errors["knows"]["error"]["value"] < 0.06
    assert errors["shares"]["error"]["value"] < 2 * errors["shares"]["chance_error"]
    assert errors["average"]["error"]["value"] > 0.15
    assert errors["flat"]["error"]["value"] == pytest.approx(errors["flat"]["error_of_half"], abs=2e-3)
    assert errors["shares"]["correlation"] > 0.9 and errors["shares"]["n"] == G
    responses = vote_shares(found, "shares")["responses"]
    assert responses["n"] == 2 * G and responses["correlation"] > 0.9
    assert vote_shares(found, "shares", min_judges=U + 1)["pairs"] == {"n": 0}


def test_the_order_of_a_pairs_responses_changes_no_share():
    found = predictions()
    turned = predictions()
    turned.first = ~found.first
    own, other = (vote_shares(f, "shares")["pairs"] for f in (found, turned))
    assert own["error"]["value"] == pytest.approx(other["error"]["value"]) and own["n"] == other["n"]


def test_a_gap_between_groups_is_told_from_chance():
    found = predictions()
    rows = [
        {
            "user_id": f"u{u:02d}",
            "attributes": json.dumps({"served": "yes" if u % 2 else "no", "lot": "ab"[u // 30], "age": 3}),
        }
        for u in range(U)
    ]
    unfair = np.where((found.user % 2 == 1) == found.first, 0.9, 0.1)
    unfair = np.where(found.user % 2 == 1, np.where(found.first, 0.9, 0.1), 0.501)
    found = predictions(unfair=unfair)
    gaps = demographic_gaps(found, "unfair", attributes_of(rows), baseline="flat", n_permutations=200)
    assert set(gaps) == {"served", "lot"}
    assert gaps["served"]["gap"] > 0.3 and gaps["served"]["p"] < 0.01
    assert gaps["served"]["gap_by_chance"] < 0.2 and gaps["lot"]["p"] > 0.01
    groups = gaps["served"]["groups"]
    assert groups["yes"]["gain"]["value"] > groups["no"]["gain"]["value"] + 0.3
    assert demographic_gaps(found, "unfair", attributes_of(rows), min_users=40, n_permutations=10) == {}
    assert np.allclose(user_accuracy(found, "knows"), 1.0)


def test_the_tax_is_what_agreed_pairs_lose():
    found = predictions()
    items = found.group[:, None]
    tax = personalisation_tax(found, "knows", "average", items, n_replicates=200)
    assert tax["accuracy"]["value"] == 1.0 and tax["difference"]["value"] > 0
    assert personalisation_tax(found, "average", "average", items, n_replicates=50)["difference"]["value"] == 0
    found.agreed[:] = False
    assert personalisation_tax(found, "knows", "average", items) is None


def test_collapse_is_seen_in_margins_and_in_states():
    found = predictions()
    assert collapse(found, "average")["user_share"] < 1e-6
    assert collapse(found, "knows")["user_share"] > 0.5
    rng = np.random.default_rng(0)
    line = rng.standard_normal((50, 1)) @ np.ones((1, 6))
    assert collapse(found, "knows", line)["effective_dimensions"] == pytest.approx(1, abs=1e-6)
    assert collapse(found, "knows", rng.standard_normal((500, 6)))["effective_dimensions"] > 5
    same = collapse(found, "knows", np.ones((50, 6)))
    assert same["active_units"] == 0 and same["effective_dimensions"] == 0


def test_stored_predictions_become_figures_and_a_table(tmp_path):
    from doubles import Baseline, Oracle, population

    splits, data = population()
    run_scorers([Baseline(splits, data, "btl"), Oracle(splits, data, "uses")], data, tmp_path, n_context=[0, 4],
                splits=["test_unseen_users_seen_items"], progress=False)  # fmt: skip
    split = "test_unseen_users_seen_items"
    tables = {name: table.to_pydict() for name, table in splits.items()}
    users = [{"user_id": u, "attributes": json.dumps({"kind": "ab"[n % 2]})} for n, u in enumerate(data.history.users)]
    content = stored_diagnostics(tmp_path, tables, users, split, baseline="btl")
    assert set(content["methods"]) == {"btl", "uses"} and content["n_context"] == 4
    found = load_predictions(tmp_path, tables, split)
    assert len(found.pair_ids) == 200 and np.isfinite(found.margin["btl"]).all()
    assert content["methods"]["uses"]["collapse"]["user_share"] > content["methods"]["btl"]["collapse"]["user_share"]
    written = write_diagnostics(content, tmp_path, "pets")
    ((folder, again),) = read_diagnostics([tmp_path], "pets")
    assert all((folder / figure["png"]).is_file() for figure in again["figures"]) and written == again
    columns, rows, _ = diagnostics_rows(again)
    assert [len(row) for row in rows] == [len(columns)] * 2
    with pytest.raises(ConfigError, match="no rows of split 'validation'"):
        load_predictions(tmp_path, tables, "validation")


def test_wrong_labels_cost_what_the_context_gave():
    from doubles import Baseline, Oracle, population

    splits, data = population()
    scorers = [Baseline(splits, data, "btl"), Oracle(splits, data, "uses")]
    for scorer in scorers:
        scorer.prepare = lambda rows: None
    curves = label_noise_curve(scorers, data, "test_unseen_users_seen_items", n_context=8, rates=(0.0, 0.25, 0.5))
    accuracy = [value["value"] for value in curves["uses"]["accuracy"]]
    assert accuracy[0] > accuracy[1] > accuracy[2]
    assert len({value["value"] for value in curves["btl"]["accuracy"]}) == 1
    assert over_baseline(curves, "btl")["uses"][0]["value"] > 0


def test_pools_add_up_differences_along_pairs_that_share_a_response():
    attributes = {"a": [0.0, 0], "b": [1.0, 0], "c": [1.0, 1], "x": [0, 0], "y": [0, 1.0]}
    rows = [("a", "b"), ("c", "b"), ("x", "y"), ("b", "a")]
    table = [{"pair_id": str(i), "prompt": "p", "chosen": c, "rejected": r} for i, (c, r) in enumerate(rows)]
    deltas = np.array([np.subtract(attributes[c], attributes[r]) for c, r in rows])
    truth = Truth({"users": {"u": [1.0, 2.0]}}, {str(i): i for i in range(4)}, deltas)
    (pool,) = pools_of({"s": table}, truth, "s")
    assert isinstance(pool, Pool) and pool.responses == ["a", "b", "c"]
    relative = np.array([attributes[name] for name in pool.responses])
    assert np.allclose(pool.attributes - pool.attributes[0], relative - relative[0])
    assert true_weights(truth)["u"].tolist() == [1.0, 2.0]
    typed = Truth({"types": [{"weights": [1, 0]}, {"weights": [0, 1]}], "users": {"u": 1}}, {}, deltas)
    assert true_weights(typed)["u"].tolist() == [0, 1]


class Judge:
    """Scores by attributes that stand in the response's text, with weights of its own."""

    def __init__(self, method: str, weights: dict[str, float]):
        self.method, self.weights, self.model = method, weights, self

    def prepare(self, rows):
        pass

    def encode(self, context):
        return len(context.index)

    def score_matrix(self, n_users, prompts, responses):
        import torch

        values = [sum(self.weights.get(letter, 0.0) for letter in response) for response in responses]
        return torch.tensor([values] * n_users)


def test_best_of_n_by_the_truth_has_no_regret_and_by_its_opposite_does_harm(monkeypatch):
    from pluralrlhf.data.history import UserHistory
    from pluralrlhf.evaluation import best_of_n as module

    # Eight responses to each of three prompts: all sets of the letters a, b, c, and their weights 4, 2, 1.
    weights = {"a": 4.0, "b": 2.0, "c": 1.0}
    texts = ["".join(x for x, on in zip("abc", (i & 4, i & 2, i & 1)) if on) or "-" for i in range(8)]
    attributes = [[float(letter in text) for letter in "abc"] for text in texts]
    split, rows, deltas = "test_unseen_users_unseen_items", [], []
    for user in range(4):
        for prompt in range(3):
            for i in range(7):
                rows.append(
                    {"user_id": f"u{user}", "pair_id": f"u{user}:{prompt}:{i}", "item_ids": [f"p{prompt}"],
                     "prompt": f"prompt {prompt}", "chosen": texts[i + 1], "rejected": texts[i]}
                )  # fmt: skip
                deltas.append(np.subtract(attributes[i + 1], attributes[i]))
    truth = Truth(
        {"users": {f"u{u}": [4.0, 2.0, 1.0] for u in range(4)}},
        {row["pair_id"]: number for number, row in enumerate(rows)},
        np.array(deltas),
    )
    monkeypatch.setattr(module.Truth, "load", classmethod(lambda cls, folder: truth))
    table = {split: pa.Table.from_pylist(rows)}
    judges = [Judge("knows", weights), Judge("opposite", {k: -v for k, v in weights.items()}), Judge("blind", {})]
    found = module.best_of_n(judges, "data", {split: rows}, UserHistory(table), sizes=[16, 8, 1, 2])
    assert found["sizes"] == [1, 2, 8] and found["n_users"] == 4
    knows, opposite = found["methods"]["knows"], found["methods"]["opposite"]
    assert all(abs(value["value"]) < 1e-9 for value in knows["regret"])
    assert knows["true"][2]["value"] == pytest.approx(found["best"][2])
    assert knows["over_optimisation"]["value"] == 0 and opposite["over_optimisation"]["value"] > 1
    assert abs(found["methods"]["blind"]["true"][1]["value"]) < 0.3
    with pytest.raises(ConfigError, match="only 8 responses: give 1 to 8"):
        module.best_of_n(judges, "data", {split: rows}, UserHistory(table), sizes=[64])
    with pytest.raises(ConfigError, match="prompts that no context holds"):
        module.best_of_n(judges, "data", {split: rows}, UserHistory(table), split="validation")


def test_states_of_folds_with_other_dimensions_are_not_mixed(tmp_path):
    rows = [
        {"method": "m", "seed": 0, "split": "s", "n_context": k, "state": [float(fold)] * size, "fold": fold}
        for fold, size in ((0, 3), (1, 2))
        for k in (2, 8)
        for _ in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "states.parquet")
    states = diagnostics._states(tmp_path / "states.parquet", "s", None)
    assert states["m"].shape == (4, 3)
