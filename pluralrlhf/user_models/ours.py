"""The project's own user model: a Bayesian head with several types of user and doubt about the context's labels."""

from __future__ import annotations

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
    check_sizes,
    feature_map,
    gather_pairs,
    gradient_steps,
    log_posterior,
    margin_variance,
    moderate,
    newton_posterior,
)
from .population import fit_population, principal_directions

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
            learned; 0 leaves the contexts as they are.
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
    noise_share: float = 0.1

    def __post_init__(self):
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
            self.noise_share = 0.0


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

    def prior_weights(self) -> Tensor:
        """(T,) log-probabilities of the types."""
        return self.type_logit.log_softmax(-1) if self.config.types > 1 else self.prior_mean.new_zeros(1)

    def prior(self, n_users: int) -> tuple[Tensor, Tensor]:
        """Mean (B, q) and covariance (B, q, q) of w before any pair."""
        covariance = torch.diag_embed((-self.prior_log_precision).exp())
        mean, covariance = mixture(self.prior_mean[None], covariance[None], self.prior_weights().exp()[None])
        return mean.expand(n_users, -1), covariance.expand(n_users, -1, -1)

    def problem(
        self, context_features: Tensor, index: Tensor, mask: Tensor, sign: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The arguments of `newton_posterior` for B users under each type, (B T, ...), the types of a user side by side;
        then those of `gradient_steps`: delta psi (B, K, p), shares (B, K) and rates (B, p).

        Args:
            context_features, index, mask: As for `UserModel.encode`.
            sign: (B, K) -1 where the sides of a pair are to change places.
        """
        flat, types = context_features.flatten(0, 1), self.config.types
        design = self.map(flat).unflatten(0, (len(context_features), 2))
        offset = self.base_reward(flat).unflatten(0, (len(context_features), 2))
        design = gather_pairs(design[:, 0] - design[:, 1], index, mask)
        offset, mask = gather_pairs(offset[:, 0] - offset[:, 1], index, mask), mask.to(design.dtype)
        if sign is not None:
            design, offset = design * sign[..., None], offset * sign
        design, fast = design.split([self.config.dim, self.config.fast_dim], dim=-1)
        mean, precision = self.prior_mean.repeat(len(mask), 1), self.prior_log_precision.exp().repeat(len(mask), 1)
        posterior = (*(value.repeat_interleave(types, 0) for value in (design, offset, mask)), mean, precision)
        if not self.config.fast_dim:
            return (*posterior, fast, mask, mask.new_zeros(len(mask), 0))
        share = mask / (mask.sum(1) + self.log_kappa.exp())[:, None]
        return (*posterior, fast, share, self.fast_log_lr.exp().expand(len(mask), -1))

    def explained(
        self, mode: Tensor, covariance: Tensor, evidence: Tensor, n_pairs: Tensor, strength: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (B, q) and covariance (B, q, q) of w over its explanations, and what is believed of each.

        Args:
            mode, covariance: (B, T, q) and (B, T, q, q), the posterior under each type.
            evidence: (B, T) log Z_t.
            n_pairs: (B,) pairs in the context.
            strength: Share of the evidence that is applied; `None` without doubt.

        Returns:
            Mean, covariance, and (B, T + 1) explanations, or (B, T) without doubt.
        """
        log_weights = self.prior_weights().expand(len(mode), -1)
        if self.config.types > 1 or self.config.doubt:
            log_weights = log_weights + self.log_temper.exp() * evidence
        if self.config.doubt:
            log_nothing = self.doubt_logit - self.log_temper.exp() * math.log(2) * n_pairs
            log_weights = torch.cat([log_weights, log_nothing[:, None]], dim=1)
            prior_mean, prior_covariance = self.prior(len(mode))
            mode = torch.cat([mode, prior_mean[:, None]], dim=1)
            covariance = torch.cat([covariance, prior_covariance[:, None]], dim=1)
        explanations = log_weights.softmax(-1)
        if self.config.doubt:
            kept, lost = strength * explanations[:, :-1], (1 - strength) * explanations[:, :-1]
            explanations = torch.cat([kept, explanations[:, -1:] + lost.sum(1, keepdim=True)], dim=1)
        return *mixture(mode, covariance, explanations), explanations


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

    What is learned from the training users may hold of them alone. With `doubt`, `strength` is the share of a context's evidence that
    holds of others, fitted on validation users when training is over; the rest of the weight goes to explanation 0, so
    that 0 is the reward of everybody, and 1, without validation users, believes all.

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
        values = torch.stack([learner.map(features) for learner in self.learners], dim=1)
        return torch.cat([values[..., : self.config.dim].flatten(1), values[..., self.config.dim :].flatten(1)], dim=1)

    def _state(
        self, weights: list[Tensor], covariances: list[Tensor], steps: list[Tensor], **more: Tensor
    ) -> UserState:
        # The mean of the learners' rewards. Their posteriors are of the same user and err alike: variances are averaged.
        m = len(self.learners)
        weights = torch.cat([*weights, *steps], dim=1) / m
        covariance = torch.stack(covariances, dim=1) / m
        return UserState(self.name, {"weights": weights, "covariance": covariance, **more})

    def _split(self, state: UserState) -> Iterator[tuple[Tensor, Tensor]]:
        """Each learner's weights (B, q + p) and covariance (B, q, q) of its w."""
        n = len(self.learners)
        w, v = state["weights"].split([n * self.config.dim, n * self.config.fast_dim], dim=1)
        for mine, moved, covariance in zip(w.chunk(n, 1), v.chunk(n, 1), state["covariance"].unbind(1)):
            yield n * torch.cat([mine, moved], dim=1), n * covariance

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        sign, mask = None, context_mask
        if self.training and self.config.noise_share:
            coin = torch.rand(mask.shape, device=mask.device) < 0.5
            coin &= (torch.rand(len(mask), device=mask.device) < self.config.noise_share)[:, None]
            sign = 1 - 2 * coin.to(self.feature_mean.dtype)
        problems = [learner.problem(context_features, context_index, context_mask, sign) for learner in self.learners]
        # All learners at once: for one user a call costs more than its arithmetic.
        *problem, fast, share, rates = (torch.cat(parts) for parts in zip(*problems))
        mode, _, factor = newton_posterior(*problem, self.config.newton_steps)
        evidence = log_posterior(mode, *problem) + 0.5 * problem[-1].log().sum(-1)
        evidence = evidence - factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        found = (mode, torch.cholesky_inverse(factor), evidence)
        found = [value.unflatten(0, (len(self.learners), -1, self.config.types)) for value in found]
        n_pairs = context_mask.to(evidence.dtype).sum(1)
        strength = self.strength if self.config.doubt else None
        read = [learner.explained(*values, n_pairs, strength) for learner, *values in zip(self.learners, *found)]
        weights, covariances, explanations = zip(*read)
        steps = gradient_steps(fast, share, torch.zeros_like(rates), rates, self.config.fast_steps)
        steps = steps.chunk(len(self.learners))
        if self.config.doubt:
            steps = [(1 - believed[:, -1:]) * moved for believed, moved in zip(explanations, steps)]
        return self._state(weights, covariances, steps, explanations=sum(explanations) / len(explanations))

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
            basis = learner.map(features)
            rewards.append(learner.base_reward(features) + (basis * weights.repeat(2, 1)).sum(-1))
            logit = torch.sub(*rewards[-1].chunk(2))
            logit = logit if margin is None else logit - margin
            logit = moderate(logit, margin_variance(torch.sub(*basis.chunk(2)), covariance))
            losses.append(-F.logsigmoid(logit).mean())
        n = len(self.learners)
        return PairOutput(*(sum(rewards) / n).chunk(2), sum(losses) / n, {})

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState:
        means, covariances = zip(*(learner.prior(n_users) for learner in self.learners))
        # Gradient steps are made on pairs that exist: a made-up user has none.
        steps = [means[0].new_zeros(n_users, self.config.fast_dim)] * len(self.learners)
        state = self._state(means, covariances, steps)
        drawn = self.sample(state, generator)
        return UserState(self.name, {**drawn.tensors, "covariance": state["covariance"]})


def mixture(means: Tensor, covariances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, q) and covariance (B, q, q) of mixtures of J Gaussians (B, J, q), (B, J, q, q) with weights (B, J)."""
    mean = (weights[:, None] @ means).squeeze(1)
    apart = means - mean[:, None]
    within = (weights[..., None, None] * covariances).sum(1)
    return mean, within + apart.transpose(1, 2) @ (weights[..., None] * apart)
