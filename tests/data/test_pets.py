"""Pets: a model without users is at chance on contested pairs in every split; who knows the type is always right."""

import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from pluralrlhf.data import build_dataset, load_pairs, load_users
from pluralrlhf.data.placebo import pair_key
from pluralrlhf.data.populations.pets import ANIMALS, RANKINGS, Pets, _bank
from pluralrlhf.data.schema import SPLITS, validate_pair, validate_user
from pluralrlhf.data.splits import SplitConfig, hash64
from pluralrlhf.errors import ConfigError


def text(message):
    return message[0]["content"]


def accuracy_without_users(rows, score):
    """Mean over users of the user's accuracy of one score for everybody; ties count one half."""
    by_user = defaultdict(list)
    for row in rows:
        by_user[row["user_id"]].append((np.sign(score(row["chosen"]) - score(row["rejected"])) + 1) / 2)
    return np.mean([np.mean(right) for right in by_user.values()])


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_types": 4}, {"label_noise": 0.2}, {"shift": True}, {"seed": 3, "n_users": 60}],
    ids=["two types", "four types", "noise", "shift", "another seed"],
)
def test_a_model_without_users_is_at_chance_in_every_split(tmp_path, settings):
    build_dataset(Pets(**{"n_users": 80, **settings}), tmp_path / "d", progress=False)
    splits = load_pairs(tmp_path / "d")
    assert set(splits) == set(SPLITS)
    for name, rows in splits.items():
        for salt in range(3):
            scores = (lambda m, salt=salt: hash64(salt, text(m)), lambda m: len(text(m)), lambda m: 0)
            for score in scores:
                assert accuracy_without_users(rows, score) == pytest.approx(0.5, abs=1e-12), name


def test_users_are_right_about_their_animal(tmp_path):
    build_dataset(Pets(n_users=40), tmp_path / "d", progress=False)
    types = {u["user_id"]: json.loads(u["attributes"])["type"] for u in load_users(tmp_path / "d")}
    assert Counter(types.values()) == {"cat": 20, "dog": 20}
    animal = {s: a for a in ANIMALS for s in _bank()["kind"][a]}
    for rows in load_pairs(tmp_path / "d").values():
        assert all(animal[text(r["chosen"])] == types[r["user_id"]] != animal[text(r["rejected"])] for r in rows)


def test_sides_share_no_sentence_and_no_prompt(tmp_path):
    build_dataset(Pets(n_users=80, agreed_share=0.3), tmp_path / "d", progress=False)
    said = defaultdict(set)
    for name, rows in load_pairs(tmp_path / "d").items():
        side = "unseen" if name.endswith("unseen_items") else "seen"
        for row in rows:
            said[side] |= {text(row[column]) for column in ("prompt", "chosen", "rejected")}
    assert not said["seen"] & said["unseen"] and len(said["unseen"]) > 20


def test_unseen_sentences_of_one_wording_are_on_one_side():
    source = Pets(n_users=40, agreed_share=0.5)
    source.split = SplitConfig()
    wording = {s.replace(a, "pet"): set() for a in ANIMALS for s in map(str.lower, _bank()["unkind"][a])}
    for row in source.rows():
        for column in ("chosen", "rejected"):
            for animal in ANIMALS:
                key = text(row[column]).lower().replace(animal, "pet")
                if key in wording:
                    wording[key].add(row["_test_item"])
    assert max(map(len, wording.values())) == 1


def test_shift_tests_other_people_on_other_animals(tmp_path):
    build_dataset(Pets(n_users=80, shift=True), tmp_path / "d", progress=False)
    animal = {s: a for a in ANIMALS for s in _bank()["kind"][a]}
    for name, rows in load_pairs(tmp_path / "d").items():
        expected = {"rabbit", "bird"} if name.startswith("test_unseen_users") else {"cat", "dog"}
        assert {animal[text(r[c])] for r in rows for c in ("chosen", "rejected")} == expected
    truth = json.loads((tmp_path / "d" / "truth" / "truth.json").read_text())
    assert truth["probabilities"] == [0.5, 0.5, 0, 0] and truth["test_probabilities"] == [0, 0, 0.5, 0.5]


