"""Splits by hash: stable, disjoint where they must be, of the sizes asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from pluralrlhf.data.schema import SPLITS
from pluralrlhf.data.splits import MIXED_ITEMS, UNSEEN_ITEMS_OF_VALIDATION_USERS, SplitConfig, hash64, unit_hash
from pluralrlhf.errors import ConfigError

USERS = [f"user-{i}" for i in range(20_000)]
ITEMS = [f"item-{i}" for i in range(20_000)]


def test_hashes_do_not_change():
    # Another hash would move users between the splits of datasets that people have built and published.
    assert hash64("user", 0, "u7") == 18110690962306740073
    assert hash64("ab", "c") != hash64("a", "bc")
    assert 0 <= unit_hash("x") < 1


def test_shares_of_users():
    splits = SplitConfig(validation_users=0.1, test_users=0.25)
    shares = Counter(splits.user_partition(user) for user in USERS)
    assert shares["validation"] / len(USERS) == pytest.approx(0.1, abs=0.01)
    assert shares["test"] / len(USERS) == pytest.approx(0.25, abs=0.01)


def test_shares_of_items_and_pairs():
    splits = SplitConfig(test_items=0.3, test_pairs=0.2)
    assert sum(map(splits.item_unseen, ITEMS)) / len(ITEMS) == pytest.approx(0.3, abs=0.01)
    assert sum(splits.pair_held_out(u, ["i"]) for u in USERS) / len(USERS) == pytest.approx(0.2, abs=0.01)
    assert not any(map(SplitConfig(test_items=0).item_unseen, ITEMS))


def test_the_seed_changes_the_division_and_nothing_else_does():
    first, again, other = SplitConfig(seed=0), SplitConfig(seed=0, test_items=0.5, n_item_folds=4), SplitConfig(seed=1)
    assert [first.user_partition(u) for u in USERS] == [again.user_partition(u) for u in USERS]
    assert [first.user_partition(u) for u in USERS] != [other.user_partition(u) for u in USERS]


def test_user_folds_are_disjoint_and_cover_everyone():
    tests = Counter()
    for fold in range(5):
        splits = SplitConfig(n_user_folds=5, user_fold=fold)
        partition = {user: splits.user_partition(user) for user in USERS}
        tests.update(user for user in USERS if partition[user] == "test")
        others = [p for p in partition.values() if p != "test"]
        assert others.count("validation") / len(others) == pytest.approx(0.1, abs=0.01)
    assert set(tests) == set(USERS) and set(tests.values()) == {1}


def test_item_folds_are_disjoint_and_cover_everything():
    tests = Counter()
    for fold in range(5):
        tests.update(filter(SplitConfig(n_item_folds=5, item_fold=fold).item_unseen, ITEMS))
    assert set(tests) == set(ITEMS) and set(tests.values()) == {1}


def test_where_pairs_go():
    splits = SplitConfig()
    unseen = [item for item in ITEMS if splits.item_unseen(item)][:2]
    seen = [item for item in ITEMS if not splits.item_unseen(item)][:2]
    by_partition = {splits.user_partition(user): user for user in USERS}
    train, validation, test = (by_partition[p] for p in ("train", "validation", "test"))
    for user in (train, validation, test):
        assert splits.assign(user, [seen[0], unseen[0]]) == (None, MIXED_ITEMS)
    assert splits.assign(train, seen)[0] in ("train", "test_seen_users_seen_items")
    assert splits.assign(train, unseen) == ("test_seen_users_unseen_items", None)
    assert splits.assign(validation, seen) == ("validation", None)
    assert splits.assign(validation, unseen) == (None, UNSEEN_ITEMS_OF_VALIDATION_USERS)
    assert splits.assign(test, seen) == ("test_unseen_users_seen_items", None)
    assert splits.assign(test, unseen) == ("test_unseen_users_unseen_items", None)
    assert splits.assign(test, seen, test_item=True) == ("test_unseen_users_unseen_items", None)
    assert {splits.assign(user, [item])[0] for user in USERS[:200] for item in ITEMS[:50]} - {None} == set(SPLITS)


def test_a_users_pairs_on_the_same_items_are_held_out_together():
    splits = SplitConfig(test_pairs=0.5)
    assert all(splits.pair_held_out(u, ["a", "b"]) == splits.pair_held_out(u, ["b", "a"]) for u in USERS[:100])


@pytest.mark.parametrize(
    "settings",
    [
        {"test_users": 1.0},
        {"test_items": -0.1},
        {"validation_users": float("nan")},
        {"test_users": 0.6, "validation_users": 0.4},
        {"n_user_folds": 1},
        {"n_user_folds": 3, "user_fold": 3},
        {"n_item_folds": 3, "item_fold": -1},
        {"user_fold": 2},
    ],
)
def test_impossible_settings_are_errors(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SplitConfig(**settings)
