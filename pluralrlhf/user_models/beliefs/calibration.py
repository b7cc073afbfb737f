"""Calibration of beliefs over types."""

from __future__ import annotations

import numpy as np


def expected_calibration_error(beliefs: np.ndarray, types: np.ndarray, n_bins: int = 10) -> float:
    """Gap between confidence and accuracy of the most probable type, weighted over `n_bins` equal bins of confidence.

    Args:
        beliefs: (N, U).
        types: (N,) the true types.
    """
    confidence, right = beliefs.max(axis=1), beliefs.argmax(axis=1) == np.asarray(types)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(n_bins)]
    return float(sum(gaps) / len(beliefs))


def fit_temperature(logits: np.ndarray, types: np.ndarray) -> float:
    """The temperature in [0.2, 5] under which softmax(logits / temperature) gives `types` the highest likelihood."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
        return float((log_sum - scaled[np.arange(len(types)), types]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.2), np.log(5)), method="bounded").x))
