"""From rows to `results.json`: every metric of a method with its interval, for every split and number of context pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.history import stable_hash
from ..metrics import brier, calibration_gap, calibration_signs, correct, log_loss
from .bootstrap import Column, CrossedBootstrap, Estimate
from .controls import OWN, RANDOM_STATE
from .split_scores import SplitScores

ATYPICAL_SHARE = 0.1
MIN_USERS_FOR_ATYPICAL = 10
POWER_FACTOR = 1.959964 + 0.841621
"""An effect of so many standard errors is found (two-sided 5 %) four times in five."""

DEFINITIONS = {
    "accuracy": "Share of a user's pairs ranked as the user ranked them (a tie counts 1/2), mean over users.",
    "gain": "Accuracy minus the same model's accuracy without any context (k = 0), on the same pairs.",
    "gain_over_btl": "Accuracy minus the accuracy of a model without users, on the same pairs.",
    "atypical_accuracy": "Accuracy for the tenth of users whom the model without users predicts worst on the pairs shown "
    "as their context.",
    "agreed_accuracy": "Accuracy on pairs that nearly all users judge alike: what personalisation may cost.",
    "log_loss": "Mean of -log p(what the user chose), in nats.",
    "brier": "Mean squared distance of p(what the user chose) from 1.",
    "ece": "Expected calibration error: |confidence - accuracy| over 10 bins of confidence.",
    "flip_rate": "Share of pairs whose prediction changes when every label in the context is turned round. Below 5 % the "
    "labels are not used; higher is not better.",
    "flipped_accuracy": "Accuracy with every label in the context turned round.",
    "wrong_user_accuracy": "Accuracy with another user's context.",
    "gain_over_wrong_user": "Accuracy with the own context minus accuracy with another user's.",
    "other_type_accuracy": "Accuracy with the context of a user of another known type.",
    "relabelled_accuracy": "Accuracy with the own context pairs as other users judged them, where others did.",
    "empty_context_accuracy": "Accuracy with a context whose places are all empty; it must equal k = 0.",
    "random_state_accuracy": "Accuracy under the state of a random, made-up user.",
    "coin_flip_accuracy": "Accuracy when the labels in the context are thrown by a coin.",
    "permutation_max_diff": "Largest change of a margin when the context is put in another order.",
    "share_of_attainable": "Gain over the model without users, as a share of the ceiling's gain over it.",
}
# Control to the name of its accuracy.
_CONTROL_ACCURACY = {
    "flipped": "flipped_accuracy",
    "wrong_user": "wrong_user_accuracy",
    "other_type": "other_type_accuracy",
    "relabelled": "relabelled_accuracy",
    "empty_context": "empty_context_accuracy",
    RANDOM_STATE: "random_state_accuracy",
    "coin_flip": "coin_flip_accuracy",
}
# Differences of accuracies, for which the smallest effect that could have been found is told.
_DIFFERENCES = ("gain", "gain_over_btl", "gain_over_wrong_user")


def bootstrap_of(scores: SplitScores, n_replicates: int = 1000, seed: int = 0) -> CrossedBootstrap:
    """The bootstrap over the users and items of a split; methods that share one share its draws and its tables."""
    return CrossedBootstrap(scores.users, scores.items, groups=scores.groups, n_replicates=n_replicates, seed=seed)


def method_results(
    scores: SplitScores,
    method: str,
    *,
    baseline: str | None = None,
    ceiling: str | None = None,
    n_replicates: int = 1000,
    seed: int = 0,
    bootstrap: CrossedBootstrap | None = None,
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Metrics and controls of one method on one split.

    Args:
        scores: Rows of the split, of the method, the baseline and the ceiling.
        method: Name of the method.
        baseline: Method without users to compare with, if there is one.
        ceiling: Method that knows what there is to know, if there is one.
        n_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        bootstrap: `bootstrap_of` these pairs, where it is at hand; it decides on replicates and seed.

    Returns:
        `{"K": {METRIC: {"value", "ci95", "n_users", "n_pairs"}}}` of the metrics, and the same of the controls. A metric
        that does not exist here (no baseline, fewer than 10 users ...) is left out; `accuracy` also has `n_items`.
    """
    bootstrap = bootstrap or bootstrap_of(scores, n_replicates, seed)
    atypical = atypical_users(scores, baseline)
    of_metrics, columns = {}, {}
    for k in scores.sizes(method):
        found = _metric_columns(scores, method, k, baseline, atypical, bootstrap)
        of_metrics[k] = [*found, "share_of_attainable"]
        found |= _control_columns(scores, method, k)
        if ceiling not in (None, method) and baseline not in (None, method) and scores.own(ceiling, k) is not None:
            found["ceiling_gain"] = difference(scores, method, ceiling, baseline, k)
        columns |= {(k, name): column for name, column in found.items()}
    # All numbers of context pairs at once: what takes time are the pairs' weights in the replicates.
    estimate, place = bootstrap.estimate(list(columns.values())), {key: at for at, key in enumerate(columns)}
    metrics, controls = {}, {}
    n_items = len(np.unique(scores.items[scores.items >= 0]))
    for k, names in of_metrics.items():
        found = {name: _metric(estimate, at, name) for (size, name), at in place.items() if size == k}
        if "ceiling_gain" in found:
            del found["ceiling_gain"]
            share = _share(estimate, place.get((k, "gain_over_btl")), place[k, "ceiling_gain"])
            if share is not None:
                found["share_of_attainable"] = share
        metrics[str(k)] = {name: found[name] for name in names if name in found and found[name]["n_pairs"]}
        if "accuracy" in metrics[str(k)]:
            metrics[str(k)]["accuracy"]["n_items"] = n_items
        if k:
            controls[str(k)] = {name: value for name, value in found.items() if name not in names and value["n_pairs"]}
            permuted = scores.margin.get((method, k, "permuted"))
            if permuted is not None:
                controls[str(k)]["permutation_max_diff"] = _permutation(scores, permuted, scores.own(method, k))
    return metrics, {k: values for k, values in controls.items() if values}


