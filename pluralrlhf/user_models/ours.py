"""The project's own user model: a Bayesian head with several types of user and doubt about the context's labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .base import PairOutput, UserState, mlp
from .linear import (
    LinearUserModel,
    feature_map,
    gather_pairs,
    gradient_steps,
    judged,
    log_posterior,
    newton_posterior,
)
from .population import fit_population, principal_directions
from .settings import check_sizes

# In the learner of the population: how far apart types are, and the part of its map that the gradient steps see.
_TYPES_APART, _FAST_SHARE = 0.05, 0.3


@dataclass
class OursConfig:
    """Settings of `ours`.

    Args:
        dim: q, number of weights of a user in each learner.
        types: Number of Gaussians in a prior.
        fast_dim: p, number of weights of the user's gradient steps; 0 leaves them out.
        fast_steps: Number of these steps.
        networks: Learners whose map is a network; every second one has a network for the reward of everybody, too.
        population: With a learner that is fitted to the population of training users before the first step.
        hidden, layers: Width and number of the networks' hidden layers.
        directions: Most directions of the features in which the population is fitted.
        newton_steps: Steps towards each type's posterior mode, at least 2.
        doubt: Hold it possible that the labels of a context say nothing about its user.
        noise_share: Share of training users whose context's labels are replaced by coin flips, so that doubt is
            learned; 0 leaves the contexts as they are. Default: 0.1 with `doubt`, else 0.
    """

    dim: int = 16
    types: int = 2
    fast_dim: int = 16
    fast_steps: int = 5
    networks: int = 2
    population: bool = True
    hidden: int = 256
    layers: int = 2
    directions: int = 64
    newton_steps: int = 5
    doubt: bool = True
    noise_share: float | None = None

    def __post_init__(self):
        if self.noise_share is None:
            self.noise_share = 0.1 if self.doubt else 0.0
        check_sizes(
            self, "ours", dim=1, types=1, fast_dim=0, fast_steps=1, hidden=1, layers=0, networks=0, directions=1,
            newton_steps=2, noise_share=0,
        )  # fmt: skip
        if not self.networks and not self.population:
            raise ConfigError(
                "`networks` of `ours` is 0 and `population` false: nothing is left to learn. Give one of them."
            )
        if self.noise_share >= 1:
            raise ConfigError(f"`noise_share` of `ours` is {self.noise_share}; it must be below 1.")
        if self.noise_share and not self.doubt:
            raise ConfigError(
                f"`noise_share` of `ours` is {self.noise_share} and `doubt` false: coin flips teach only doubt. Leave "
                "`noise_share` out, or set `doubt: true`."
            )


class Learner(nn.Module):
    """One map, and the posterior of a user's weights in it: what `Ours` is the mean of.

    Args:
        feature_dim: d.
        config: `OursConfig`.
        layers: Hidden layers of the map; 0 is linear.
        base: With a network of its own for the reward of everybody, which is otherwise the prior's mean alone.
    """

    def __init__(self, feature_dim: int, config: OursConfig, layers: int, base: bool = False):
        super().__init__()
        self.config = config
        self.base = mlp([feature_dim, config.hidden, config.hidden, 1]) if base else None
        self.map = feature_map(feature_dim, config.hidden, layers, config.dim + config.fast_dim)
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
        if config.types > 1 or config.doubt:
            self.log_temper = nn.Parameter(torch.tensor(-0.5))

    @torch.no_grad()
    def start(self, differences: Tensor, users: Tensor) -> None:
        """Sets a linear map and the prior to those of the population; see `UserModel.warm_start`."""
        q, p = self.config.dim, self.config.fast_dim
        projection = principal_directions(differences, self.config.directions)
        if not projection.shape[1]:
            return
        mean, covariance = fit_population(differences @ projection, users)
        variances, axes = torch.linalg.eigh(covariance)
        spread = (projection @ (axes * variances.clamp(min=0).sqrt()).flip(1)).T[: q - 1]
        linear = torch.zeros_like(self.map.weight)
        linear[: len(spread)] = spread
        linear[q - 1] = projection @ mean
        linear[q : q + p][: len(spread)] = _FAST_SHARE * spread[:p]
        self.map.weight.copy_(linear)
        self.prior_mean.normal_(0, _TYPES_APART if self.config.types > 1 else 0)
        self.prior_log_precision.zero_()
        # What everybody wants is nearly known: its weight is 1, with a standard deviation of a fifth.
        self.prior_mean[:, q - 1] = 1
        self.prior_log_precision[:, q - 1] = 3
        if p:
            self.fast_log_lr.fill_(-1.0)

    def base_reward(self, features: Tensor) -> Tensor:
        """(n,) what everybody gets, the prior's mean apart."""
        return features.new_zeros(len(features)) if self.base is None else self.base(features).squeeze(-1)


