"""A method of your own, whole: a user is the mean direction in which their choices point, in a space that is learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pluralrlhf import UserState, register_user_model
from pluralrlhf.user_models.base import UserModel, gather_sum, mlp
from pluralrlhf.user_models.settings import check_sizes


@dataclass
class CentroidConfig:
    """Settings of `centroid`.

    Args:
        dim: q, size of the space.
        hidden: Width of the hidden layer of r0.
    """

    dim: int = 32
    hidden: int = 256

    def __post_init__(self):
        check_sizes(self, "centroid", dim=1, hidden=1)


@register_user_model
class Centroid(UserModel):
    r"""A reward for everybody and one along the user's mean choice.

    .. math:: r(x, y \mid u) = r_0(e) + w_u \cdot A e, \quad w_u = \frac{1}{k + \kappa} \sum_{i=1}^k A (e_i^+ - e_i^-)

    e are standardised features (d,), A is (q, d); kappa > 0 is learned: few choices say little.
    """

    name = "centroid"
    config_class = CentroidConfig

    def __init__(self, feature_dim: int, config: CentroidConfig):
        super().__init__(feature_dim, config)
        self.base = mlp([feature_dim, config.hidden, 1])
        self.map = nn.Linear(feature_dim, config.dim, bias=False)
        self.log_kappa = nn.Parameter(torch.tensor(1.0))

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        # (N, 2, d) are the distinct pairs of the batch, chosen first; a user's are the rows that their mask leaves.
        directions = self.map(context_features[:, 0] - context_features[:, 1])
        k = context_mask.sum(1, keepdim=True)
        weights = gather_sum(directions, context_index, context_mask) / (k + self.log_kappa.exp())
        return UserState(self.name, {"weights": weights})

    def score(self, features: Tensor, state: UserState) -> Tensor:
        return self.base(features).squeeze(-1) + (self.map(features) * state["weights"]).sum(-1)
