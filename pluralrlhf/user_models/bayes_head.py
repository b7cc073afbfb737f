"""A Bayesian logistic head: the user is the posterior over a few weights in a learned feature space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import UserState, mlp
from .linear import LinearUserModel, feature_map, gaussian_draw, newton_posterior
from .settings import check_sizes


@dataclass
class BayesHeadConfig:
    """Settings of `bayes_head`.

    Args:
        dim: q, number of weights of a user.
        hidden: Width of the hidden layers of r0 and phi.
        layers: Number of hidden layers of phi; 0 is a linear map.
        newton_steps: Steps towards the posterior mode, at least 2.
    """

    dim: int = 16
    hidden: int = 256
    layers: int = 2
    newton_steps: int = 5

    def __post_init__(self):
        check_sizes(self, "bayes_head", dim=1, hidden=1, layers=0, newton_steps=2)


class BayesHead(LinearUserModel):
    r"""Few-shot Bayesian logistic regression in a learned feature space, trained through its own posterior.

    .. math:: r(x, y \mid u) = r_0(e) + w_u \cdot \phi(e), \qquad
        w_u = \arg\max_w \sum_i \log \sigma(\Delta r_{0,i} + w \cdot \Delta \phi_i) + \log N(w; m, S)

    with the prior's m and diagonal S learned. r0 is in the likelihood: what it already explains is not counted as
    evidence for the user a second time. The posterior is the Laplace approximation
    :math:`N(w_u, (S^{-1} + \sum_i p_i (1 - p_i) \Delta\phi_i \Delta\phi_i^T)^{-1})`, and a probability is averaged
    over it.

    Args:
        feature_dim: d.
        config: `BayesHeadConfig`.

    References:
        - MacKay 1992, The Evidence Framework Applied to Classification Networks (Laplace, moderated output)
        - Jaakkola and Jordan 2000 (the bound that the first steps use)

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `weights` (B, q), `covariance` (B, q, q) | (B, d) | (B,) |

    Relations:
        - `fast_weights` is its first gradient step, `mrm` a few of them.
        - `lore` with free weights is the same without r0.
    """

    name = "bayes_head"
    config_class = BayesHeadConfig
    has_posterior = True

    def __init__(self, feature_dim: int, config: BayesHeadConfig):
        super().__init__(feature_dim, config)
        self.base = mlp([feature_dim, config.hidden, config.hidden, 1])
        self.map = feature_map(feature_dim, config.hidden, config.layers, config.dim)
        self.prior_mean = nn.Parameter(torch.zeros(config.dim))
        self.prior_log_precision = nn.Parameter(torch.zeros(config.dim))

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        mode, _, factor = newton_posterior(
            *self.gathered(context_features, context_index, context_mask),
            self.prior_mean,
            self.prior_log_precision.exp(),
            self.config.newton_steps,
        )
        return UserState(self.name, {"weights": mode, "covariance": torch.cholesky_inverse(factor)})

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState:
        mean = self.prior_mean.expand(n_users, -1)
        covariance = torch.diag_embed((-self.prior_log_precision).exp()).expand(n_users, -1, -1)
        return UserState(self.name, {"weights": gaussian_draw(mean, covariance, generator), "covariance": covariance})
