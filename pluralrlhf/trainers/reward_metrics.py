"""What an evaluation during training says of a reward model: means over users, for every number of context pairs."""

from __future__ import annotations

import numpy as np

from ..metrics import user_mean
from .strength import fit_share, shrink


def reward_metrics(
    margins: np.ndarray,
    log_odds: np.ndarray,
    sizes: np.ndarray,
    rows: np.ndarray,
    users: np.ndarray,
    strength: float | None = None,
) -> dict[str, float]:
    """Accuracy and log loss for every number of context pairs (`accuracy_k8` ...) and their means over those.

    Args:
        margins: (N,) rewards of the chosen minus those of the rejected response, of every target at every number of
            context pairs.
        log_odds: (N,) of the probability that the model gives to the choice.
        sizes: (N,) numbers of context pairs.
        rows: (N,) which target it is.
        users: (N,) whose target it is.
        strength: The share of a context's effect that the model applies, `None` where it has none. Of a model that
            applies all, the metrics are those of the share which fits these choices best; it is the metric `strength`.
    """
    metrics: dict[str, float] = {}
    if strength is not None:
        metrics["strength"] = strength
        if strength == 1:
            metrics["strength"] = share = fit_share(margins, sizes, rows, users)
            margins, log_odds = (shrink(values, sizes, rows, share) for values in (margins, log_odds))
    correct = (margins > 0) + 0.5 * (margins == 0)
    log_loss = np.logaddexp(0, -log_odds)
    for k in np.unique(sizes):
        these = sizes == k
        metrics[f"accuracy_k{k}"] = user_mean(correct[these], users[these])
        metrics[f"log_loss_k{k}"] = user_mean(log_loss[these], users[these])
    for name in ("accuracy", "log_loss"):
        metrics[name] = float(np.mean([metrics[f"{name}_k{k}"] for k in np.unique(sizes)]))
    return metrics
