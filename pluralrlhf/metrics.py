"""What is measured on pairs: scores by user, calibration, codes of items. A leaf: numpy and scipy.

A *margin* is `reward(chosen) - reward(rejected)`, so that a positive one is a right answer. A *probability* is the one
given to what the user really chose: `sigmoid(margin)`, or a predictive probability where the model has a posterior.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

N_BINS = 10


def correct(margin: np.ndarray) -> np.ndarray:
    """1 where the margin is positive, 0 where it is negative, 1/2 for a tie, NaN where it is NaN."""
    margin = np.asarray(margin, dtype=np.float64)
    return np.where(np.isnan(margin), np.nan, (np.sign(margin) + 1) / 2)


def log_loss(probability: np.ndarray) -> np.ndarray:
    """-log p, in nats, for each pair; p counts as at least the smallest normal float32."""
    return -np.log(np.maximum(np.asarray(probability, dtype=np.float64), np.finfo(np.float32).tiny))


def brier(probability: np.ndarray) -> np.ndarray:
    """(1 - p)^2 for each pair."""
    return (1.0 - np.asarray(probability, dtype=np.float64)) ** 2


def pair_weights(users: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Weights (P,) that sum to 1 and make a weighted mean over pairs the mean over users of each user's mean.

    With `groups` (folds, say) it is the mean over groups of that, each group counting the same.
    """
    users = np.unique(np.asarray(users), return_inverse=True)[1].reshape(-1)
    groups = np.zeros_like(users) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    if not len(users):
        return np.zeros(0)
    cell, pairs_in_cell = np.unique(groups * (users.max() + 1) + users, return_inverse=True, return_counts=True)[1:]
    n_groups = groups.max() + 1
    group_of_cell = np.zeros(len(pairs_in_cell), dtype=np.int64)
    group_of_cell[cell] = groups
    users_in_group = np.bincount(group_of_cell, minlength=n_groups)
    return 1.0 / (n_groups * users_in_group[groups] * pairs_in_cell[cell])


def user_mean(values: np.ndarray, users: np.ndarray) -> float:
    """The mean over users of each user's mean; NaN if there is no pair."""
    values = np.asarray(values, dtype=np.float64)
    return float(values @ pair_weights(users)) if len(values) else float("nan")


def accuracy(margin: np.ndarray, users: np.ndarray) -> float:
    """The mean over users of the share of the user's pairs that are ranked right; a tie counts 1/2."""
    return user_mean(correct(margin), users)


def calibration_signs(probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(10,) sign of each bin's weighted sum of confidence - accuracy; pairs (P,) with NaN are left out."""
    gap, bins = _confidence_gap(np.asarray(probability, dtype=np.float64))
    return np.sign(np.bincount(bins, weights=np.where(np.isnan(gap), 0.0, weights * gap), minlength=N_BINS))


def calibration_gap(probability: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """(P,) values whose weighted mean is the expected calibration error (ECE).

    Predictions fall into 10 equal bins of confidence `max(p, 1 - p)` in [1/2, 1]; the error is the weighted sum over bins
    of |confidence - accuracy|. Written as a mean over pairs (each pair's gap times the sign of its bin's gap, see
    `calibration_signs`), it takes the same intervals as any other mean. NaN stays NaN.
    """
    gap, bins = _confidence_gap(np.asarray(probability, dtype=np.float64))
    return gap * signs[bins]


def _confidence_gap(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) confidence - accuracy, NaN where the probability is, and the bin of the confidence."""
    known = np.isfinite(probability)
    confidence = np.where(known, np.maximum(probability, 1 - probability), 0.5)
    # A tie is right half of the time and says so: confidence 1/2, no gap.
    gap = np.where(known, confidence - (np.sign(probability - 0.5) + 1) / 2, np.nan)
    return gap, np.minimum(((confidence - 0.5) * 2 * N_BINS).astype(np.int64), N_BINS - 1)


def ece(probability: np.ndarray, users: np.ndarray) -> float:
    """Expected calibration error with every user counting the same; see `calibration_gap`."""
    weights = pair_weights(users)
    return (
        float(calibration_gap(probability, calibration_signs(probability, weights)) @ weights)
        if len(weights)
        else float("nan")
    )


def summarize(margin: np.ndarray, users: np.ndarray, probability: np.ndarray | None = None) -> dict[str, float]:
    """`accuracy`, `log_loss`, `brier` and `ece` of pairs.

    Args:
        margin: (P,) reward of the chosen minus that of the rejected response.
        users: (P,) user ids or codes.
        probability: (P,) probability of the choice; `sigmoid(margin)` where not given.
    """
    probability = special.expit(np.asarray(margin, dtype=np.float64)) if probability is None else probability
    return {
        "accuracy": accuracy(margin, users),
        "log_loss": user_mean(log_loss(probability), users),
        "brier": user_mean(brier(probability), users),
        "ece": ece(probability, users),
    }


def item_codes(item_ids: Sequence[Sequence[str]]) -> np.ndarray:
    """Item ids of each pair as an int64 array (P, most items a pair has), largest first, no repeats, padded with -1."""
    lengths = np.fromiter((len(ids) for ids in item_ids), dtype=np.int64, count=len(item_ids))
    flat = np.unique([i for ids in item_ids for i in ids], return_inverse=True)[1].reshape(-1) if lengths.sum() else []
    return padded_codes(lengths, np.asarray(flat, dtype=np.int64))


def padded_codes(lengths: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """As `item_codes`, from the number of items of each pair (P,) and all their codes one after the other."""
    codes = np.full((len(lengths), max(1, int(lengths.max(initial=0)))), -1, dtype=np.int64)
    codes[np.arange(codes.shape[1]) < lengths[:, None]] = flat
    return distinct_sorted(codes)


def distinct_sorted(codes: np.ndarray) -> np.ndarray:
    """Codes (P, m), -1 padded, largest first and without repeats in each row."""
    codes = -np.sort(-codes, axis=1)
    repeated = np.zeros(codes.shape, dtype=bool)
    repeated[:, 1:] = (codes[:, 1:] == codes[:, :-1]) & (codes[:, 1:] >= 0)
    return -np.sort(-np.where(repeated, -1, codes), axis=1)
