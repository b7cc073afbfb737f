"""Fast weights (P-TTT): the context is written into the reward's last linear map by a sum of outer products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserState, gather_sum, mlp
from .linear import LinearUserModel, feature_map
from .settings import check_sizes


@dataclass
class FastWeightsConfig:
    """Settings of `fast_weights`.

    Args:
        dim: q, size of the keys.
        hidden: Width of the hidden layers of r0 and of the keys' MLP.
        layers: Number of hidden layers of the keys' MLP.
        reduction: `sum` (the published form: the update grows with k) or `mean`.
        eta: First value of the step size; it is learned, as the published W_value v_r is.
    """

    dim: int = 32
    hidden: int = 256
    layers: int = 2
    reduction: Literal["sum", "mean"] = "sum"
    eta: float = 0.5

    def __post_init__(self):
        check_sizes(self, "fast_weights", dim=1, hidden=1, layers=0)
        if not math.isfinite(self.eta):
            raise ConfigError(f"`eta` of `fast_weights` is {self.eta}; it must be a finite number.")
        if self.reduction not in ("sum", "mean"):
            raise ConfigError(f"`reduction` of `fast_weights` is {self.reduction!r}; it must be 'sum' or 'mean'.")


class FastWeights(LinearUserModel):
    r"""The head-only form of personalised test-time training: one additive update per labelled pair, no optimisation.

    With key k(e) and slow reward r0 = v_r . W_0 k, the published update :math:`W_u = W_0 + \eta \sum_i v (k_i^+ -
    k_i^-)^T`, v = W_value v_r, changes the reward by

    .. math:: r(x, y \mid u) = r_0(e) + \eta\, (v_r \cdot v) \sum_i (k_i^+ - k_i^-) \cdot k(e),

    in which only the scalar :math:`\eta\, v_r \cdot v` matters: it is learned, divided by q. Evidence adds up, and
    reversing every label of the context negates the update and the change of every margin exactly. r0 has an MLP of
    its own.

    Args:
        feature_dim: d.
        config: `FastWeightsConfig`.

    References:
        - Wang et al. 2026, Using context is not enough (P-TTT)
        - Schlag, Irie and Schmidhuber 2021, https://arxiv.org/abs/2102.11174

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `weights` (B, q) | (B, d) | (B,) |

    Relations:
        - `p_ttt` has the fast weights in a trained backbone's layers.
        - The first gradient step of `bayes_head`, with r0 left out of the likelihood.
        - Linear attention of the target over the context, values +1 and -1.
    """

    name = "fast_weights"
    config_class = FastWeightsConfig

    def __init__(self, feature_dim: int, config: FastWeightsConfig):
        super().__init__(feature_dim, config)
        self.base = mlp([feature_dim, config.hidden, config.hidden, 1])
        self.map = feature_map(feature_dim, config.hidden, config.layers, config.dim)
        self.eta = nn.Parameter(torch.tensor(float(config.eta)))

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        keys = self.basis(context_features.flatten(0, 1)).view(len(context_features), 2, self.config.dim)
        update = gather_sum(keys[:, 0] - keys[:, 1], context_index, context_mask)
        if self.config.reduction == "mean":
            update = update / context_mask.sum(1, keepdim=True).clamp(min=1)
        return UserState(self.name, {"weights": self.eta / self.config.dim * update})

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> None:
        # An update is a sum over pairs that exist; there is no distribution to draw it from.
        return None
