"""Swap-guided preference learning: a user latent that mirrors when every answer is reversed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserState, gather_sum, mlp
from .settings import check_sizes
from .vpl import LEAKY_SLOPE, VPL, VPLConfig


@dataclass
class SPLConfig(VPLConfig):
    """Settings of `spl`: those of `vpl`, without its `published_quirks`, and the following.

    Args:
        guide: Weight of the guide loss.
        guide_variance: eta, weight of the part about the variances in it.
        flow: Number of inverse autoregressive flow steps (Kingma et al. 2016) before decoding.
    """

    latent_dim: int = 16
    guide: float = 0.1
    guide_variance: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_sizes(self, "spl", guide=0, guide_variance=0)
        if self.latent_dim % 2:
            raise ConfigError(
                f"`latent_dim` of `spl` is {self.latent_dim}; each response has half of it: make it even."
            )
        if self.published_quirks:
            raise ConfigError("`published_quirks` is of `vpl`; `spl` pools by its product of experts alone.")


class SPL(VPL):
    r"""VPL whose encoder sees each response on its own and is guided to mirror when chosen and rejected are swapped.

    Either response of a pair gives half of the pair's mean and precision. The guide compares the posterior with that
    of the swapped context, which gets no gradient,

    .. math:: \tfrac12 \big(1 + \cos(\mu, \mu^{swap})\big)
        + \tfrac\eta2 \big(1 - \cos(\log s^2, \log s^{2, swap})\big),

    averaged over the users with context; the means are taken relative to the prior's. The decoder is FiLM:
    :math:`h \mapsto (1 + \tanh(g)/2)\, h + \tanh(b)/2` with g, b linear in z. Pooling, prior and KL are those of
    `vpl`.

    Args:
        feature_dim: d.
        config: `SPLConfig`.

    References:
        - Kim and Kim 2026, https://arxiv.org/abs/2603.12595
        - Kingma et al. 2016, https://arxiv.org/abs/1606.04934 (the flow); Perez et al. 2018 (FiLM)

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `mean`, `precision` (B, L) | (B, d) | (B,) |

    Relations:
        - `fast_weights` mirrors exactly and by construction.
    """

    name = "spl"
    config_class = SPLConfig

    def __init__(self, feature_dim: int, config: SPLConfig):
        super().__init__(feature_dim, config)
        hidden, half = config.hidden, config.latent_dim // 2
        self.pair_encoder = nn.Sequential(mlp([feature_dim, hidden, hidden], LEAKY_SLOPE), nn.LeakyReLU(LEAKY_SLOPE))
        self.mean_head, self.scale_head = nn.Linear(hidden, half), nn.Linear(hidden, half)
        nn.init.constant_(self.scale_head.bias, -2.0)
        self.flow = nn.ModuleList(InverseAutoregressiveFlow(config.latent_dim) for _ in range(config.flow))
        self.latent_in = nn.Linear(config.latent_dim, 2 * config.decoder_hidden)

    def _posterior(self, context_features: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        responses = self.pair_encoder(context_features)
        evidence = F.softplus(self.scale_head(responses)).flatten(1)
        pulls = torch.cat([evidence, evidence * self.mean_head(responses).flatten(1)], dim=-1)
        evidence, pull = gather_sum(pulls, index, mask).chunk(2, dim=-1)
        prior = self.prior_log_precision.exp()
        return (prior * self.prior_mean + pull) / (prior + evidence), prior + evidence

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        mean, precision = self._posterior(context_features, context_index, context_mask)
        tensors = {"mean": mean, "precision": precision}
        if self.training and self.config.guide:
            with torch.no_grad():
                swapped = self._posterior(context_features.flip(1), context_index, context_mask)
            tensors |= {"swap_mean": swapped[0], "swap_precision": swapped[1]}
            tensors["any"] = context_mask.any(1) if context_mask.shape[1] else mean.new_zeros(len(mean)).bool()
        return UserState(self.name, tensors)

    def guide_loss(self, state: UserState) -> Tensor:
        """Scalar: how far the posteriors are from mirroring, a mean over users with context."""
        prior, weight = self.prior_mean, state["any"].to(state["mean"].dtype)
        mirrored = cosine(state["mean"] - prior, state["swap_mean"] - prior.detach())
        spread = cosine(-state["precision"].log(), -state["swap_precision"].log())
        loss = 0.5 * (1 + mirrored) + 0.5 * self.config.guide_variance * (1 - spread)
        return (loss * weight).sum() / weight.sum().clamp(min=1)

    def regularizer(self, state: UserState, n_user_pairs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        term, metrics = super().regularizer(state, n_user_pairs)
        metrics["active_units"] = active_units(state["mean"].detach())
        if "swap_mean" in state.tensors:
            guide = self.guide_loss(state)
            term = term + self.config.guide * guide
            metrics["guide"] = guide.detach()
        return term, metrics

    def _decode(self, response: Tensor, film: Tensor) -> Tensor:
        gain, shift = film.chunk(2, dim=-1)
        return self.decoder((1 + torch.tanh(gain) / 2) * response + torch.tanh(shift) / 2).squeeze(-1)

    def score(self, features: Tensor, state: UserState) -> Tensor:
        return self._decode(self.feature_in(features), self._latent(state))

    def score_matrix(self, features: Tensor, state: UserState, max_elements: int = 1 << 22) -> Tensor:
        response, film = self.feature_in(features), self._latent(state)
        block = max(1, max_elements // max(1, len(features) * self.config.decoder_hidden))
        return torch.cat([self._decode(response[None], part[:, None]) for part in film.split(block)])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) cosine of rows, 0 for a zero row, with a finite gradient there."""
    norms = ((a * a).sum(-1) + 1e-12).sqrt() * ((b * b).sum(-1) + 1e-12).sqrt()
    return (a * b).sum(-1) / norms


def active_units(mean: Tensor, threshold: float = 0.005) -> Tensor:
    """Number of latent dimensions whose posterior mean (U, L) varies over users by more than the threshold."""
    return (mean.var(0, correction=0) > threshold).sum().to(mean.dtype)


class InverseAutoregressiveFlow(nn.Module):
    """g z + (1 - g) m, where gate g and shift m of a dimension depend on the earlier dimensions only."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)
        nn.init.normal_(self.linear.weight, std=0.01)

    def forward(self, z: Tensor) -> Tensor:
        """(B, L) to (B, L)."""
        weight = self.linear.weight.unflatten(0, (2, -1)).tril(-1).flatten(0, 1)
        shift, gate = F.linear(z, weight, self.linear.bias).chunk(2, dim=-1)
        gate = torch.sigmoid(gate + 1.5)
        # The order is reversed from step to step, so that every dimension reads every other one in two.
        return (gate * z + (1 - gate) * shift).flip(-1)
