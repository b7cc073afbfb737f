"""P-RLHF: a user is a few soft tokens in front of the prompt of a trainable backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .backbone_route import BackboneUserModel, Reader
from .base import UserState, gather_sum
from .settings import check_sizes


@dataclass
class SoftTokensConfig:
    """Settings of `soft_tokens`.

    Args:
        form: `cluster`: a user's tokens are a mixture of those of a few clusters, and a new user is found as the
            clusters' posterior. `individual`: they are free, and a new user is found by gradient steps.
        n_tokens: T, soft tokens of a user.
        n_clusters: C, for `cluster`.
        rate: How much faster than the learning rate says tokens move under Adam, in standard deviations of the
            backbone's embeddings; a backbone is trained at rates at which soft tokens stand still.
        steps: Gradient steps for a user, for `individual`.
        eta: First value of their step size, which is learned.
        context_gradient: Train through the contexts' passes; without, they cost no memory for gradients.
    """

    form: Literal["cluster", "individual"] = "cluster"
    n_tokens: int = 10
    n_clusters: int = 5
    rate: float = 10.0
    steps: int = 3
    eta: float = 1.0
    context_gradient: bool = True

    def __post_init__(self):
        if self.form not in ("cluster", "individual"):
            raise ConfigError(f"`form` of `soft_tokens` is {self.form!r}; it must be 'cluster' or 'individual'.")
        check_sizes(self, "soft_tokens", n_tokens=1, n_clusters=2, steps=1)
        for name in ("rate", "eta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"`{name}` of `soft_tokens` is {getattr(self, name)}; it must be above 0 and finite."
                )


class SoftTokens(BackboneUserModel):
    r"""User-specific and generic soft prompts: r(x, y | u) = v . e([t_u; x, y]).

    The generic tokens t_0 are those of an unknown user, and :math:`t_u = t_0 + o_u`. P-RLHF keeps a row of parameters
    for each user of the training data. Here every user is new and is known by k labelled pairs [ours]:

    - `cluster`: :math:`o_u = \sum_c \pi_{uc} V_c - \sum_c p_c V_c`, with weights by the evidence of the labels,

      .. math:: \pi_{uc} \propto p_c \exp\Big(a \sum_i \log \sigma\big(r_c(x_i, y_i^+) - r_c(x_i, y_i^-)\big)\Big),

      where r_c reads through the tokens of cluster c, and the prior p and the power a are learned. A pair is read C
      times whoever its users are. At k = 0 the weights are the prior and the tokens are t_0.
    - `individual`: o_u is free. It starts at 0 and takes gradient steps on :math:`\sum_i \log \sigma` of the user's own
      pairs; the step size and t_0 are trained through them to first order (Finn et al. 2017).

    Neither draws anything, and sums over the pairs do not depend on their order.

    Args:
        feature_dim: d, size of the backbone's hidden states and of its token embeddings.
        config: `SoftTokensConfig`.

    Raises:
        ConfigError: The backbone's token embeddings have another size than its states (on `attach`).

    References:
        - Li et al. 2024, https://arxiv.org/abs/2402.05133 (P-RLHF)
        - Lester et al. 2021, https://arxiv.org/abs/2104.08691 (soft prompts)

    Inputs:
        | context | state | targets | output |
        |---|---|---|---|
        | (2N, L), (B, K), (B, K) | `weights` (B, C), or `tokens` (B, T, d) | (B, L) | (B,) |

    Relations:
        - `cluster` is `lore` with its shared rewards read through prompts, not off one set of features.
        - `icl` has the pairs themselves in front of the prompt.
    """

    name = "soft_tokens"
    config_class = SoftTokensConfig

    def __init__(self, feature_dim: int, config: SoftTokensConfig):
        super().__init__(feature_dim, config)
        size = (config.n_tokens, feature_dim)
        self.head = nn.Linear(feature_dim, 1, bias=False)
        self.generic = nn.Parameter(torch.randn(size) / config.rate)
        if config.form == "cluster":
            self.clusters = nn.Parameter(torch.randn(config.n_clusters, *size) / config.rate)
            self.prior = nn.Parameter(torch.zeros(config.n_clusters))
            self.log_power = nn.Parameter(torch.zeros(()))
        else:
            self.log_eta = nn.Parameter(torch.tensor(float(config.eta)).log())
        self.register_buffer("embedding_scale", torch.ones(()))

    @torch.no_grad()
    def attach(self, backbone: nn.Module) -> None:
        weight = backbone.get_input_embeddings().weight
        if weight.shape[-1] != self.feature_dim and not getattr(backbone, "is_quantized", False):
            raise ConfigError(
                f"`soft_tokens` needs token embeddings of the size of the hidden states ({self.feature_dim}); this "
                f"backbone's have {weight.shape[-1]}. Choose another backbone."
            )
        self.embedding_scale.copy_(weight.float().std())

    # Tokens

    def _scaled(self, tokens: Tensor) -> Tensor:
        return self.embedding_scale * self.config.rate * tokens

    def tokens(self, state: UserState) -> Tensor:
        """(B, T, d) embeddings that stand in front of the texts of each user."""
        if self.config.form == "individual":
            return self._scaled(self.generic) + self.embedding_scale * state["tokens"]
        return self._scaled(self._mixed(state["weights"]))

    def _mixed(self, weights: Tensor) -> Tensor:
        return self.generic + torch.einsum("bc,ctd->btd", weights - self.prior.softmax(-1), self.clusters)

    def _rewards(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> Tensor:
        return self.head(reader(input_ids, attention_mask, tokens)).squeeze(-1)

    # Contract

    def score_tokens(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, state: UserState) -> Tensor:
        return self._rewards(reader, input_ids, attention_mask, self.tokens(state))

    def encode_tokens(
        self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, context_index: Tensor, context_mask: Tensor
    ) -> UserState:
        if self.config.form == "individual":
            tokens = self._found(reader, input_ids, attention_mask, context_index, context_mask.bool())
            return UserState(self.name, {"tokens": tokens})
        evidence = self.evidence(reader, input_ids, attention_mask)
        total = gather_sum(evidence, context_index, context_mask)
        return UserState(self.name, {"weights": (self.prior + self.log_power.exp() * total).softmax(-1)})

    def evidence(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, C) log-likelihood of the label of each pair under each cluster, from texts (2N, L)."""
        n_clusters = self.config.n_clusters
        if not len(input_ids):
            return self.generic.new_zeros(0, n_clusters)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.context_gradient):
            prompts = self._scaled(self._mixed(torch.eye(n_clusters, device=self.generic.device)))
            rewards = [
                self._rewards(reader, input_ids, attention_mask, prompt.expand(len(input_ids), -1, -1))
                for prompt in prompts
            ]
            chosen, rejected = torch.stack(rewards, -1).chunk(2)
            return F.logsigmoid(chosen - rejected)

    def _found(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        """(B, T, d) offsets after the gradient steps, in standard deviations of the embeddings."""
        offset = self.generic.new_zeros(len(index), *self.generic.shape)
        eta = self.log_eta.exp()
        if not mask.any():
            return offset + 0 * eta
        # Gradients are needed here also where the caller wants none; tensors of inference mode cannot be part of it.
        with torch.inference_mode(False), torch.enable_grad():
            pairs = input_ids.clone().view(2, -1, input_ids.shape[1])
            masks = attention_mask.clone().view(2, -1, attention_mask.shape[1])
            owner, rows = mask.clone().nonzero()[:, 0], index.clone()[mask.clone()]
            base, rate = self._scaled(self.generic).detach(), self.log_eta.detach().exp()
            total = torch.zeros(len(index), *self.generic.shape, dtype=base.dtype, device=base.device)
            for _ in range(self.config.steps):
                at = (rate * total).requires_grad_()
                gradient = torch.zeros_like(total)
                # Some pairs at a time: a user's gradient is a sum over them.
                for some in torch.arange(len(rows), device=rows.device).split(64):
                    tokens = (base + self.embedding_scale * at)[owner[some]].repeat(2, 1, 1)
                    ids, shown = pairs[:, rows[some]].flatten(0, 1), masks[:, rows[some]].flatten(0, 1)
                    chosen, rejected = self._rewards(reader, ids, shown, tokens).chunk(2)
                    gradient += torch.autograd.grad(F.logsigmoid(chosen - rejected).sum(), at)[0]
                total = total + gradient
        return eta * total

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState | None:
        # Free tokens have no distribution to draw from.
        if self.config.form == "individual":
            return None
        prior = self.prior.softmax(-1)
        at = prior if generator is None else prior.to(generator.device)
        drawn = torch.multinomial(at, n_users, replacement=True, generator=generator)
        return UserState(self.name, {"weights": F.one_hot(drawn, self.config.n_clusters).to(prior)})
