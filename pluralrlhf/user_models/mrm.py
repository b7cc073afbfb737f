"""Meta reward modelling: users start from one meta-learned set of weights and take a few gradient steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import UserState
from .linear import LinearUserModel, feature_map, gradient_steps
from .settings import check_sizes


@dataclass
class MRMConfig:
    """Settings of `mrm`.

    Args:
        n_base: q, number of shared base rewards.
        hidden, layers: Width and number of hidden layers of the base rewards' MLP.
        inner_steps: Gradient steps of a user on the context.
        inner_lr: First value of their step size; one for each weight is learned (Meta-SGD, Li et al. 2017).
        learned_inner_lr: Learn it.
    """

    n_base: int = 16
    hidden: int = 256
    layers: int = 2
    inner_steps: int = 5
    inner_lr: float = 1.0
    learned_inner_lr: bool = True

    def __post_init__(self):
        check_sizes(self, "mrm", n_base=1, hidden=1, layers=0, inner_steps=1, inner_lr=1e-8)


class MRM(LinearUserModel):
    r"""Model-agnostic meta-learning of the user's weights over shared base rewards.

    .. math:: r(x, y \mid u) = w_u \cdot \phi(e), \qquad
        w^{(0)} = w_0, \quad w^{(t+1)} = w^{(t)} + \alpha \odot \frac1k \sum_i \sigma(-w^{(t)} \cdot \Delta\phi_i)\,
        \Delta\phi_i

    The initialisation, the base rewards and the step sizes are trained through the inner steps (second order). The
    inner loss is a mean over the context, so that a longer context does not move the user further: evidence does not
    add up. k = 0 is the initialisation.

    Args:
        feature_dim: d.
        config: `MRMConfig`.

    References:
        - Cai et al. 2026, https://arxiv.org/abs/2601.18731
        - Finn et al. 2017, https://arxiv.org/abs/1703.03400; Li et al. 2017, https://arxiv.org/abs/1707.09835

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `weights` (B, q) | (B, d) | (B,) |

    Relations:
        - `lore` with free weights goes to the optimum under a prior instead, where the number of steps plays no role.
    """

    name = "mrm"
    config_class = MRMConfig

    def __init__(self, feature_dim: int, config: MRMConfig):
        super().__init__(feature_dim, config)
        self.base = None
        self.map = feature_map(feature_dim, config.hidden, config.layers, config.n_base)
        self.initial = nn.Parameter(torch.full((config.n_base,), config.n_base**-0.5))
        log_lr = torch.full((config.n_base,), float(config.inner_lr)).log()
        self.inner_log_lr = nn.Parameter(log_lr, requires_grad=config.learned_inner_lr)

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        design, _, mask = self.gathered(context_features, context_index, context_mask)
        share = mask / mask.sum(1, keepdim=True).clamp(min=1)
        start = self.initial.expand(len(design), -1)
        weights = gradient_steps(design, share, start, self.inner_log_lr.exp(), self.config.inner_steps)
        return UserState(self.name, {"weights": weights})
