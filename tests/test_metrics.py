"""Scores by user, losses and calibration: against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from pluralrlhf import metrics
from pluralrlhf.metrics import item_codes, pair_weights


def test_accuracy_is_the_mean_over_users_and_ties_count_half():
    margin = np.array([1.0, -1.0, 0.0, 2.0])
    assert metrics.accuracy(margin, np.array(["a", "b", "b", "b"])) == pytest.approx((1 + 0.5) / 2)
    assert metrics.correct(np.array([0.0, np.nan]))[0] == 0.5
    assert np.isnan(metrics.correct(np.array([np.nan])))[0]


def test_losses_match_their_definitions():
    p = np.array([0.0, 0.25, 0.5, 1.0])
    assert metrics.log_loss(p)[1:] == pytest.approx([np.log(4), np.log(2), 0])
    assert 80 < metrics.log_loss(p)[0] < 100, "a probability of 0 is a large loss, not an infinite one"
    assert metrics.brier(p) == pytest.approx([1, 0.5625, 0.25, 0])
    found = metrics.summarize(np.array([0.0, 2.0]), np.array(["a", "b"]))
    assert found["log_loss"] == pytest.approx((np.log(2) + np.log1p(np.exp(-2))) / 2)


def test_calibration_error_against_a_loop_over_bins():
    rng = np.random.default_rng(0)
    probability, users = rng.random(500), rng.integers(0, 20, 500)
    weights = pair_weights(users)
    confidence = np.maximum(probability, 1 - probability)
    expected = 0.0
    for low in np.arange(0.5, 1.0, 0.05):
        rows = (confidence >= low) & (confidence < low + 0.05)
        expected += abs((weights[rows] * (confidence[rows] - (probability[rows] > 0.5))).sum())
    assert metrics.ece(probability, users) == pytest.approx(expected)


def test_a_calibrated_model_has_no_calibration_error_and_an_overconfident_one_has():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 50_000)
    margin = np.where(rng.random(len(true)) < 1 / (1 + np.exp(-true)), true, -true)
    users = np.arange(len(true)) % 100
    assert metrics.summarize(margin, users)["ece"] < 0.01
    assert metrics.summarize(5 * margin, users)["ece"] > 0.1


def test_folds_count_the_same():
    users, groups = np.array([0, 0, 1, 0]), np.array([0, 0, 0, 1])
    assert pair_weights(users, groups) == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 2])


def test_item_codes_are_sorted_distinct_and_padded():
    codes = item_codes([["b", "a"], ["a"], ["c", "c"], []])
    assert codes.tolist() == [[1, 0], [0, -1], [2, -1], [-1, -1]]
