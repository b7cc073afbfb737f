"""The project's own user model: a Bayesian head with several types of user and doubt about the context's labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserState, mlp
from .linear import (
    LinearUserModel,
    check_sizes,
    gaussian_draw,
    gradient_steps,
    log_posterior,
    newton_posterior,
)
from .population import fit_population, principal_directions

# In a start by the population: how far apart types are, and the part of its map that the gradient steps see.
_TYPES_APART, _FAST_SHARE = 0.05, 0.3


@dataclass
class OursConfig:
    """Settings of `ours`.

    Args:
        dim: q, number of weights of a user.
        types: Number of Gaussians in the prior.
        fast_dim: p, number of weights of the user's gradient steps; 0 leaves them out.
        fast_steps: Number of these steps.
        hidden, layers: Width and number of the hidden layers of the network in phi and psi; 0 layers leave the linear
            map alone.
        start_users: With fewer training users than this, phi and psi start from the population; 0 is never.
        directions: Most directions of the features in which the population is fitted.
        newton_steps: Steps towards each type's posterior mode, at least 2.
        doubt: Hold it possible that the labels of a context say nothing about its user.
        noise_share: Share of training users whose context's labels are replaced by coin flips, so that doubt is
            learned; 0 leaves the contexts as they are.
    """

    dim: int = 16
    types: int = 2
    fast_dim: int = 16
    fast_steps: int = 5
    hidden: int = 256
    layers: int = 2
    start_users: int = 500
    directions: int = 64
    newton_steps: int = 5
    doubt: bool = True
    noise_share: float = 0.1

    def __post_init__(self):
        check_sizes(
            self, "ours", dim=1, types=1, fast_dim=0, fast_steps=1, hidden=1, layers=0, start_users=0, directions=1,
            newton_steps=2, noise_share=0,
        )  # fmt: skip
        if self.noise_share >= 1:
            raise ConfigError(f"`noise_share` of `ours` is {self.noise_share}; it must be below 1.")
        if self.noise_share and not self.doubt:
            self.noise_share = 0.0


class LinearAndNetwork(nn.Module):
    """:math:`L e + f(e)`, (n, d) to (n, `out`), f an MLP. L is 0, and stays so, until `start_with`."""

    def __init__(self, feature_dim: int, hidden: int, layers: int, out: int):
        super().__init__()
        self.network = mlp([feature_dim] + [hidden] * layers + [out]) if layers else None
        self.linear = nn.Parameter(torch.zeros(out, feature_dim), requires_grad=not layers)
        if not layers:
            nn.init.kaiming_uniform_(self.linear, a=math.sqrt(5))

    def start_with(self, linear: Tensor) -> None:
        """Sets L, which is trained from now on, and makes f zero everywhere, by its last layer."""
        self.linear.copy_(linear)
        self.linear.requires_grad_()
        if self.network is not None:
            nn.init.zeros_(self.network[-1].weight)
            nn.init.zeros_(self.network[-1].bias)

    def forward(self, features: Tensor) -> Tensor:
        out = F.linear(features, self.linear)
        return out if self.network is None else out + self.network(features)


class Ours(LinearUserModel):
    r"""Few-shot Bayesian regression under several explanations of the context, weighed by their evidence.

    .. math:: r(x, y \mid u) = w_u \cdot \phi(e) + v_u \cdot \psi(e)

    where phi and psi are outputs of one map, :math:`L e + f(e)`: linear, plus a network. Explanation t = 1..T is a type
    of user: labels follow :math:`\sigma(w \cdot \Delta\phi)` with prior :math:`w \sim N(m_t, S_t)`, whose mean makes the
    reward of everybody. Its posterior is Laplace's, its evidence

    .. math:: \log Z_t = \sum_i \log \sigma(\hat w_t \cdot \Delta\phi_i)
        + \log N(\hat w_t; m_t, S_t) + \tfrac q2 \log 2\pi - \tfrac12 \log |H_t|.

    Explanation 0 is that the labels say nothing: each has probability 1/2, :math:`\log Z_0 = -k \log 2`, and w keeps
    its prior. A context is believed in proportion to :math:`\pi_j \exp(\tau \log Z_j)`; the state is the mean and
    covariance of this mixture. A context that contradicts itself thus leads back to the reward of everybody. The prior
    weights, means and variances, and the tempering tau (pairs that share a statement are not independent evidence) are
    learned with phi, through the posterior. In training, the labels of some contexts are coin flips.

    A network learns a few hundred training users by heart before it learns what holds of others. Where they are fewer
    than `start_users`, L therefore starts where hierarchical Bayes ends (`fit_population`): users' weights are
    :math:`N(\mu, S)` in the directions in which pairs differ most, the rows of L are the first eigenvectors of S, each
    times the root of its eigenvalue, and mu; the prior is N(0, I), and 1 for mu. f starts at 0. With more users L is 0.

    Beside the posterior there are a few gradient steps in features of their own, which err elsewhere: from 0,
    :math:`v \leftarrow v + \alpha \odot \sum_i \sigma(-v \cdot \Delta\psi_i)\, \Delta\psi_i / (k + \kappa)`, the step
    sizes alpha and kappa learned through them; :math:`v_u = (1 - p_0)\, v`, with p_0 the doubt.

    What is learned from the training users may hold of them alone. `strength` is the share of a context's evidence that
    holds of others, fitted on validation users when training is over; the rest of the weight goes to explanation 0, so
    that 0 is the reward of everybody, and 1, without validation users, believes all.

    Args:
        feature_dim: d.
        config: `OursConfig`.

    References:
        - MacKay 1992 (Laplace evidence, moderated output); Jaakkola and Jordan 2000 (bound of the first steps)
        - Finn et al. 2017, https://arxiv.org/abs/1703.03400; Li et al. 2017, https://arxiv.org/abs/1707.09835 (the steps)

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `weights` (B, q + p), `covariance` (B, q, q), `explanations` (B, T + 1) | (B, d) | B |

    Relations:
        - `bayes_head` is the case of one type, no doubt, no steps, with a network of its own for the reward of everybody.
        - `mrm` is the steps alone, from a learned first v.
    """

    name = "ours"
    config_class = OursConfig
    has_posterior = True

    def __init__(self, feature_dim: int, config: OursConfig):
        super().__init__(feature_dim, config)
        # The prior's mean is the reward of everybody: with a network of its own for it, more is learned by heart.
        self.base = None
        self.map = LinearAndNetwork(feature_dim, config.hidden, config.layers, config.dim + config.fast_dim)
        if config.fast_dim:
            self.fast_log_lr = nn.Parameter(torch.zeros(config.fast_dim))
            self.log_kappa = nn.Parameter(torch.zeros(()))
        # Types start apart, or they would stay the same for ever; a single one starts at 0.
        spread = 0.5 if config.types > 1 else 0.0
        self.prior_mean = nn.Parameter(spread * torch.randn(config.types, config.dim))
        self.prior_log_precision = nn.Parameter(torch.zeros(config.types, config.dim))
        if config.types > 1:
            self.type_logit = nn.Parameter(torch.zeros(config.types))
        if config.doubt:
            self.doubt_logit = nn.Parameter(torch.tensor(-2.0))
            self.register_buffer("strength", torch.ones(()))
        if config.types > 1 or config.doubt:
            self.log_temper = nn.Parameter(torch.tensor(-0.5))

    def warm_starts(self, n_users: int) -> bool:
        return n_users < self.config.start_users

    @torch.no_grad()
    def warm_start(self, differences: Tensor, users: Tensor) -> None:
        q, p = self.config.dim, self.config.fast_dim
        projection = principal_directions(differences, self.config.directions)
        if not projection.shape[1]:
            return
        mean, covariance = fit_population(differences @ projection, users)
        variances, axes = torch.linalg.eigh(covariance)
        spread = (projection @ (axes * variances.clamp(min=0).sqrt()).flip(1)).T[: q - 1]
        linear = torch.zeros_like(self.map.linear)
        linear[: len(spread)] = spread
        linear[q - 1] = projection @ mean
        linear[q : q + p][: len(spread)] = _FAST_SHARE * spread[:p]
        self.map.start_with(linear)
        self.prior_mean.normal_(0, _TYPES_APART if self.config.types > 1 else 0)
        self.prior_log_precision.zero_()
        # What everybody wants is nearly known: its weight is 1, with a standard deviation of a fifth.
        self.prior_mean[:, q - 1] = 1
        self.prior_log_precision[:, q - 1] = 3
        if p:
            self.fast_log_lr.fill_(-1.0)

    def _prior_weights(self) -> Tensor:
        """(T,) log-probabilities of the types."""
        return self.type_logit.log_softmax(-1) if self.config.types > 1 else self.prior_mean.new_zeros(1)

    def _prior(self, n_users: int) -> tuple[Tensor, Tensor]:
        """Mean (B, q) and covariance (B, q, q) of w before any pair."""
        covariance = torch.diag_embed((-self.prior_log_precision).exp())
        mean, covariance = mixture(self.prior_mean[None], covariance[None], self._prior_weights().exp()[None])
        return mean.expand(n_users, -1), covariance.expand(n_users, -1, -1)

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        design, offset, mask = self.gathered(context_features, context_index, context_mask)
        n_users, n_types = len(design), self.config.types
        if self.training and self.config.noise_share:
            coin = torch.rand(mask.shape, device=mask.device) < 0.5
            coin &= (torch.rand(n_users, device=mask.device) < self.config.noise_share)[:, None]
            sign = 1 - 2 * coin.to(design.dtype)
            design = design * sign[..., None]
        design, fast = design.split([self.config.dim, self.config.fast_dim], dim=-1)
        fast_mask, n_pairs = mask, mask.sum(1)
        # Each user once under each type, side by side.
        design, offset, mask = (value.repeat_interleave(n_types, 0) for value in (design, offset, mask))
        mean, log_precision = self.prior_mean.repeat(n_users, 1), self.prior_log_precision.repeat(n_users, 1)
        problem = (design, offset, mask, mean, log_precision.exp())
        mode, _, factor = newton_posterior(*problem, self.config.newton_steps)
        covariance = torch.cholesky_inverse(factor)
        mode, covariance = mode.unflatten(0, (n_users, n_types)), covariance.unflatten(0, (n_users, n_types))
        log_weights = self._prior_weights().expand(n_users, -1)
        if n_types > 1 or self.config.doubt:
            half_logdet = factor.diagonal(dim1=1, dim2=2).log().sum(-1)
            evidence = log_posterior(mode.flatten(0, 1), *problem) + 0.5 * log_precision.sum(-1) - half_logdet
            log_weights = log_weights + self.log_temper.exp() * evidence.view(n_users, n_types)
        if self.config.doubt:
            log_nothing = self.doubt_logit - self.log_temper.exp() * math.log(2) * n_pairs
            log_weights = torch.cat([log_weights, log_nothing[:, None]], dim=1)
            prior_mean, prior_covariance = self._prior(n_users)
            mode = torch.cat([mode, prior_mean[:, None]], dim=1)
            covariance = torch.cat([covariance, prior_covariance[:, None]], dim=1)
        explanations = log_weights.softmax(-1)
        if self.config.doubt:
            kept, lost = self.strength * explanations[:, :-1], (1 - self.strength) * explanations[:, :-1]
            explanations = torch.cat([kept, explanations[:, -1:] + lost.sum(1, keepdim=True)], dim=1)
        weights, covariance = mixture(mode, covariance, explanations)
        if self.config.fast_dim:
            trust = 1 - explanations[:, -1] if self.config.doubt else torch.ones_like(n_pairs)
            share = fast_mask / (n_pairs + self.log_kappa.exp())[:, None]
            start = fast.new_zeros(n_users, self.config.fast_dim)
            moved = gradient_steps(fast, share, start, self.fast_log_lr.exp(), self.config.fast_steps)
            weights = torch.cat([weights, trust[:, None] * moved], dim=1)
        return UserState(self.name, {"weights": weights, "covariance": covariance, "explanations": explanations})

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState:
        mean, covariance = self._prior(n_users)
        # Gradient steps are made on pairs that exist: a made-up user has none.
        weights = F.pad(gaussian_draw(mean, covariance, generator), (0, self.config.fast_dim))
        return UserState(self.name, {"weights": weights, "covariance": covariance})


def mixture(means: Tensor, covariances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, q) and covariance (B, q, q) of mixtures of J Gaussians (B, J, q), (B, J, q, q) with weights (B, J)."""
    mean = (weights[:, None] @ means).squeeze(1)
    apart = means - mean[:, None]
    within = (weights[..., None, None] * covariances).sum(1)
    return mean, within + apart.transpose(1, 2) @ (weights[..., None] * apart)
