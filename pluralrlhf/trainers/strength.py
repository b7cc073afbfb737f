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


def shrink(margins: np.ndarray, sizes: np.ndarray, rows: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, float]:
    """Evaluation margins as they are once the share that fits them best is applied, and this share.

    With fewer than ten users the share is drawn towards 1, in proportion.

    Args:
        margins: (N,) of every target at every number of context pairs.
        sizes: (N,) numbers of context pairs.
        rows: (N,) which target it is.
        users: (N,) whose target it is.

    Returns:
        Margins unchanged and 1 where there is no k = 0 to compare with.
    """
    empty, shown = sizes == 0, sizes > 0
    if not empty.any() or not shown.any():
        return margins, 1.0
    order = np.argsort(rows[empty])
    without = margins[empty][order][np.searchsorted(rows[empty][order], rows[shown])]
    # What one or two users bear out is chance: as far as users are missing to a few, all of it is applied.
    few = min(1.0, len(np.unique(users[shown])) / _ENOUGH_USERS)
    share = 1 - few * (1 - fit_strength(without, margins[shown], users[shown]))
    shrunk = margins.copy()
    shrunk[shown] = without + share * (margins[shown] - without)
    return shrunk, share
