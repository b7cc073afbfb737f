"""Variational preference learning: a user is a Gaussian latent inferred from a few labelled pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserModel, UserState, gather_sum, mlp, standard_normal
from .settings import check_sizes

LEAKY_SLOPE = 0.2


@dataclass
class VPLConfig:
    """Settings of `vpl`.

    Args:
        latent_dim: L, size of the latent.
        hidden: Width of the two hidden layers of the pair encoder.
        decoder_hidden: Width of the two hidden layers of the reward MLP.
        beta: Weight of the KL term for every target pair, or `"elbo"`: once a user, over the number of that user's
            target pairs. A number from 1e-2 (published form) or 0.1 (corrected form) upwards collapses the posterior.
        annealing: `none`, `linear` (0.1 to 1 over the first half) or `cyclical` (cosine cycles from 0.1 to 1).
        cycles: Number of cycles of `cyclical`.
        learned_prior: Learn the prior's mean and variance instead of N(0, I).
        flow: Number of planar flow steps (Rezende and Mohamed 2015) that the latent is passed through before
            decoding; the KL term stays that of the base Gaussian, which bounds it from the same bijection.
        predictive_samples: Posterior draws behind a predictive probability; 0 uses the posterior mean.
        published_quirks: The authors' pooling (self-attention, then the mean), clamps of mean and log-variance to
            [-1, 1], normalisation of z to length sqrt(L) in training only, and the prior N(0, I).
    """

    latent_dim: int = 64
    hidden: int = 256
    decoder_hidden: int = 256
    beta: float | Literal["elbo"] = 1e-3
    annealing: Literal["none", "linear", "cyclical"] = "none"
    cycles: int = 4
    learned_prior: bool = True
    flow: int = 0
    predictive_samples: int = 8
    published_quirks: bool = False

    def __post_init__(self):
        if isinstance(self.beta, str) and self.beta != "elbo":
            try:
                self.beta = float(self.beta)
            except ValueError:
                raise ConfigError(f"`beta` of `vpl` is {self.beta!r}; give a number or 'elbo'.") from None
        if self.beta != "elbo" and not (math.isfinite(self.beta) and self.beta >= 0):
            raise ConfigError(f"`beta` of `vpl` is {self.beta}; it must be a finite number of at least 0, or 'elbo'.")
        if self.annealing not in ("none", "linear", "cyclical"):
            raise ConfigError(f"`annealing` of `vpl` is {self.annealing!r}: none, linear or cyclical.")
        check_sizes(self, "vpl", latent_dim=1, hidden=1, decoder_hidden=1, cycles=1, flow=0, predictive_samples=0)


class VPL(UserModel):
    r"""User as a latent z ~ q(z | context), reward as an MLP of the response's features and z.

    By default the posterior is a precision-weighted product of experts: pair i adds the precision
    :math:`\Lambda_i \ge 0` and pulls towards :math:`m_i`, so that

    .. math:: P = P_0 + \sum_i \Lambda_i, \qquad \mu = P^{-1}(P_0 \mu_0 + \sum_i \Lambda_i m_i).

    k = 0 is the prior, evidence adds up (a duplicated pair counts twice), and more pairs never raise the entropy.
    With `published_quirks` it is the authors' architecture, which has none of the three properties.

    Args:
        feature_dim: d.
        config: `VPLConfig`.

    References:
        - Poddar et al. 2024, Personalizing RLHF with Variational Preference Learning, https://arxiv.org/abs/2408.10075

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `mean`, `precision` (B, L) | (B, d) | (B,) |

    Relations:
        - `btl` with an MLP head is `vpl` whose latent is constant.
    """

    name = "vpl"
    config_class = VPLConfig
    has_posterior = True

    def __init__(self, feature_dim: int, config: VPLConfig):
        super().__init__(feature_dim, config)
        latent, hidden = config.latent_dim, config.hidden
        self.pair_encoder = nn.Sequential(
            mlp([2 * feature_dim, hidden, hidden], LEAKY_SLOPE), nn.LeakyReLU(LEAKY_SLOPE)
        )
        self.mean_head = nn.Linear(hidden, latent)
        self.scale_head = nn.Linear(hidden, latent)
        if config.published_quirks:
            self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        else:
            # A pair starts by adding little precision, so that the first steps are those of the prior.
            nn.init.constant_(self.scale_head.bias, -2.0)
        learned = config.learned_prior and not config.published_quirks
        self.prior_mean = nn.Parameter(torch.zeros(latent), requires_grad=learned)
        self.prior_log_precision = nn.Parameter(torch.zeros(latent), requires_grad=learned)
        self.flow = nn.ModuleList(PlanarFlow(latent) for _ in range(config.flow))
        self.feature_in = nn.Linear(feature_dim, config.decoder_hidden)
        self.latent_in = nn.Linear(latent, config.decoder_hidden, bias=False)
        self.decoder = nn.Sequential(nn.LeakyReLU(LEAKY_SLOPE), mlp([config.decoder_hidden] * 2 + [1], LEAKY_SLOPE))

    # Posterior

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        pairs = self.pair_encoder(context_features.flatten(1))
        if self.config.published_quirks:
            mean, precision = self._published_posterior(pairs, context_index, context_mask)
        else:
            evidence = F.softplus(self.scale_head(pairs))
            pulls = torch.cat([evidence, evidence * self.mean_head(pairs)], dim=-1)
            evidence, pull = gather_sum(pulls, context_index, context_mask).chunk(2, dim=-1)
            prior = self.prior_log_precision.exp()
            precision = prior + evidence
            mean = (prior * self.prior_mean + pull) / precision
        return UserState(self.name, {"mean": mean, "precision": precision})

    def _published_posterior(self, pairs: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask.bool()
        if not index.shape[1]:
            pooled = pairs.new_zeros(len(index), self.config.hidden)
        else:
            pairs = pairs if len(pairs) else pairs.new_zeros(1, self.config.hidden)
            index = index.masked_fill(~mask, 0)
            query, key, value = (layer(pairs)[index] for layer in (self.query, self.key, self.value))
            scores = query @ key.transpose(1, 2) / math.sqrt(self.config.hidden)
            # A finite fill keeps rows without context free of NaN; what they attend to is dropped by the mask below.
            attention = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min).softmax(-1)
            weights = mask.to(value.dtype)
            pooled = (attention @ value * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        mean = self.mean_head(pooled).clamp(-1, 1)
        log_variance = self.scale_head(pooled).clamp(-1, 1)
        return mean, torch.exp(-log_variance)

    def entropy(self, state: UserState) -> Tensor:
        """(U,) differential entropy of the posterior, in nats."""
        return 0.5 * (math.log(2 * math.pi * math.e) - state["precision"].log()).sum(-1)

    def kl(self, state: UserState) -> Tensor:
        """(U,) KL(q || prior), in nats."""
        prior = self.prior_log_precision
        ratio = prior.exp() / state["precision"]
        distance = (state["mean"] - self.prior_mean) ** 2 * prior.exp()
        return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)

    def sample(self, state: UserState, generator: torch.Generator | None = None) -> UserState:
        z = state["mean"] + standard_normal(state["mean"], generator) * state["precision"].rsqrt()
        if self.config.published_quirks and self.training:
            z = F.normalize(z, dim=-1) * math.sqrt(self.config.latent_dim)
        return UserState(self.name, {"mean": z, "precision": state["precision"]})

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState:
        precision = self.prior_log_precision.exp().expand(n_users, -1)
        return self.sample(
            UserState(self.name, {"mean": self.prior_mean.expand(n_users, -1), "precision": precision}), generator
        )

    # Loss

    def annealing_weight(self) -> float:
        """Factor of beta at the present optimiser step, in (0, 1]."""
        if self.config.annealing == "none" or not self.max_steps:
            return 1.0
        progress = min(1.0, self.step / self.max_steps)
        if self.config.annealing == "linear":
            return min(1.0, 0.1 + 0.9 * progress * 2)
        position = (progress * self.config.cycles) % 1.0 if progress < 1 else 1.0
        return 0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * min(1.0, 2 * position)))

    def regularizer(self, state: UserState, n_user_pairs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        kl = self.kl(state)
        weight = self.annealing_weight()
        if self.config.beta == "elbo":
            if n_user_pairs is None:
                raise ConfigError("`beta: elbo` needs `n_user_pairs`, each user's number of target pairs.")
            term = weight * (kl / n_user_pairs.to(kl.dtype)).mean()
        else:
            term = weight * self.config.beta * kl.mean()
        return term, {"kl": kl.detach().mean(), "posterior_entropy": self.entropy(state).detach().mean()}

    # Reward

    def _latent(self, state: UserState) -> Tensor:
        z = state["mean"]
        for step in self.flow:
            z = step(z)
        return self.latent_in(z)

    def score(self, features: Tensor, state: UserState) -> Tensor:
        return self.decoder(self.feature_in(features) + self._latent(state)).squeeze(-1)

    def score_matrix(self, features: Tensor, state: UserState, max_elements: int = 1 << 22) -> Tensor:
        response, user = self.feature_in(features), self._latent(state)
        block = max(1, max_elements // max(1, len(features) * self.config.decoder_hidden))
        out = features.new_empty(len(user), len(features))
        for start in range(0, len(user), block):
            out[start : start + block] = self.decoder(response[None] + user[start : start + block, None]).squeeze(-1)
        return out

    def probability(self, chosen: Tensor, rejected: Tensor, state: UserState) -> Tensor:
        n = self.config.predictive_samples
        if not n:
            return super().probability(chosen, rejected, state)
        # The same draws for every row: a probability then depends on its own row only, not on the batch.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((n + 1) // 2, self.config.latent_dim, generator=generator)
        noise = torch.cat([noise, -noise])[:n].to(chosen)
        spread = state["precision"].rsqrt()
        total = chosen.new_zeros(len(chosen))
        for draw in noise:
            total += super().probability(
                chosen, rejected, UserState(self.name, {"mean": state["mean"] + draw * spread})
            )
        return total / n


class PlanarFlow(nn.Module):
    """z + u tanh(w.z + b), made invertible by u.w >= -1 (Rezende and Mohamed 2015, appendix A.1)."""

    def __init__(self, dim: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.u = nn.Parameter(torch.randn(dim) * 0.01)
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        """(B, L) to (B, L)."""
        product = self.w @ self.u
        u = self.u + (F.softplus(product) - 1 - product) * self.w / (self.w @ self.w).clamp(min=1e-8)
        return z + u * torch.tanh(z @ self.w + self.b)[:, None]
