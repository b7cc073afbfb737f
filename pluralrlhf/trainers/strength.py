"""How much of what a context teaches holds of users whom training never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ..metrics import pair_weights

_ENOUGH_USERS = 10


def fit_strength(without: np.ndarray, with_context: np.ndarray, users: np.ndarray) -> float:
    r"""The share of the contexts' effect that predicts held-out users' choices best, in [0, 1].

    Fits :math:`\sigma(a\, m_0 + b\, m_k)` with :math:`a, b \ge 0` to the choices by maximum likelihood, users counting
    the same: a convex problem. The share is b / (a + b); the common scale takes up how sure the model is, which accuracy
    does not depend on.

    Args:
        without, with_context: (P,) margins of the same pairs, k = 0 and k > 0.
        users: (P,) whose pairs they are.

    Returns:
        The share; 1 where contexts change nothing, and where all of their effect predicts the choices as well, to within
        two thousandths of what the best share gains over chance.
    """
    if np.array_equal(without, with_context):
        return 1.0
    margins = np.stack([without, with_context], 1).astype(np.float64)
    weights = pair_weights(users)

    def loss(scales: np.ndarray) -> tuple[float, np.ndarray]:
        logit = margins @ scales
        return float(weights @ np.logaddexp(0, -logit)), -(weights * expit(-logit)) @ margins

    def fit(most: float | None) -> Any:
        return minimize(loss, x0=[0.0, 0.5], jac=True, method="L-BFGS-B", bounds=[(0, most), (0, None)])

    best, whole = fit(None), fit(0.0)
    if not best.x[1] > 0:
        return 0.0
    as_good = whole.fun - best.fun < 2e-3 * (np.log(2) - best.fun)
    return 1.0 if as_good else float(best.x[1] / best.x.sum())


def fit_share(margins: np.ndarray, sizes: np.ndarray, rows: np.ndarray, users: np.ndarray) -> float:
    """The share that fits the margins of an evaluation best, see `fit_strength`.

    With fewer than ten users it is drawn towards 1, in proportion.

    Args:
        margins: (N,) of every target at every number of context pairs.
        sizes: (N,) numbers of context pairs.
        rows: (N,) which target it is.
        users: (N,) whose target it is.

    Returns:
        The share; 1 where there is no k = 0 to compare with.
    """
    shown = sizes > 0
    if shown.all() or not shown.any():
        return 1.0
    # What one or two users bear out is chance: as far as users are missing to a few, all of it is applied.
    few = min(1.0, len(np.unique(users[shown])) / _ENOUGH_USERS)
    return 1 - few * (1 - fit_strength(_without(margins, sizes, rows), margins[shown], users[shown]))


def shrink(margins: np.ndarray, sizes: np.ndarray, rows: np.ndarray, share: float) -> np.ndarray:
    """(N,) evaluation margins as they are once so large a share of the contexts' effect is applied.

    Args:
        margins, sizes, rows: As for `fit_share`.
        share: In [0, 1].
    """
    if share == 1:
        return margins
    shown, shrunk = sizes > 0, margins.copy()
    without = _without(margins, sizes, rows)
    shrunk[shown] = without + share * (margins[shown] - without)
    return shrunk


def _without(margins: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The margin at k = 0 of each target with a context."""
    empty = sizes == 0
    order = np.argsort(rows[empty])
    return margins[empty][order][np.searchsorted(rows[empty][order], rows[~empty])]
