"""Distributional preference learning: one distribution of rewards for everybody, whose spread shows hidden context."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .base import PairOutput, UserModel, UserState, mlp
from .settings import check_sizes


@dataclass
class DPLConfig:
    """Settings of `dpl`.

    Args:
        head: `mean_variance` (a Gaussian) or `categorical` (`atoms` values from 0 to 1).
        hidden, layers: Width and number of hidden layers.
        loss: For `mean_variance`: `exact` (-log Phi) or `reference`, the authors' logistic approximation, whose slope
            is pi / 2 too steep and which therefore inflates the variances.
        atoms: Number of values of `categorical`.
        entropy_weight: Weight of the negative entropy of the mean distribution, for `categorical`.
    """

    head: Literal["mean_variance", "categorical"] = "mean_variance"
    hidden: int = 256
    layers: int = 2
    loss: Literal["exact", "reference"] = "exact"
    atoms: int = 10
    entropy_weight: float = 0.1

    def __post_init__(self):
        check_sizes(self, "dpl", hidden=1, layers=0, atoms=2, entropy_weight=0)
        if self.head not in ("mean_variance", "categorical"):
            raise ConfigError(f"`head` of `dpl` is {self.head!r}; it must be 'mean_variance' or 'categorical'.")
        if self.loss not in ("exact", "reference"):
            raise ConfigError(f"`loss` of `dpl` is {self.loss!r}; it must be 'exact' or 'reference'.")


class DPL(UserModel):
    r"""Reward without a user but with a distribution: what depends on hidden context shows as spread.

    .. math:: p(y \succ y') = \Phi\big((\mu - \mu') / \sqrt{\sigma^2 + \sigma'^2}\big) \quad\text{or}\quad
        \sum_{a > b} p(a)\, p'(b) + \tfrac12 \sum_a p(a)\, p'(a)

    The score is the mean of the distribution. The metric `r2`, Var(E r) / Var(r) over the batch, is the share of the
    reward's variance that hidden context does not explain; label noise counts as hidden context.

    Args:
        feature_dim: d.
        config: `DPLConfig`.

    References:
        - Siththaranjan, Laidlaw and Hadfield-Menell 2024, https://arxiv.org/abs/2312.08358

    Inputs:
        | features | state | output |
        |---|---|---|
        | (B, d) | B empty states | (B,) |

    Relations:
        - `btl` with a probit link is `mean_variance` with the same variance everywhere.
    """

    name = "dpl"
    config_class = DPLConfig
    uses_context = False

    def __init__(self, feature_dim: int, config: DPLConfig):
        super().__init__(feature_dim, config)
        out = 2 if config.head == "mean_variance" else config.atoms
        self.head = mlp([feature_dim] + [config.hidden] * config.layers + [out])

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        return UserState(self.name, {"none": context_features.new_zeros(len(context_index), 0)})

    def distribution(self, features: Tensor) -> Tensor:
        """(B, atoms) probabilities of the values, of `categorical`."""
        return self.head(features).softmax(-1)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) mean and variance of the reward."""
        if self.config.head == "mean_variance":
            mean, scale = self.head(features).unbind(-1)
            # The least deviation keeps the slope of the loss bounded.
            return mean, (F.softplus(scale) + 0.01) ** 2
        return self._moments_of(self.distribution(features))

    def _moments_of(self, p: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.linspace(0, 1, self.config.atoms, dtype=p.dtype, device=p.device)
        mean = p @ values
        return mean, p @ values**2 - mean**2

    def score(self, features: Tensor, state: UserState) -> Tensor:
        return self.moments(features)[0]

    def score_matrix(self, features: Tensor, state: UserState, max_elements: int = 1 << 22) -> Tensor:
        return torch.broadcast_to(self.moments(features)[0], (len(state), len(features)))

    def moderates(self, state: UserState) -> bool:
        return True

    def log_odds(self, chosen: Tensor, rejected: Tensor, state: UserState) -> Tensor:
        if self.config.head == "categorical":
            return torch.logit(self._wins(self.distribution(chosen), self.distribution(rejected)), eps=1e-7)
        (mean, variance), (other, other_variance) = self.moments(chosen), self.moments(rejected)
        z = (mean - other) / (variance + other_variance).sqrt()
        return torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)

    def _wins(self, p: Tensor, q: Tensor) -> Tensor:
        return ((q.cumsum(-1) - q) * p).sum(-1) + 0.5 * (p * q).sum(-1)

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        state: UserState,
        margin: Tensor | None = None,
        n_user_pairs: Tensor | None = None,
    ) -> PairOutput:
        if self.config.head == "categorical":
            if margin is not None:
                raise ConfigError(
                    "The data has `margin`s, which `head: categorical` of `dpl` has no use for. Drop them."
                )
            p, q = self.distribution(chosen), self.distribution(rejected)
            (mean, variance), (other, other_variance) = self._moments_of(p), self._moments_of(q)
            average = torch.cat([p, q]).mean(0)
            loss = -torch.log(self._wins(p, q).clamp(min=1e-12)).mean()
            loss = loss + self.config.entropy_weight * torch.xlogy(average, average).sum()
        else:
            (mean, variance), (other, other_variance) = self.moments(chosen), self.moments(rejected)
            z = (mean - other - (0 if margin is None else margin)) / (variance + other_variance).sqrt()
            if self.config.loss == "exact":
                loss = -torch.special.log_ndtr(z).mean()
            else:
                loss = F.softplus(-math.sqrt(2 * math.pi) * z).mean()
        with torch.no_grad():
            means = torch.cat([mean, other])
            explained = means.var(correction=0)
            r2 = explained / (explained + torch.cat([variance, other_variance]).mean()).clamp(min=1e-12)
        return PairOutput(mean, other, loss, {"r2": r2})
