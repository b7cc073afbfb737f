"""Does a model stand for all of its users: vote shares, gaps between groups, the price of personalising, collapse."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..metrics import correct
from .bootstrap import CrossedBootstrap, user_interval
from .predictions import Predictions

MIN_JUDGES = 10
MIN_GROUP = 15
MAX_GROUPS = 12


def vote_shares(found: Predictions, method: str, *, min_judges: int = MIN_JUDGES, seed: int = 0) -> dict[str, Any]:
    """Predicted against real vote shares (distributional pluralism).

    For each pair of responses that at least `min_judges` of the users judged, the real share who preferred the one, and
    the mean predicted probability of the same users. The same for each response: the share of its comparisons that it
    won. A model of the average user can match shares only by being unsure of everybody; log loss tells the two apart.

    Returns:
        For `pairs` and `responses`: `error` (mean absolute difference of the shares, with an interval over pairs or
        responses), `error_of_half` (of predicting 1/2), `chance_error` (what is expected of a model that knows every
        user's probabilities, from the chance in single votes alone), `correlation`, `n`, and the `points` themselves.
    """
    p = found.first_probability(method)
    known = np.isfinite(p)
    out = {"pairs": _shares(found.group[known], found.first[known], p[known], min_judges, seed)}
    own = found.probability[method][known]
    # Each comparison counts for the response that won it and for the one that lost it.
    response = found.response[known].T.reshape(-1)
    won = np.repeat([1.0, 0.0], known.sum())
    out["responses"] = _shares(response, won, np.concatenate([own, 1 - own]), min_judges, seed)
    return out


def _shares(key: np.ndarray, vote: np.ndarray, p: np.ndarray, least: int, seed: int) -> dict[str, Any]:
    code = np.unique(key, return_inverse=True)[1].reshape(-1)
    n = np.bincount(code)
    enough = n >= least
    if not enough.any():
        return {"n": 0}
    real, predicted = (np.bincount(code, values)[enough] / n[enough] for values in (vote, p))
    # Votes are coins of the predicted probabilities: the deviation of their mean, and its mean absolute value.
    spread = np.sqrt(np.bincount(code, p * (1 - p))[enough]) / n[enough]
    varies = len(real) > 2 and real.std() > 0 and predicted.std() > 0
    return {
        "n": int(enough.sum()),
        "error": _over_items(np.abs(predicted - real), seed),
        "error_of_half": float(np.abs(0.5 - real).mean()),
        "chance_error": float((np.sqrt(2 / np.pi) * spread).mean()),
        "correlation": float(np.corrcoef(real, predicted)[0, 1]) if varies else None,
        "points": np.stack([n[enough], real, predicted], axis=1).round(6).tolist(),
    }


def _over_items(values: np.ndarray, seed: int) -> dict[str, Any]:
    found = user_interval(values, seed)
    return {"value": found["value"], "ci95": found["ci95"], "n_items": found["n_users"]}


def user_accuracy(found: Predictions, method: str) -> np.ndarray:
    """(U,) accuracy of each user, NaN without predictions; users number `np.unique(found.user_ids)`."""
    margin = found.margin[method]
    known = np.isfinite(margin)
    n = np.bincount(found.user[known], minlength=found.user.max() + 1)
    with np.errstate(invalid="ignore"):
        return np.bincount(found.user[known], correct(margin[known]), len(n)) / np.where(n, n, np.nan)


def attributes_of(users: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """User id to attribute to value, for attributes that are a word or a truth value; numbers and lists are left out."""
    out = {}
    for user in users or ():
        values = json.loads(user["attributes"]) if user.get("attributes") else {}
        if isinstance(values, dict):
            out[user["user_id"]] = {k: str(v) for k, v in values.items() if isinstance(v, str | bool) and str(v)}
    return out


def demographic_gaps(
    found: Predictions,
    method: str,
    attributes: Mapping[str, Mapping[str, str]],
    *,
    baseline: str | None = None,
    min_users: int = MIN_GROUP,
    n_permutations: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Accuracy by group of users, for each attribute with two to twelve groups of at least `min_users`.

    Returns:
        Attribute to `groups` (value to accuracy with its interval, and `gain` over the baseline), `gap` (largest minus
        smallest accuracy), `gap_by_chance` (its 95th percentile when groups are drawn by lot among the same users: a gap
        below it shows nothing) and `p`, the share of such draws with as large a gap.
    """
    accuracy = user_accuracy(found, method)
    gain = accuracy - user_accuracy(found, baseline) if baseline and baseline != method else None
    ids = np.unique(found.user_ids).tolist()
    rng = np.random.default_rng(seed)
    out: dict[str, dict[str, Any]] = {}
    for name in sorted({name for values in attributes.values() for name in values}):
        value = np.array([attributes.get(user, {}).get(name, "") for user in ids], dtype=object)
        value[~np.isfinite(accuracy)] = ""
        kinds = [kind for kind in sorted(set(value.tolist()) - {""}) if (value == kind).sum() >= min_users]
        if not 2 <= len(kinds) <= MAX_GROUPS:
            continue
        rows = np.flatnonzero(np.isin(value, kinds))
        code = np.array([kinds.index(kind) for kind in value[rows]])
        drawn = np.array([_gap(accuracy[rows], rng.permutation(code)) for _ in range(n_permutations)])
        gap = _gap(accuracy[rows], code)
        out[name] = {
            "groups": {
                kind: {
                    "accuracy": user_interval(accuracy[value == kind], seed),
                    **({} if gain is None else {"gain": user_interval(gain[value == kind], seed)}),
                }
                for kind in kinds
            },
            "gap": gap,
            "gap_by_chance": float(np.percentile(drawn, 95)),
            "p": float((1 + (drawn >= gap).sum()) / (1 + n_permutations)),
        }
    return out


def _gap(values: np.ndarray, code: np.ndarray) -> float:
    means = np.bincount(code, values) / np.bincount(code)
    return float(means.max() - means.min())


def personalisation_tax(
    found: Predictions, method: str, baseline: str, items: np.ndarray, *, n_replicates: int = 1000, seed: int = 0
) -> dict[str, Any] | None:
    """Accuracy on pairs that nearly everyone agrees on, and its difference from the model without users, paired.

    Args:
        items: (P, m) item codes for the crossed bootstrap, see `metrics.item_codes`.

    Returns:
        `accuracy` and `difference` with intervals; `None` where users agree on nothing.
    """
    rows = found.agreed & np.isfinite(found.margin[method]) & np.isfinite(found.margin[baseline])
    if not rows.any():
        return None
    own, other = (correct(found.margin[name][rows]) for name in (method, baseline))
    bootstrap = CrossedBootstrap(found.user[rows], items[rows], n_replicates=n_replicates, seed=seed)
    estimate = bootstrap.estimate(np.stack([own, own - other], axis=1))
    return {"accuracy": estimate.as_dict(0), "difference": estimate.as_dict(1)}


def collapse(found: Predictions, method: str, states: np.ndarray | None = None) -> dict[str, Any]:
    """Signs that a model has stopped to look at its users.

    Returns:
        `user_share`: share of the margins' variance that lies between users who judged the same pair (0: everybody gets
        the same). With states (U, d): `active_units` (dimensions that vary over users by more than 0.005) and
        `effective_dimensions` (participation ratio of the principal components: 1 where users lie on a line).
    """
    p = found.first_probability(method)
    # Margins of one sign convention: those of the response with the smaller key.
    margin = np.where(found.first, found.margin[method], -found.margin[method])
    known = np.isfinite(p) & np.isfinite(margin)
    code, value = np.unique(found.group[known], return_inverse=True)[1].reshape(-1), margin[known]
    n = np.bincount(code)
    several = n[code] > 1
    out: dict[str, Any] = {"user_share": None, "n_pairs": int(several.sum())}
    if several.sum() > 2 and value[several].var() > 0:
        mean = np.bincount(code, value) / n
        # A variance within n users is (n - 1) / n of what it would be in the population.
        within = ((value - mean[code]) ** 2 * n[code] / np.maximum(n[code] - 1, 1))[several].mean()
        total = within + np.var(mean[n > 1])
        out["user_share"] = float(within / total) if total > 0 else 0.0
    if states is not None and len(states) > 2:
        states = np.asarray(states, dtype=np.float64)
        out["active_units"] = int((states.var(axis=0) > 0.005).sum())
        variance = np.linalg.svd(states - states.mean(axis=0), compute_uv=False) ** 2
        out["effective_dimensions"] = float(variance.sum() ** 2 / (variance**2).sum()) if variance.any() else 0.0
    return out
