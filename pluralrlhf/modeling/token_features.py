"""What a reward model reads in token sequences: states of its backbone, or features of its frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..features.pooling import pool
from ..features.shared_prefix import PackedTrees, last_hidden_states


class TokenFeatures:
    """Methods of [`PersonalizedRewardModel`] that turn token ids into features."""

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, d) last hidden states of the backbone."""
        # A cache is of no use to a reward model, and not every backbone takes the argument.
        cache = {} if is_encoder_only(self.backbone) else {"use_cache": False}
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **cache).last_hidden_state

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, d) features of token sequences (B, L), through the backbone or the frozen encoder."""
        if attention_mask is None:
            attention_mask = self._mask_of(input_ids)
        if self.backbone is None:
            return self.encoder.encode_ids(input_ids, attention_mask).to(self.user_model.feature_mean)
        return pool(self.hidden_states(input_ids, attention_mask), attention_mask, self.config.pooling)

    def packed_states(self, trees: PackedTrees) -> Tensor:
        """(n, d) last-token states of packed sequences.

        Raises:
            ConfigError: The backbone cannot take a tree, or the model does not pool by the last token.
        """
        if self.backbone is None or self.config.pooling != "last":
            raise ConfigError("`packing: shared_prefix` needs a backbone with `pooling: last`. Leave `packing` out.")
        return last_hidden_states(self.backbone, trees)

    def _mask_of(self, input_ids: Tensor) -> Tensor:
        pad = self.config.pad_token_id
        return torch.ones_like(input_ids) if pad is None else (input_ids != pad).long()

    def _token_rewards(self, states: Tensor) -> Tensor:
        """(..., 1) rewards by `_token_head` of hidden states (..., d); in half precision under autocast alone."""
        head = self._token_head
        return head(states if torch.is_autocast_enabled(states.device.type) else states.to(head.weight.dtype))

    @property
    def _token_head(self) -> torch.nn.Module | None:
        """A linear head for everybody on a backbone's last token, which is applied before pooling as in transformers.

        The sums are then made in the same order, and training equals TRL's `RewardTrainer` to the last bit; otherwise
        Adam turns rounding into differences of 1e-5 within 20 steps.
        """
        return self.user_model.token_head if self.backbone is not None and self.config.pooling == "last" else None


def is_encoder_only(model: PreTrainedModel) -> bool:
    """Whether attention is bidirectional, as BERT's: then mean pooling is the default and there is no cache."""
    names = " ".join(type(module).__name__ for module in model.children())
    return not getattr(model.config, "is_decoder", False) and ("Encoder" in names or "Transformer" in names)
