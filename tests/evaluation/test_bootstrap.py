"""Intervals over users and items: against loops, by what they cover, and in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pluralrlhf.evaluation import bootstrap as crossed
from pluralrlhf.evaluation.bootstrap import CrossedBootstrap
from pluralrlhf.metrics import pair_weights


def simulate(
    rng, n_users=60, n_items=30, pairs_a_user=10, user_effect=0.3, item_effect=0.3, noise=1.0, items_a_pair=1
):
    """Values with mean 0 over the population of users, items and answers."""
    users = np.repeat(np.arange(n_users), pairs_a_user)
    first = rng.integers(0, n_items, len(users))
    items = np.stack([(first + j * (1 + rng.integers(0, n_items - 1))) % n_items for j in range(items_a_pair)], axis=1)
    effects = rng.normal(0, item_effect, n_items)
    values = rng.normal(0, user_effect, n_users)[users] + effects[items].sum(axis=1) + rng.normal(0, noise, len(users))
    return users, items, values


@pytest.mark.parametrize("items_a_pair", [1, 2])
def test_replicates_equal_a_loop(items_a_pair):
    rng = np.random.default_rng(1)
    users, items, values = simulate(rng, n_users=6, n_items=5, pairs_a_user=4, items_a_pair=items_a_pair)
    groups = np.arange(len(users)) % 2
    values = np.stack([values, np.where(items[:, 0] == 2, np.nan, values)], axis=1)
    bootstrap = CrossedBootstrap(users, items, groups=groups, n_replicates=20, seed=3, rescale=False)
    result = bootstrap.estimate(values)
    user_rng, item_rng = np.random.default_rng([3, 0]), np.random.default_rng([3, 1])
    for replicate in range(20):
        user_count = np.bincount(user_rng.integers(0, 6, 6), minlength=6)
        item_count = np.bincount(
            item_rng.integers(0, bootstrap.n_items, bootstrap.n_items), minlength=bootstrap.n_items
        )
        for column in range(2):
            rows = np.flatnonzero(np.isfinite(values[:, column]))
            base = pair_weights(users[rows], groups[rows])
            total = weighted = 0.0
            for row, share in zip(rows, base):
                weight = share * user_count[users[row]]
                for item in set(bootstrap.items[row]) - {-1}:
                    weight *= item_count[item]
                total += weight
                weighted += weight * values[row, column]
            if total:
                assert result.replicates[replicate, column] == pytest.approx(weighted / total)
    assert result.value[0] == pytest.approx(values[:, 0] @ pair_weights(users, groups))


def test_crossed_variance_equals_the_sum_over_rows_that_share_something():
    rng = np.random.default_rng(2)
    users, items, _ = simulate(rng, n_users=8, n_items=7, pairs_a_user=5, items_a_pair=3)
    bootstrap = CrossedBootstrap(users, items)
    residuals = rng.normal(size=(len(users), 1))
    item_sets = [set(row) - {-1} for row in bootstrap.items]
    total = sum(
        residuals[p, 0] * residuals[q, 0]
        for p in range(len(users))
        for q in range(len(users))
        if users[p] == users[q] or item_sets[p] & item_sets[q]
    )
    sums = {"user": 0.0, "item": 0.0, "both": 0.0}
    for (kind, sign), matrix in bootstrap._sharing_matrices():
        sums[kind] += sign * np.square(matrix @ residuals).sum()
    assert sums["user"] + sums["item"] - sums["both"] == pytest.approx(total)


@pytest.mark.parametrize(
    "setting",
    [
        {"user_effect": 0.3, "item_effect": 0.3, "pairs_a_user": 20},
        {"user_effect": 0.0, "item_effect": 0.0},
        {"user_effect": 0.3, "item_effect": 0.2, "items_a_pair": 2, "n_users": 100},
        {"user_effect": 0.1, "item_effect": 0.4, "n_items": 15},
    ],
)
def test_intervals_cover_the_truth(setting):
    covered, users_only = [], []
    for run in range(200):
        users, items, values = simulate(np.random.default_rng(run), **setting)
        for hits, shared in ((covered, items), (users_only, np.full_like(items, -1))):
            result = CrossedBootstrap(users, shared, n_replicates=300, seed=run).estimate(values[:, None])
            hits.append(result.low[0] <= 0 <= result.high[0])
    # 200 runs of an exact 95 % interval stay within .91 and .985 in 99 of 100 times.
    assert 0.90 <= np.mean(covered) <= 0.99
    if setting["item_effect"] >= 0.3:
        assert np.mean(users_only) < 0.85, "resampling users alone must be seen to be too sure"


def test_plain_pigeonhole_is_too_wide_where_users_answer_few_pairs():
    users, items, values = simulate(np.random.default_rng(0), n_users=200, pairs_a_user=4, n_items=100, items_a_pair=2)
    width = []
    for rescale in (False, True):
        result = CrossedBootstrap(users, items, n_replicates=400, rescale=rescale).estimate(values[:, None])
        width.append(result.high[0] - result.low[0])
    assert width[1] < 0.75 * width[0]


def test_paired_difference_of_identical_methods_is_exactly_zero():
    users, items, values = simulate(np.random.default_rng(0), items_a_pair=2)
    seeds = np.stack([values, values + 1, values * 2], axis=1)[:, None, :]
    result = CrossedBootstrap(users, items, n_replicates=100).estimate(seeds - seeds.copy())
    assert (result.value[0], result.low[0], result.high[0]) == (0.0, 0.0, 0.0)


def test_pairing_narrows_a_difference():
    rng = np.random.default_rng(0)
    users, items, values = simulate(rng, user_effect=1.0)
    other = values + 0.1 + rng.normal(0, 0.1, len(values))
    result = CrossedBootstrap(users, items).estimate(np.stack([values, other, other - values], axis=1))
    width = result.high - result.low
    assert width[2] < 0.2 * width[0]
    assert result.value[2] == pytest.approx(result.value[1] - result.value[0])
    assert result.low[2] < 0.1 < result.high[2]


def test_seeds_widen_the_interval_and_the_draws_do_not_depend_on_the_columns():
    rng = np.random.default_rng(0)
    users, items, values = simulate(rng, noise=0.1, user_effect=0.01, item_effect=0.01)
    same, apart = (values[:, None, None] + spread * np.array([-1.0, 0.0, 1.0]) for spread in (0.0, 0.5))
    bootstrap = CrossedBootstrap(users, items)
    narrow, wide = bootstrap.estimate(same), bootstrap.estimate(apart)
    assert wide.value[0] == pytest.approx(narrow.value[0])
    assert wide.high[0] - wide.low[0] > 5 * (narrow.high[0] - narrow.low[0])
    both = bootstrap.estimate(np.concatenate([same, apart], axis=1))
    assert both.low == pytest.approx(np.concatenate([narrow.low, wide.low]))


def test_columns_in_parts_are_the_columns_at_once(monkeypatch):
    users, items, values = simulate(np.random.default_rng(0), items_a_pair=2)
    columns = np.stack([values, values * 2, values**2, np.where(users == 3, np.nan, values), -values], axis=1)
    whole = CrossedBootstrap(users, items, n_replicates=40).estimate(columns)
    monkeypatch.setattr(crossed, "_VALUES_IN_MEMORY", 2 * len(users))
    parts = CrossedBootstrap(users, items, n_replicates=40).estimate(columns)
    for name in ("value", "low", "high", "n_users", "n_pairs", "replicates"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def test_columns_made_when_asked_for_are_the_columns_at_once(monkeypatch):
    users, items, values = simulate(np.random.default_rng(0), items_a_pair=2)
    array = np.stack([values, np.where(users < 9, np.nan, values**2), values * np.nan], axis=1)
    array = np.stack([array, array + 1], axis=2)
    groups = users % 3
    whole = CrossedBootstrap(users, items, groups=groups, n_replicates=40).estimate(array)
    monkeypatch.setattr(crossed, "_VALUES_IN_MEMORY", 300)
    asked = []

    def column(c):
        return lambda rows: asked.append(rows) or array[rows, c]

    made = CrossedBootstrap(users, items, groups=groups, n_replicates=40).estimate([column(c) for c in range(3)])
    assert len({(rows.start, rows.stop) for rows in asked}) > 10, "a piece of the rows at a time"
    for name in ("value", "low", "high", "n_users", "n_pairs", "replicates"):
        assert getattr(made, name) == pytest.approx(getattr(whole, name), nan_ok=True)


def test_a_bootstrap_weighs_the_pairs_that_are_present():
    users, items, _ = simulate(np.random.default_rng(0))
    groups, present = users % 2, np.arange(len(users)) % 3 > 0
    weights = CrossedBootstrap(users, items, groups=groups).pair_weights(present)
    assert weights[present] == pytest.approx(pair_weights(users[present], groups[present]))
    assert not weights[~present].any()


def test_result_does_not_depend_on_names_or_on_the_memory_allowed(monkeypatch):
    users, items, values = simulate(np.random.default_rng(0), items_a_pair=2)
    expected = CrossedBootstrap(users, items, n_replicates=64).estimate(values[:, None])
    monkeypatch.setattr(crossed, "_WEIGHTS_IN_MEMORY", 5000)
    named = CrossedBootstrap(np.array([f"u{u:04d}" for u in users]), items + 1000, n_replicates=64)
    assert named.estimate(values[:, None]).replicates == pytest.approx(expected.replicates)


@pytest.mark.parametrize(
    "users, items", [([0], [0]), ([0, 0], [0, 1]), ([0, 1], [0, 0]), ([0, 1, 2], [-1, -1, -1]), ([], [])]
)
def test_too_little_data_has_a_value_and_says_that_there_is_no_interval(users, items):
    users, items = np.array(users, dtype=int), np.array(items, dtype=int).reshape(-1, 1)
    result = CrossedBootstrap(users, items, n_replicates=50).estimate(np.ones((len(users), 1))).as_dict(0)
    assert result["value"] == (1.0 if len(users) else None)
    assert result["n_users"] == len(set(users.tolist()))
    if result["n_users"] < 2:
        assert result["ci95"] is None
    else:
        assert result["ci95"] == pytest.approx([1.0, 1.0])


def test_a_column_without_any_pair_is_missing_not_zero():
    users, items, values = simulate(np.random.default_rng(0))
    result = CrossedBootstrap(users, items, n_replicates=20).estimate(np.stack([values, values * np.nan], axis=1))
    assert result.as_dict(1) == {"value": None, "ci95": None, "n_users": 0, "n_pairs": 0}
    assert result.as_dict(0)["n_pairs"] == len(values)


@pytest.mark.slow
def test_a_hundred_thousand_pairs_take_little_memory():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 2000, 100_000), rng.integers(0, 500, (100_000, 2))
    values = rng.normal(size=(100_000, 4))
    tracemalloc.start()
    CrossedBootstrap(users, items, n_replicates=1000).estimate(values)
    assert tracemalloc.get_traced_memory()[1] < 500e6
    tracemalloc.stop()
