"""A context is a function of seed, epoch and pair, never holds the target's items, and nests."""

from __future__ import annotations

import numpy as np
import pytest

from pluralrlhf.data.history import CONTEXT_SPLIT, UserHistory
from pluralrlhf.errors import DataError


def make(n_users=6, n_pairs=30, n_items=25, seed=0, split="train", order=None):
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user}", f"{split}-{user}-{pair}", [f"i{i}" for i in rng.choice(n_items, 2, replace=False)])
        for user in range(n_users)
        for pair in range(n_pairs)
    ]
    rows = [rows[i] for i in order] if order is not None else rows
    return {"user_id": [r[0] for r in rows], "pair_id": [r[1] for r in rows], "item_ids": [r[2] for r in rows]}


def ids(history, context):
    pair_ids = history.pair_ids.to_pylist()
    return [[pair_ids[row] for row in line if row >= 0] for line in context]


@pytest.mark.parametrize("epoch", [None, 0, 3])
def test_a_context_is_of_the_same_user_and_shares_no_item_with_the_target(epoch):
    history = UserHistory({"train": make()})
    rows = history.rows("train")
    context = history.context(rows, 8, epoch=epoch)
    for row, line in zip(rows, context):
        assert len(set(line)) == 8 and (line >= 0).all() and row not in line
        assert (history.user[line] == history.user[row]).all()
        assert not np.isin(history.items[line], history.items[row]).any()


def test_a_smaller_evaluation_context_is_the_beginning_of_a_larger_one():
    history = UserHistory({"train": make()})
    rows = history.rows("train")
    large = history.context(rows, 12)
    for k in (0, 1, 4, 8):
        assert np.array_equal(history.context(rows, k), large[:, :k])


@pytest.mark.parametrize("epoch", [None, 2])
def test_contexts_do_not_depend_on_the_order_of_rows_or_on_the_batch(epoch):
    data = make()
    order = np.random.default_rng(1).permutation(len(data["user_id"]))
    first, second = UserHistory({"train": data}), UserHistory({"train": make(order=order)})
    a = dict(zip(first.pair_ids.to_pylist(), ids(first, first.context(first.rows("train"), 6, seed=3, epoch=epoch))))
    rows = second.rows("train")
    parts = [second.context(rows[i : i + 7], 6, seed=3, epoch=epoch) for i in range(0, len(rows), 7)]
    b = dict(zip(second.pair_ids.to_pylist(), ids(second, np.concatenate(parts))))
    assert a == b


def test_epochs_and_seeds_draw_anew():
    history = UserHistory({"train": make()})
    rows = history.rows("train")
    base = history.context(rows, 6, seed=0, epoch=0)
    assert (history.context(rows, 6, seed=0, epoch=1) != base).any()
    assert (history.context(rows, 6, seed=1, epoch=0) != base).any()


def test_targets_on_unseen_items_see_pairs_on_seen_items_and_test_users_never_training_pairs():
    splits = {name: make(split=name, seed=i) for i, name in enumerate(CONTEXT_SPLIT)}
    history = UserHistory(splits)
    for name, pool in CONTEXT_SPLIT.items():
        context = history.context(history.rows(name), 5)
        low, high = history.splits[pool]
        assert (context >= low).all() and (context < high).all(), name


def test_short_histories_are_padded_and_an_empty_context_is_valid():
    history = UserHistory({"train": make(n_users=2, n_pairs=3, n_items=100)})
    context = history.context(history.rows("train"), 8)
    assert ((context >= 0).sum(1) == 2).all()
    assert history.context(history.rows("train"), 0).shape == (6, 0)
    alone = UserHistory({"train": make(n_users=3, n_pairs=1)})
    assert (alone.context(alone.rows("train"), 4) == -1).all()


def test_when_all_pairs_share_an_item_there_is_no_context():
    data = {"user_id": ["u"] * 5, "pair_id": list("abcde"), "item_ids": [["same", str(i)] for i in range(5)]}
    history = UserHistory({"train": data})
    assert (history.context(history.rows("train"), 3) == -1).all()


def test_an_epoch_visits_every_pair_once_or_a_fixed_number_a_user():
    history = UserHistory({"train": make(n_users=5, n_pairs=40)}, group_size=8)
    rows = history.rows("train")
    full = history.epoch_order(rows, epoch=0)
    assert sorted(full) == list(range(len(rows)))
    assert not np.array_equal(full, history.epoch_order(rows, epoch=1))
    capped = history.epoch_order(rows, epoch=0, pairs_per_user=7)
    assert (np.bincount(history.user[rows[capped]]) == 7).all()
    assert set(capped) != set(history.epoch_order(rows, epoch=1, pairs_per_user=7))


def test_targets_of_a_group_share_context_pairs_so_that_each_is_encoded_once():
    history = UserHistory({"train": make(n_users=4, n_pairs=96, n_items=5000)}, group_size=24)
    rows = history.rows("train")
    order = history.epoch_order(rows, epoch=0)[:48]
    context = history.context(rows[order], 16, epoch=0)
    assert len(np.unique(context)) < 0.25 * context.size


def test_the_number_of_context_pairs_is_drawn_uniformly_and_shared_by_a_group():
    history = UserHistory({"train": make(n_users=50, n_pairs=50)}, group_size=1)
    k = history.draw_n_context(history.rows("train"), 4, epoch=1)
    share = np.bincount(k, minlength=5) / len(k)
    assert np.abs(share - 0.2).max() < 0.04
    assert np.array_equal(k, history.draw_n_context(history.rows("train"), 4, epoch=1))


def test_a_missing_column_and_a_null_are_named():
    data = make(2, 2)
    with pytest.raises(DataError, match=r"split `train`, column `item_ids`"):
        UserHistory({"train": {k: v for k, v in data.items() if k != "item_ids"}})
    with pytest.raises(DataError, match=r"row 2, column `user_id`: the value is null"):
        UserHistory({"train": data | {"user_id": ["a", None, "b", "b"]}})


def test_a_sample_holds_at_most_so_many_pairs_of_so_many_users():
    history = UserHistory({"train": make(), "validation": make(n_users=2, split="validation")})
    rows = history.rows("train")
    sample = rows[history.sample(rows, users=4, pairs_per_user=7)]
    users, counts = np.unique(history.user[sample], return_counts=True)
    assert len(users) == 4 and set(counts) == {7} and np.array_equal(sample, np.unique(sample))
    assert np.array_equal(sample, rows[history.sample(rows, users=4, pairs_per_user=7)])
    assert np.array_equal(history.sample(rows, users=6, pairs_per_user=30), np.arange(len(rows)))
