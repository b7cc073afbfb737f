"""Contexts of controls: what they hold, and that none of them holds what it must not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from doubles import population

from pluralrlhf.data.history import UserHistory
from pluralrlhf.evaluation.controls import CONTEXT_CONTROLS, ControlContexts
from pluralrlhf.evaluation.evaluation_data import user_types
from pluralrlhf.evaluation.opinions import Opinions

SPLITS = ("validation", "test_unseen_users_seen_items", "test_unseen_users_unseen_items")


@pytest.fixture(scope="module")
def data():
    return population()[1]


def contexts(data, split, **kwargs):
    return ControlContexts(data.history, split, opinions=data.opinions, user_types=data.user_types, **kwargs)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CONTEXT_CONTROLS)
def test_no_context_shares_an_item_with_its_target(data, split, name):
    made = contexts(data, split)
    rows = data.history.rows(split)
    own = made.own(rows, 6)
    context, _ = made.make(name, rows, own)
    for row, shown in zip(rows, context.index):
        shown = shown[shown >= 0]
        if len(shown):
            assert not data.history.conflicts(np.array([row]), shown).any()
            assert len(set(shown.tolist())) == len(shown)


@pytest.mark.parametrize("split", SPLITS)
def test_controls_hold_what_they_say(data, split):
    history, made = data.history, contexts(data, split)
    rows = history.rows(split)
    own = made.own(rows, 4)
    assert (history.user[own.index] == history.user[rows][:, None]).all()
    assert set(made.names) == set(CONTEXT_CONTROLS)

    flipped, _ = made.make("flipped", rows, own)
    assert (flipped.index == own.index).all() and flipped.flipped.all()

    coin, _ = made.make("coin_flip", rows, own)
    assert (coin.index == own.index).all() and 0.3 < coin.flipped.mean() < 0.7

    empty, _ = made.make("empty_context", rows, own)
    assert (empty.index == -1).all() and empty.index.shape == own.index.shape

    permuted, _ = made.make("permuted", rows, own)
    assert (np.sort(permuted.index, axis=1) == np.sort(own.index, axis=1)).all()
    assert (permuted.index != own.index).any()

    wrong, exists = made.make("wrong_user", rows, own)
    assert exists.all() and (wrong.index >= 0).all()
    assert (history.user[wrong.index] != history.user[rows][:, None]).all()
    assert all(len(set(users)) == 1 for users in history.user[wrong.index].tolist()), "one other user a target"

    other, exists = made.make("other_type", rows, own)
    types = np.array([data.user_types[user] for user in history.users])
    assert exists.all()
    assert (types[history.user[other.index]] != types[history.user[rows]][:, None]).all()

    relabelled, exists = made.make("relabelled", rows, own)
    assert exists.all()
    assert (history.items[relabelled.index] == history.items[own.index]).all(), "the same pairs"
    assert (history.user[relabelled.index] != history.user[rows][:, None]).all(), "other people's labels"


def test_smaller_contexts_are_the_beginning_of_larger_ones(data):
    made = contexts(data, SPLITS[-1])
    rows = data.history.rows(SPLITS[-1])
    for name in ("wrong_user", "other_type", "relabelled", "coin_flip"):
        small, _ = made.make(name, rows, made.own(rows, 2))
        large, _ = made.make(name, rows, made.own(rows, 6))
        assert (large.first(2).index == small.index).all() and (large.first(2).flipped == small.flipped).all()


def test_draws_depend_on_the_pair_and_the_seed_alone(data):
    rows = data.history.rows(SPLITS[-1])
    for name in ("wrong_user", "relabelled", "coin_flip", "permuted"):
        one, two, other = (contexts(data, SPLITS[-1], seed=seed) for seed in (0, 0, 1))
        whole, _ = one.make(name, rows, one.own(rows, 5))
        part, _ = two.make(name, rows[7:11], two.own(rows[7:11], 5))
        assert (whole.index[7:11] == part.index).all() and (whole.flipped[7:11] == part.flipped).all()
        changed, _ = other.make(name, rows, one.own(rows, 5))
        assert (changed.index != whole.index).any() or (changed.flipped != whole.flipped).any()


def test_wrong_users_have_about_as_much_to_show():
    rows = []
    for user in range(40):
        for item in range(2 if user % 2 else 40):
            rows.append({"user_id": f"u{user}", "pair_id": f"{user}-{item}", "item_ids": [f"i{item}"]})
    history = UserHistory({"validation": pa.Table.from_pylist(rows)})
    made = ControlContexts(history, "validation")
    targets = history.rows("validation")
    wrong, _ = made.make("wrong_user", targets, made.own(targets, 8))
    few = np.array([int(history.users[user][1:]) % 2 == 1 for user in history.user[targets]])
    assert (wrong.index[~few] >= 0).all()
    assert set(made.names).isdisjoint({"relabelled", "other_type"}), "what the data does not allow is not offered"


def test_one_user_has_no_wrong_user():
    table = pa.Table.from_pylist([{"user_id": "u", "pair_id": str(i), "item_ids": [str(i)]} for i in range(3)])
    history = UserHistory({"validation": table})
    made = ControlContexts(history, "validation")
    assert "wrong_user" not in made.names
    context, exists = made.make("wrong_user", history.rows("validation"), made.own(history.rows("validation"), 2))
    assert not exists.any() and (context.index == -1).all()


def test_relabelled_is_missing_where_nobody_else_judged():
    conversation = [{"role": "assistant", "content": "x"}]
    rows = [
        {"user_id": user, "pair_id": f"{user}{i}", "item_ids": [f"{i}"], "prompt": conversation}
        | {
            "chosen": [{"role": "assistant", "content": f"{i}a"}],
            "rejected": [{"role": "assistant", "content": f"{i}b"}],
        }
        for user, i in (("a", 0), ("a", 1), ("a", 2), ("b", 1))
    ]
    rows[-1]["chosen"], rows[-1]["rejected"] = rows[-1]["rejected"], rows[-1]["chosen"]
    table = pa.Table.from_pylist(rows)
    opinions = Opinions({"validation": table}, np.array([0, 0, 0, 1]))
    draw = np.arange(4).astype(np.uint64)
    assert opinions.another_judgment(np.array([0, 1, 2, 3]), draw).tolist() == [-1, 3, -1, 1]
    assert opinions.another_judgment(np.array([-1, 1]), draw[:2]).tolist() == [-1, 3]


def test_another_judgment_skips_a_users_own_repeats():
    rows = [
        {"user_id": user, "prompt": "p", "chosen": "x", "rejected": "y"} for user in ("a", "a", "a", "b", "a", "c")
    ]
    opinions = Opinions({"train": pa.Table.from_pylist(rows)}, np.array([0, 0, 0, 1, 0, 2]))
    for draw in range(12):
        found = opinions.another_judgment(np.arange(6), np.full(6, draw, np.uint64))
        assert set(found[[0, 1, 2, 4]].tolist()) <= {3, 5} and found[3] != 3 and found[5] != 5


def test_agreed_pairs_are_those_that_nearly_all_judge_alike(data):
    history = data.history
    number = np.array([int(history.item_ids[item][1:]) for item in history.items[:, 0]])
    assert (data.opinions.agreed() == (number % 5 == 4)).all()


def test_agreement_is_inferred_from_each_responses_wins_where_pairs_are_judged_once():
    rng = np.random.default_rng(0)
    liked = {f"r{i}": share for i, share in enumerate([0.98, 0.95, 0.5, 0.5, 0.05, 0.02])}
    rows = []
    for user in range(300):
        a, b = rng.choice(list(liked), 2, replace=False)
        odds = liked[a] * (1 - liked[b]), liked[b] * (1 - liked[a])
        chosen, rejected = (a, b) if rng.random() < odds[0] / sum(odds) else (b, a)
        # A prompt of one's own: no two users judge the same pair, but they judge the same responses.
        rows.append({"user_id": f"u{user}", "prompt": "", "chosen": chosen, "rejected": rejected})
    table = pa.Table.from_pylist(rows)
    opinions = Opinions({"train": table}, np.arange(300))
    opinions.group = np.arange(300)
    agreed = opinions.agreed()
    sides = [{row["chosen"], row["rejected"]} for row in rows]
    assert agreed[[side == {"r0", "r5"} for side in sides]].all()
    assert not agreed[[side == {"r2", "r3"} for side in sides]].any()


def test_types_come_from_attributes_and_nothing_else():
    users = [
        {"user_id": "a", "attributes": '{"type": "cat"}'},
        {"user_id": "b", "attributes": '{"age": 3}'},
        {"user_id": "c", "attributes": None},
    ]
    assert user_types(users) == {"a": "cat"}
