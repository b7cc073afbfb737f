"""A neural process (GPO): a transformer reads the labelled pairs as a set and answers for a target token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .base import UserModel, UserState
from .linear import gather_pairs
from .settings import check_sizes


@dataclass
class NeuralProcessConfig:
    """Settings of `neural_process`.

    Args:
        width: Size of a token.
        layers: Number of attention layers.
        heads: Attention heads of a layer.
        hidden: Width of a layer's MLP.
        dropout: Dropout of the layers' outputs in training.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    hidden: int = 128
    dropout: float = 0.1

    def __post_init__(self):
        check_sizes(self, "neural_process", width=1, layers=1, heads=1, hidden=1, dropout=0)
        if self.dropout >= 1:
            raise ConfigError(f"`dropout` of `neural_process` is {self.dropout}; it must be below 1.")
        if self.width % self.heads:
            raise ConfigError(f"`width` of `neural_process` is {self.width}, no multiple of `heads` ({self.heads}).")


class AttentionLayer(nn.Module):
    """A pre-norm transformer layer whose queries and keys may be different tokens."""

    def __init__(self, config: NeuralProcessConfig):
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        # A bias of the keys adds the same to every logit of a softmax: it could not be told.
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, width))

    def forward(self, tokens: Tensor, source: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Tokens (U, R, w) that read a context's keys and values where the mask (U, C) is true."""
        query = self._heads(self.query(self.norm(tokens)))
        read = F.scaled_dot_product_attention(query, *source, attn_mask=mask[:, None, None])
        tokens = tokens + self.dropout(self.out(read.transpose(1, 2).flatten(-2)))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))

    def source(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (U, heads, C, w / heads) each, of context tokens (U, C, w)."""
        context = self.norm(context)
        return self._heads(self.key(context)), self._heads(self.value(context))

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class NeuralProcess(UserModel):
    r"""In-context regression of rewards: context tokens attend to each other, a target token attends to them.

    Context tokens are projections of :math:`e_i^+ - e_i^-`, without positions, beside one learned token that stands
    for no evidence (k = 0 is that token alone); the target token is a projection of e(x, y). Each layer lets the target
    read what the context's tokens are at that layer, and never the other way round, so that responses are scored
    independently of each other. The published model outputs a preference distribution over the options of a question;
    here it is the reward of a response.

    Args:
        feature_dim: d.
        config: `NeuralProcessConfig`.

    References:
        - Zhao et al. 2024, Group Preference Optimization, https://arxiv.org/abs/2310.11523
        - Nguyen and Grover 2022, Transformer Neural Processes, https://arxiv.org/abs/2207.04179

    Inputs:
        | context | state | features | output |
        |---|---|---|---|
        | (N, 2, d), (B, K), (B, K) | `tokens` (B, layers, K + 1, w), `mask` (B, K + 1) | (B, d) | (B,) |

    Relations:
        - One layer of linear attention without an MLP is `fast_weights`.
    """

    name = "neural_process"
    config_class = NeuralProcessConfig

    def __init__(self, feature_dim: int, config: NeuralProcessConfig):
        super().__init__(feature_dim, config)
        self.context_in = nn.Linear(feature_dim, config.width, bias=False)
        self.target_in = nn.Linear(feature_dim, config.width)
        self.nothing = nn.Parameter(torch.randn(config.width) * 0.1)
        self.layers = nn.ModuleList(AttentionLayer(config) for _ in range(config.layers))
        self.out_norm = nn.LayerNorm(config.width, bias=False)  # a bias would shift both responses alike
        self.out = nn.Linear(config.width, 1, bias=False)

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        values = self.context_in(context_features[:, 0] - context_features[:, 1])
        tokens = gather_pairs(values, context_index, context_mask)
        tokens = torch.cat([self.nothing.expand(len(tokens), 1, -1), tokens], dim=1)
        mask = F.pad(context_mask.bool(), (1, 0), value=True)
        levels = [tokens]
        for layer in self.layers[:-1]:
            levels.append(layer(levels[-1], layer.source(levels[-1]), mask))
        return UserState(self.name, {"tokens": torch.stack(levels, dim=1), "mask": mask})

    def _read(self, features: Tensor, state: UserState) -> Tensor:
        """(U, R) rewards of each user's own responses (U, R, d)."""
        target = self.target_in(features)
        for level, layer in enumerate(self.layers):
            target = layer(target, layer.source(state["tokens"][:, level]), state["mask"])
        return self.out(self.out_norm(target)).squeeze(-1)

    def score(self, features: Tensor, state: UserState) -> Tensor:
        return self._read(features[:, None], state).squeeze(1)

    def score_pair(self, chosen: Tensor, rejected: Tensor, state: UserState) -> tuple[Tensor, Tensor]:
        # The keys and values of a context are most of the work: once for both.
        return self._read(torch.stack([chosen, rejected], dim=1), state).unbind(1)

    def score_matrix(self, features: Tensor, state: UserState, max_elements: int = 1 << 22) -> Tensor:
        size = len(features) * max(self.config.hidden, state["mask"].shape[1] * self.config.heads, self.feature_dim)
        block = max(1, max_elements // max(1, size))
        parts = [state.rows(slice(start, start + block)) for start in range(0, len(state), block)]
        return torch.cat([self._read(features.expand(len(part), -1, -1), part) for part in parts])