def atypical_users(scores: SplitScores, baseline: str | None) -> np.ndarray | None:
    """(n users,) the tenth of users whom the baseline predicts worst on their context pairs; None if that is unknown."""
    counts = scores.on_context.get(baseline) if baseline is not None else None
    if counts is None:
        return None
    known = np.flatnonzero(counts[:, 1] > 0)
    if len(known) < MIN_USERS_FOR_ATYPICAL:
        return None
    share = counts[known, 0] / counts[known, 1]
    tie = np.array([stable_hash(scores.user_ids[user]) for user in known], dtype=np.uint64)
    worst = known[np.lexsort((tie, share))][: int(np.ceil(ATYPICAL_SHARE * len(known)))]
    out = np.zeros(len(scores.user_ids), dtype=bool)
    out[worst] = True
    return out


def _metric_columns(scores, method, k, baseline, atypical, bootstrap) -> dict[str, Column]:
    hit, probability = _hit(scores.margin[method, k, OWN]), scores.probability[method, k]
    columns = {"accuracy": hit}
    if (method, 0, OWN) in scores.margin and k:
        columns["gain"] = _minus(hit, _hit(scores.margin[method, 0, OWN]))
    if baseline not in (None, method) and scores.own(baseline, k) is not None:
        columns["gain_over_btl"] = difference(scores, method, method, baseline, k)
    if atypical is not None:
        columns["atypical_accuracy"] = _only(atypical[scores.users], hit)
    if scores.agreed.any():
        columns["agreed_accuracy"] = _only(scores.agreed, hit)
    columns["log_loss"] = lambda rows: log_loss(probability[rows])
    columns["brier"] = lambda rows: brier(probability[rows])
    signs = [calibration_signs(column, bootstrap.pair_weights(np.isfinite(column))) for column in probability.T]
    columns["ece"] = lambda rows: np.stack(
        [calibration_gap(column[rows], sign) for column, sign in zip(probability.T, signs)], axis=1
    )
    return columns


