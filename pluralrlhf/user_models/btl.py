"""Bradley-Terry: one reward for everybody, the baseline that personalisation has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserModel, UserState, mlp
from .settings import check_sizes


@dataclass
class BTLConfig:
    """Settings of `btl`.

    Args:
        head: `linear` (r = w.e, as TRL's `RewardTrainer`) or `mlp`.
        hidden: Width of the hidden layers of `mlp`.
        layers: Number of hidden layers of `mlp`.
    """

    head: Literal["linear", "mlp"] = "mlp"
    hidden: int = 256
    layers: int = 2

    def __post_init__(self):
        check_sizes(self, "btl", hidden=1, layers=0)
        if self.head not in ("linear", "mlp"):
            raise ConfigError(f"`head` of `btl` is {self.head!r}; it must be 'linear' or 'mlp'.")


class BTL(UserModel):
    """Reward without a user: r(x, y) = f(e(x, y)); the context is ignored.

    References:
        - Bradley and Terry 1952; Christiano et al. 2017, https://arxiv.org/abs/1706.03741

    Inputs:
        | features | state | output |
        |---|---|---|
        | (B, d) | B empty states | (B,) |

    Relations:
        - With a linear head and a trainable decoder it is TRL's `RewardTrainer`, loss for loss.
    """

    name = "btl"
    config_class = BTLConfig
    uses_context = False

    def __init__(self, feature_dim: int, config: BTLConfig):
        super().__init__(feature_dim, config)
        if config.head == "linear":
            self.head = nn.Linear(feature_dim, 1, bias=False)
        else:
            self.head = mlp([feature_dim] + [config.hidden] * config.layers + [1])

    @property
    def token_head(self) -> nn.Linear | None:
        return self.head if self.config.head == "linear" else None

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        return UserState(self.name, {"none": context_features.new_zeros(len(context_index), 0)})

    def score(self, features: Tensor, state: UserState) -> Tensor:
        return self.head(features).squeeze(-1)

    def score_matrix(self, features: Tensor, state: UserState, max_elements: int = 1 << 22) -> Tensor:
        return torch.broadcast_to(self.head(features).squeeze(-1), (len(state), len(features)))
