"""What a user model takes from the training pairs before its first step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .pair_data import PairData

# What a start is fitted to: enough for the covariance of a population, and a bound on time and memory.
_USERS, _PAIRS_PER_USER = 1000, 60
_BLOCK = 8192


def prepare(pairs: PairData, rows: np.ndarray) -> None:
    """Standardises the features, and makes the `warm_start` where they are frozen, by the training pairs `rows`.

    A user model that has been trained already keeps what it has.
    """
    user_model = pairs.model.user_model
    trained = bool(user_model.feature_mean.any())
    if user_model.token_head is None and not trained:
        user_model.set_standardization(*standardization(pairs, rows))
    if pairs.frozen and user_model.warm_starts():
        if not trained:
            some = rows[pairs.history.sample(rows, users=_USERS, pairs_per_user=_PAIRS_PER_USER)]
            users = torch.from_numpy(pairs.history.user[some]).to(user_model.feature_scale.device)
            user_model.warm_start(differences(pairs, some), users)
        user_model.hold_start()


def standardization(pairs: PairData, rows: np.ndarray, n_encoded: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (d,) each, of the raw features over both responses of these pairs.

    A backbone is asked about `n_encoded` of the pairs as it is before training: a user model that is fed raw states
    ignores the context for hundreds of steps.
    """
    total, squares, n = 0.0, 0.0, 0
    if not pairs.frozen:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:n_encoded])
    block = _BLOCK if pairs.frozen else 16
    for start in range(0, len(rows), block):
        some = rows[start : start + block]
        values = (pairs.features(some) if pairs.frozen else pairs.encoded(some)).astype(np.float64)
        values = values.reshape(-1, values.shape[-1])
        total, squares, n = total + values.sum(0), squares + (values**2).sum(0), n + len(values)
    mean = total / n
    scale = np.sqrt(np.maximum(squares / n - mean**2, 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(scale).float()


def differences(pairs: PairData, rows: np.ndarray) -> Tensor:
    """(n, d) standardised features of these pairs, chosen minus rejected, on the user model's device."""
    scale = pairs.model.user_model.feature_scale
    out = torch.empty(len(rows), pairs.model.config.feature_dim)
    for start in range(0, len(rows), _BLOCK):
        features = torch.from_numpy(pairs.features(rows[start : start + _BLOCK]))
        out[start : start + _BLOCK] = (features[:, 0] - features[:, 1]) / scale.cpu()
    return out.to(scale.device)