def _control_columns(scores, method, k) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    if not k:
        return columns
    hit = _hit(scores.margin[method, k, OWN])
    flipped = scores.margin.get((method, k, "flipped"))
    if flipped is not None:
        columns["flip_rate"] = _differs(hit, _hit(flipped))
    for control, name in _CONTROL_ACCURACY.items():
        margin = scores.margin.get((method, k, control))
        if margin is not None:
            columns[name] = _hit(margin)
    if "wrong_user_accuracy" in columns:
        columns["gain_over_wrong_user"] = _minus(hit, columns["wrong_user_accuracy"])
    return columns


def difference(scores: SplitScores, method: str, of: str, baseline: str, k: int) -> Column:
    """Right answers of `of` minus the baseline's, (P, seeds of `method`).

    Seed by seed where a method has the same seeds as `method`, with the mean over its seeds where it has others.
    """
    mine = len(scores.seeds[method])

    def hits(name: str) -> Column:
        hit = _hit(scores.own(name, k))
        same = scores.seeds[name] == scores.seeds[method]
        return hit if same else lambda rows: hit(rows).mean(axis=1, keepdims=True)

    both = _minus(hits(of), hits(baseline))

    def column(rows: slice) -> np.ndarray:
        found = both(rows)
        return np.broadcast_to(found, (len(found), mine))

    return column


# A column is made for the rows that are asked for, so that no more than a piece of each is in memory.


def _hit(margin: np.ndarray) -> Column:
    return lambda rows: correct(margin[rows])


def _minus(first: Column, second: Column) -> Column:
    return lambda rows: first(rows) - second(rows)


def _differs(first: Column, second: Column) -> Column:
    def column(rows: slice) -> np.ndarray:
        other = second(rows)
        return np.where(np.isnan(other), np.nan, first(rows) != other)

    return column


def _only(kept: np.ndarray, column: Column) -> Column:
    return lambda rows: np.where(kept[rows][:, None], column(rows), np.nan)


def _metric(estimate: Estimate, place: int, name: str) -> dict[str, Any]:
    found = estimate.as_dict(place)
    if found["ci95"]:
        # Replicates are spread symmetrically about the value and may pass the ends of the scale.
        lowest = -1.0 if name in _DIFFERENCES else 0.0
        highest = float("inf") if name == "log_loss" else 1.0
        found["ci95"] = [min(max(lowest, bound), highest) for bound in found["ci95"]]
    if name in _DIFFERENCES and found["ci95"]:
        half = (found["ci95"][1] - found["ci95"][0]) / 2
        if half > 0:  # differences that are all the same say nothing about what could have been seen
            found["smallest_detectable"] = half / 1.959964 * POWER_FACTOR
    return found


def _share(estimate: Estimate, part_at: int | None, whole_at: int) -> dict[str, Any] | None:
    """A ratio of two gains, or None where the whole is not clearly above 0."""
    if part_at is None or not estimate.low[whole_at] > 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = estimate.replicates[:, part_at] / estimate.replicates[:, whole_at]
    low, high = np.nanpercentile(ratio, [2.5, 97.5])
    found = estimate.as_dict(part_at)
    return {
        **found,
        "value": float(estimate.value[part_at] / estimate.value[whole_at]),
        "ci95": [float(low), float(high)],
    }


def _permutation(scores: SplitScores, permuted: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    difference = np.abs(permuted - own)
    known = np.isfinite(difference).all(axis=1)
    return {
        "value": float(difference[known].max()) if known.any() else None,
        "ci95": None,
        "n_users": len(np.unique(scores.users[known])),
        "n_pairs": int(known.sum()),
    }
