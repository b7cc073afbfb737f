"""LoRe and PReF: a reward is a mixture of a few shared ones; a user is the weights of the mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserState
from .linear import LinearUserModel, feature_map, gaussian_draw, newton_posterior, simplex_posterior
from .settings import check_sizes


@dataclass
class LoReConfig:
    """Settings of `lore`.

    Args:
        rank: q, number of shared rewards.
        weights: `simplex` (LoRe: a softmax of logits) or `free` (PReF).
        basis: `linear` (the published form) or `mlp`.
        hidden, layers: Width and number of hidden layers of `mlp`.
        steps: Steps towards a user's weights, at least 2.
    """

    rank: int = 16
    weights: Literal["simplex", "free"] = "simplex"
    basis: Literal["linear", "mlp"] = "mlp"
    hidden: int = 256
    layers: int = 2
    steps: int = 6

    def __post_init__(self):
        check_sizes(self, "lore", rank=2 if self.weights == "simplex" else 1, hidden=1, layers=1, steps=2)
        if self.weights not in ("simplex", "free"):
            raise ConfigError(f"`weights` of `lore` is {self.weights!r}; it must be 'simplex' or 'free'.")
        if self.basis not in ("linear", "mlp"):
            raise ConfigError(f"`basis` of `lore` is {self.basis!r}; it must be 'linear' or 'mlp'.")


class LoRe(LinearUserModel):
    r"""Low-rank rewards: the same few rewards for everybody, mixed by each user's weights.

    .. math:: r(x, y \mid u) = w_u \cdot V(e), \qquad
        w_u = \mathrm{softmax}(a_u)\ \text{(LoRe) or}\ a_u\ \text{(PReF)}.

    The published methods fit the weights of each training user by gradient descent and those of a new user by a few
    regularised logistic steps with V fixed. Here every user is a new one: a_u is the mode of a Bayesian logistic
    regression of the context's labels with a learned Gaussian prior, in training as in use, and V and the prior are
    trained through it. The Laplace approximation gives the spread of the weights.

    Args:
        feature_dim: d.
        config: `LoReConfig`.

    References:
        - Bose et al. 2025, LoRe: Personalizing LLMs via Low-Rank Reward Modeling, https://arxiv.org/abs/2504.14439
        - Shenfeld et al. 2025, Language Model Personalization via Reward Factorization,
          https://arxiv.org/abs/2503.06358

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `weights` (B, q), `covariance` (B, q, q) | (B, d) | (B,) |

    Relations:
        - With free weights it is `bayes_head` without r0, whose part the prior mean takes.
        - `pal` with `form: A` is the same mixture with rewards -|f(e) - p_k|^2.
    """

    name = "lore"
    config_class = LoReConfig
    has_posterior = True

    def __init__(self, feature_dim: int, config: LoReConfig):
        super().__init__(feature_dim, config)
        self.base = None
        self.map = feature_map(feature_dim, config.hidden, config.layers if config.basis == "mlp" else 0, config.rank)
        # Free weights of 0 and a basis of both signs would be a saddle point: nothing to learn from but the noise.
        mean = torch.full((config.rank,), config.rank**-0.5) if config.weights == "free" else torch.zeros(config.rank)
        self.prior_mean = nn.Parameter(mean)
        # Wide on the simplex: a user may be one of the rewards alone.
        log_precision = 0.0 if config.weights == "free" else -1.0
        self.prior_log_precision = nn.Parameter(torch.full((config.rank,), log_precision))

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        gathered = self.gathered(context_features, context_index, context_mask)
        prior, steps = (self.prior_mean, self.prior_log_precision.exp()), self.config.steps
        if self.config.weights == "free":
            weights, _, factor = newton_posterior(*gathered, *prior, steps)
            covariance = torch.cholesky_inverse(factor)
        else:
            weights, covariance = simplex_posterior(*gathered, *prior, steps)
        return UserState(self.name, {"weights": weights, "covariance": covariance})

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState:
        prior = torch.diag_embed((-self.prior_log_precision).exp()).expand(n_users, -1, -1)
        weights = gaussian_draw(self.prior_mean.expand(n_users, -1), prior, generator)
        if self.config.weights == "simplex":
            weights = weights.softmax(-1)
        return UserState(self.name, {"weights": weights, "covariance": torch.zeros_like(prior)})
