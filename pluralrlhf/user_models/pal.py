"""PAL: users are mixtures of a few prototypes; only the mixture's weights belong to a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserState
from .linear import LinearUserModel, feature_map, gaussian_draw, simplex_posterior
from .settings import check_sizes


@dataclass
class PALConfig:
    """Settings of `pal`.

    Args:
        form: `A`: the reward is minus the squared distance to the user's ideal point, over sqrt(`dim`). `B`: a cosine
            of the response and the user's direction, which may depend on the prompt.
        prototypes: K.
        dim: m, size of the space of prototypes.
        hidden, layers: Width and number of hidden layers of the map into it.
        prompt_dim: For `B`: how many leading features are the prompt's (`encoder_input: concat`: half of them). 0: all
            features are the response's, and prototypes are constant directions.
        steps: Steps towards a user's mixture weights.
    """

    form: Literal["A", "B"] = "A"
    prototypes: int = 8
    dim: int = 32
    hidden: int = 256
    layers: int = 2
    prompt_dim: int = 0
    steps: int = 6

    def __post_init__(self):
        check_sizes(self, "pal", prototypes=2, dim=1, hidden=1, layers=0, prompt_dim=0, steps=2)
        if self.form not in ("A", "B"):
            raise ConfigError(f"`form` of `pal` is {self.form!r}; it must be 'A' or 'B'.")
        if self.form == "A" and self.prompt_dim:
            raise ConfigError(
                f"`prompt_dim` of `pal` is {self.prompt_dim}, but only `form: B` reads the prompt apart."
            )


class PAL(LinearUserModel):
    r"""Pluralistic alignment: the user's ideal point (A) or direction (B) is a mixture of K prototypes.

    .. math::
        A:\ r = -\tfrac1{\sqrt m} |f(e) - \textstyle\sum_k w_k p_k|^2, \qquad
        B:\ r = s \textstyle\sum_k w_k \cos(f(y), g_k(x)),
        \qquad w = \mathrm{softmax}(a_u)

    In A the user's part of a difference of rewards, :math:`\tfrac2{\sqrt m} (f(e) - f(e')) \cdot \sum_k w_k p_k`, is
    linear in w; B mixes the normalised projections of the prompt, so that it is linear as well. Thus one posterior
    serves both: a_u is the mode of a logistic regression of the context's labels with a learned Gaussian prior, and
    everything else is trained through it. The published method learns the weights of every training user by gradient
    descent instead, and fits those of a new user alone.

    Args:
        feature_dim: d.
        config: `PALConfig`.

    References:
        - Chen et al. 2024, PAL: Pluralistic Alignment Framework for Learning from Heterogeneous Preferences,
          https://arxiv.org/abs/2406.08469

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `weights` (B, K), `covariance` (B, K, K) | (B, d) | (B,) |

    Relations:
        - `lore` on the simplex, with rewards of a particular form.
    """

    name = "pal"
    config_class = PALConfig
    has_posterior = True

    def __init__(self, feature_dim: int, config: PALConfig):
        super().__init__(feature_dim, config)
        if config.prompt_dim >= feature_dim:
            raise ConfigError(f"`prompt_dim` of `pal` is {config.prompt_dim} of {feature_dim} features; leave some.")
        self.base = None
        self.map = feature_map(feature_dim - config.prompt_dim, config.hidden, config.layers, config.dim)
        size = (config.prototypes, config.dim)
        if config.prompt_dim:
            out = config.prototypes * config.dim
            self.prompt_map = feature_map(config.prompt_dim, config.hidden, config.layers, out)
        else:
            self.prototypes = nn.Parameter(torch.randn(size))
        if config.form == "B":
            self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.prior_mean = nn.Parameter(torch.zeros(config.prototypes))
        # Wide: a user may be one prototype alone.
        self.prior_log_precision = nn.Parameter(torch.full((config.prototypes,), -1.0))

    def base_reward(self, features: Tensor) -> Tensor:
        if self.config.form == "B":
            return features.new_zeros(len(features))
        return -(self.map(features) ** 2).sum(-1) / self.config.dim**0.5

    def basis(self, features: Tensor) -> Tensor:
        prompt, response = features[:, : self.config.prompt_dim], self.map(features[:, self.config.prompt_dim :])
        if self.config.form == "A":
            return 2 / self.config.dim**0.5 * response @ self.prototypes.T
        response = F.normalize(response, dim=-1, eps=1e-6) * self.log_scale.exp()
        if not self.config.prompt_dim:
            return response @ F.normalize(self.prototypes, dim=-1, eps=1e-6).T
        directions = self.prompt_map(prompt).unflatten(-1, (self.config.prototypes, self.config.dim))
        return (F.normalize(directions, dim=-1, eps=1e-6) @ response[..., None]).squeeze(-1)

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        weights, covariance = simplex_posterior(
            *self.gathered(context_features, context_index, context_mask),
            self.prior_mean,
            self.prior_log_precision.exp(),
            self.config.steps,
        )
        return UserState(self.name, {"weights": weights, "covariance": covariance})

    def ideal_point(self, state: UserState) -> Tensor:
        """(U, dim) the users' ideal points, of `form: A`."""
        if self.config.form != "A":
            raise ConfigError(f"`ideal_point` is of `form: A`; this model has `form: {self.config.form}`.")
        return state["weights"] @ self.prototypes

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState:
        prior = torch.diag_embed((-self.prior_log_precision).exp()).expand(n_users, -1, -1)
        weights = gaussian_draw(self.prior_mean.expand(n_users, -1), prior, generator).softmax(-1)
        return UserState(self.name, {"weights": weights, "covariance": torch.zeros_like(prior)})