def test_agreed_pairs_are_agreed(tmp_path):
    build_dataset(Pets(n_users=40, agreed_share=0.25), tmp_path / "d", progress=False)
    truth = pq.read_table(tmp_path / "d" / "truth" / "pairs.parquet").to_pylist()
    unkind = {s for a in ANIMALS for s in _bank()["unkind"][a]}
    contested = {t["pair_id"]: t["contested"] for t in truth}
    rows = [r for split in load_pairs(tmp_path / "d").values() for r in split]
    assert 0.15 < 1 - np.mean(list(contested.values())) < 0.35
    for row in rows:
        assert text(row["chosen"]) not in unkind
        assert (text(row["rejected"]) in unkind) != contested[row["pair_id"]]


def test_truth_agrees_with_the_rows(tmp_path):
    build_dataset(Pets(n_users=40, n_types=4, label_noise=0.1), tmp_path / "d", progress=False)
    info = json.loads((tmp_path / "d" / "truth" / "truth.json").read_text())
    truth = {t["pair_id"]: t for t in pq.read_table(tmp_path / "d" / "truth" / "pairs.parquet").to_pylist()}
    animal = {s: a for a in ANIMALS for s in _bank()["kind"][a]}
    rows = [r for split in load_pairs(tmp_path / "d").values() for r in split]
    assert set(truth) == {r["pair_id"] for r in rows}
    for row in rows:
        known = truth[row["pair_id"]]
        weights = np.array(info["types"][info["users"][row["user_id"]]]["weights"])
        delta = np.array(known["delta"])
        assert known["reward_margin"] == pytest.approx(delta @ weights)
        assert delta[ANIMALS.index(animal[text(row["chosen"])])] == 1
    turned = np.mean([t["reward_margin"] < 0 for t in truth.values()])
    assert 0.05 < turned < 0.15


def test_many_users_judge_a_pair_so_that_a_placebo_can_be_made():
    source = Pets(n_users=60, placebo=True)
    assert source.truth() is None and source.truth_info() == {}
    judges = defaultdict(set)
    real = {r["pair_id"]: text(r["chosen"]) for r in Pets(n_users=60).rows()}
    rows = list(source.rows())
    for row in rows:
        judges[pair_key(row["prompt"], row["chosen"], row["rejected"])[0]].add(row["user_id"])
    assert np.median([len(j) for j in judges.values()]) >= 8
    same = np.mean([real[r["pair_id"]] == text(r["chosen"]) for r in rows])
    assert 0.4 < same < 0.55


def test_ids_tell_nothing_and_rows_keep_the_contract():
    rows, users = list(Pets(n_users=40).rows()), list(Pets(n_users=40).users())
    assert rows == list(Pets(n_users=40).rows())
    for row in rows:
        validate_pair(row)
        assert row["item_ids"] == sorted(row["item_ids"])
    odd = Counter(u["attributes"]["type"] for u in users if int(u["user_id"][-1]) % 2)
    assert 3 < odd["cat"] < 17, "a user's number does not tell the type"
    for user in users:
        validate_user(user)
    texts = [s for group in ("kind", "unkind") for a in ANIMALS for s in _bank()[group][a]] + _bank()["prompts"]
    assert len(set(texts)) == len(texts) > 250
    assert all(set(RANKINGS[n][i]) == set(RANKINGS[n][i + 1]) for n in (2, 4) for i in range(0, n, 2))
    assert all(RANKINGS[n][i] == RANKINGS[n][i + 1][::-1] for n in (2, 4) for i in range(0, n, 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_users": 7},
        {"n_types": 3},
        {"label_noise": 0.5},
        {"agreed_share": 2},
        {"shift": True, "n_types": 4},
        {"n_pairs": 0},
    ],
)
def test_settings_that_do_not_fit_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Pets(**wrong)