class Ours(LinearUserModel):
    r"""Few-shot Bayesian regression under several explanations of the context, by several learners.

    .. math:: r(x, y \mid u) = \frac1M \sum_m \left[ r_m(e) + w_{u,m} \cdot \phi_m(e) + v_{u,m} \cdot \psi_m(e) \right]

    where phi and psi are the outputs of a learner's map. Explanation t = 1..T is a type of user: labels follow
    :math:`\sigma(\Delta r + w \cdot \Delta\phi)` with prior :math:`w \sim N(m_t, S_t)`. Its posterior is Laplace's, its
    evidence

    .. math:: \log Z_t = \sum_i \log \sigma(\Delta r_i + \hat w_t \cdot \Delta\phi_i)
        + \log N(\hat w_t; m_t, S_t) + \tfrac q2 \log 2\pi - \tfrac12 \log |H_t|.

    Explanation 0 is that the labels say nothing: each has probability 1/2, :math:`\log Z_0 = -k \log 2`, and w keeps
    its prior. A context is believed in proportion to :math:`\pi_j \exp(\tau \log Z_j)`; the state is the mean and
    covariance of this mixture. A context that contradicts itself thus leads back to the reward of everybody. The prior
    weights, means and variances, and the tempering tau (pairs that share a statement are not independent evidence) are
    learned with phi, through the posterior. In training, the labels of some contexts are coin flips.

    Beside the posterior there are a few gradient steps in features of their own, which err elsewhere: from 0,
    :math:`v \leftarrow v + \alpha \odot \sum_i \sigma(-v \cdot \Delta\psi_i)\, \Delta\psi_i / (k + \kappa)`, the step
    sizes alpha and kappa learned through them; :math:`v_u = (1 - p_0)\, v`, with p_0 the doubt.

    The learners err differently, each is trained on its own error, and their mean errs less (a deep ensemble); so are the
    variances of their posteriors averaged. The first has a network for its map and no r: the prior's mean is the reward
    of everybody. The second has a network of its own for r besides. A network learns a few hundred training users by
    heart before it learns what holds of others. On frozen features the last learner is therefore the population itself,
    where hierarchical Bayes ends (`fit_population`): users' weights are :math:`N(\mu, S)` in the directions in which pairs
    differ most; its map is linear and stays what it is, the first q - 1 eigenvectors of S, each times the root of its
    eigenvalue, and mu, and for psi a part of the first p of them; its prior starts near N(0, I), and 1 for mu. With a
    backbone, whose features move, its map is linear and trained like the others.

    What is learned from the training users may hold of them alone. With `doubt`, `strength` is the share of a context's
    evidence that holds of others, fitted on validation users when training is over; the rest of the weight goes to
    explanation 0, so that 0 is the reward of everybody, and 1, without validation users, believes all.

    Args:
        feature_dim: d.
        config: `OursConfig`.

    References:
        - MacKay 1992 (Laplace evidence, moderated output); Jaakkola and Jordan 2000 (bound of the first steps)
        - Finn et al. 2017, https://arxiv.org/abs/1703.03400; Li et al. 2017, https://arxiv.org/abs/1707.09835 (the steps)
        - Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474 (ensembles)

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `weights` (B, M (q + p)), `covariance` (B, M, q, q), `explanations` (B, T + 1) | (B, d) | B |

        `explanations` are the types', then the doubt, averaged over learners.

    Relations:
        - `bayes_head` is one learner with an r, of one type, without doubt or steps.
        - `mrm` is the steps alone, from a learned first v.
    """

    name = "ours"
    config_class = OursConfig
    has_posterior = True

    def __init__(self, feature_dim: int, config: OursConfig):
        super().__init__(feature_dim, config)
        self.learners = nn.ModuleList(
            Learner(feature_dim, config, config.layers, base=number % 2 == 1) for number in range(config.networks)
        )
        if config.population:
            self.learners.append(Learner(feature_dim, config, layers=0))
        if config.doubt:
            self.register_buffer("strength", torch.ones(()))

    def warm_starts(self) -> bool:
        return self.config.population

    def warm_start(self, differences: Tensor, users: Tensor) -> None:
        self.learners[-1].start(differences, users)

    def hold_start(self) -> None:
        self.learners[-1].map.weight.requires_grad_(False)

    def base_reward(self, features: Tensor) -> Tensor:
        return sum(learner.base_reward(features) for learner in self.learners) / len(self.learners)

    def basis(self, features: Tensor) -> Tensor:
        """(n, M (q + p)): phi of every learner, then psi of every learner."""
        return self._of_all(torch.stack([learner.map(features) for learner in self.learners], dim=1))

    def _of_all(self, values: Tensor) -> Tensor:
        """(n, M (q + p)) from (n, M, q + p)."""
        return torch.cat([values[..., : self.config.dim].flatten(1), values[..., self.config.dim :].flatten(1)], dim=1)

    def embed(self, features: Tensor) -> Tensor:
        """(n, M (q + p + 1)): phi, psi and r of each learner."""
        values = [(learner.map(features), learner.base_reward(features)[:, None]) for learner in self.learners]
        return torch.cat([part for parts in values for part in parts], dim=1)

    def on_embedded(self) -> Ours:
        twin, m = copy.copy(self), len(self.learners)
        twin.embed = lambda embedded: embedded
        twin.base_reward = lambda embedded: embedded.unflatten(1, (m, -1))[..., -1].mean(1)
        twin.basis = lambda embedded: self._of_all(embedded.unflatten(1, (m, -1))[..., :-1])
        return twin

    def _state(self, weights: Tensor, covariance: Tensor, steps: Tensor, **more: Tensor) -> UserState:
        """A state from w (M, B, q), its covariance (M, B, q, q) and v (M, B, p) of all learners."""
        # The mean of the learners' rewards. Their posteriors are of the same user and err alike: variances are averaged.
        m = len(self.learners)
        both = torch.cat([value.transpose(0, 1).flatten(1) for value in (weights, steps)], dim=1) / m
        return UserState(self.name, {"weights": both, "covariance": covariance.transpose(0, 1) / m, **more})

    def _split(self, state: UserState) -> Iterator[tuple[Tensor, Tensor]]:
        """Each learner's weights (B, q + p) and covariance (B, q, q) of its w."""
        n = len(self.learners)
        w, v = state["weights"].split([n * self.config.dim, n * self.config.fast_dim], dim=1)
        for mine, moved, covariance in zip(w.chunk(n, 1), v.chunk(n, 1), state["covariance"].unbind(1)):
            yield n * torch.cat([mine, moved], dim=1), n * covariance

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        sign, device = None, context_mask.device
        if self.training and self.config.noise_share:
            coin = torch.rand(context_mask.shape, device=device) < 0.5
            coin &= (torch.rand(len(context_mask), device=device) < self.config.noise_share)[:, None]
            sign = 1 - 2 * coin.to(self.feature_mean.dtype)
        # All learners at once, learners outside, users within: for one user a call costs more than its arithmetic.
        flat, n_users, n_learners = context_features.flatten(0, 1), len(context_mask), len(self.learners)
        q, p, n_types = self.config.dim, self.config.fast_dim, self.config.types
        values = self.embed(flat).unflatten(0, (-1, 2))
        rows = gather_pairs(values[:, 0] - values[:, 1], context_index, context_mask)
        rows = rows if sign is None else rows * sign[..., None]
        rows = rows.unflatten(-1, (n_learners, -1)).permute(2, 0, 1, 3)
        mask = context_mask.to(rows.dtype)
        n_pairs = mask.sum(1)

        # Every user under every type: M, B and T in one dimension.
        def flattened(value: Tensor, dim: int) -> Tensor:
            return value.unsqueeze(dim).expand(n_learners, n_users, n_types, *value.shape[2:]).flatten(0, 2)

        mean, log_precision = self._stacked("prior_mean"), self._stacked("prior_log_precision")
        design, fast, offset = rows.split([q, p, 1], dim=-1)
        problem = [flattened(value, 2) for value in (design, offset.squeeze(-1), mask[None])]
        problem += [flattened(value, 1) for value in (mean, log_precision.exp())]
        mode, _, factor = newton_posterior(*problem, self.config.newton_steps)
        covariance = torch.cholesky_inverse(factor)
        log_types = self._log_types()
        log_weights = log_types[:, None].expand(-1, n_users, -1)
        if n_types > 1 or self.config.doubt:
            temper = self._stacked("log_temper").exp()[:, None]
            evidence = log_posterior(mode, *problem) - factor.diagonal(dim1=1, dim2=2).log().sum(-1)
            evidence = evidence.view(n_learners, n_users, n_types) + 0.5 * log_precision.sum(-1)[:, None]
            log_weights = log_weights + temper[..., None] * evidence
        mode, covariance = (value.unflatten(0, (n_learners, n_users, n_types)) for value in (mode, covariance))
        if not self.config.doubt:
            explanations = shares = log_weights.softmax(-1)
        else:
            log_nothing = self._stacked("doubt_logit")[:, None] - temper * math.log(2) * n_pairs
            believed, nothing = torch.cat([log_weights, log_nothing[..., None]], 2).softmax(-1).split([n_types, 1], 2)
            nothing = nothing + (1 - self.strength) * believed.sum(-1, keepdim=True)
            believed = self.strength * believed
            explanations = torch.cat([believed, nothing], 2)
            # Under explanation 0 the user is a draw from the prior, which is a mixture itself.
            shares = torch.cat([believed, nothing * log_types.exp()[:, None]], 2)
            prior = mean, torch.diag_embed((-log_precision).exp())
            mode, covariance = (
                torch.cat([value, before[:, None].expand_as(value)], 2)
                for value, before in zip((mode, covariance), prior)
            )
        weights, covariance = mixture(mode, covariance, shares)
        steps = fast.new_zeros(n_learners, n_users, p)
        if p:
            share = mask / (n_pairs + self._stacked("log_kappa").exp()[:, None])[..., None]
            rates = self._stacked("fast_log_lr").exp()[:, None].expand(-1, n_users, -1)
            flat = [value.flatten(0, 1) for value in (fast, share, steps, rates)]
            steps = gradient_steps(*flat, self.config.fast_steps).unflatten(0, (n_learners, n_users))
            steps = steps if not self.config.doubt else (1 - nothing) * steps
        return self._state(weights, covariance, steps, explanations=explanations.mean(0))

    def _stacked(self, name: str) -> Tensor:
        """(M, ...) one parameter of all learners."""
        return torch.stack([getattr(learner, name) for learner in self.learners])

    def _log_types(self) -> Tensor:
        """(M, T) log-probabilities of the types."""
        if self.config.types > 1:
            return self._stacked("type_logit").log_softmax(-1)
        return self.learners[0].prior_mean.new_zeros(len(self.learners), 1)

    def _prior(self) -> tuple[Tensor, Tensor]:
        """Mean (M, q) and covariance (M, q, q) of w before any pair."""
        covariance = torch.diag_embed((-self._stacked("prior_log_precision")).exp())
        return mixture(self._stacked("prior_mean"), covariance, self._log_types().exp())

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        state: UserState,
        margin: Tensor | None = None,
        n_user_pairs: Tensor | None = None,
    ) -> PairOutput:
        # Each learner is trained on its own error: trained on that of their mean, they would be one.
        features, rewards, losses = torch.cat([chosen, rejected]), [], []
        for learner, (weights, covariance) in zip(self.learners, self._split(state)):
            base, basis = learner.base_reward(features), learner.map(features)
            reward, logit = judged(base, basis, weights, covariance, margin)
            rewards.append(reward)
            losses.append(-F.logsigmoid(logit).mean())
        n = len(self.learners)
        return PairOutput(*(sum(rewards) / n).chunk(2), sum(losses) / n, {})

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState:
        mean, covariance = (value[:, None].expand(-1, n_users, *value.shape[1:]) for value in self._prior())
        # Gradient steps are made on pairs that exist: a made-up user has none.
        state = self._state(mean, covariance, mean.new_zeros(*mean.shape[:2], self.config.fast_dim))
        drawn = self.sample(state, generator)
        return UserState(self.name, {**drawn.tensors, "covariance": state["covariance"]})


def mixture(means: Tensor, covariances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., q) and covariance (..., q, q) of mixtures of J Gaussians (..., J, q), (..., J, q, q), weights (..., J)."""
    mean = (weights[..., None, :] @ means).squeeze(-2)
    apart = means - mean[..., None, :]
    within = (weights[..., None, None] * covariances).sum(-3)
    return mean, within + apart.transpose(-2, -1) @ (weights[..., None] * apart)
