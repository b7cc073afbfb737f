"""Users within the backbone: what [`PersonalizedRewardModel`] does where its user model takes the backbone route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..features.pooling import pool
from ..features.tokenization import Messages, tokenize_response
from ..user_models import UserState, bradley_terry_loss
from .precision import full_precision, present_precision

if TYPE_CHECKING:
    from .model import PersonalizedRewardModel

_CHUNK = 64


class BackboneReader:
    """Reads texts through a model's backbone; see `user_models.backbone_route.Reader`."""

    def __init__(self, model: PersonalizedRewardModel):
        if model.backbone is None:
            raise ConfigError(f"`{model.config.user_model}` needs a backbone; it cannot work on frozen features.")
        self.model, self.backbone, self.chunk = model, model.backbone, _CHUNK
        self.precision = present_precision(model.user_model.feature_mean.device)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, soft_tokens: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() or len(input_ids) <= self.chunk:
            return self._read(input_ids, attention_mask, soft_tokens)
        parts = [
            self._read(input_ids[some], attention_mask[some], None if soft_tokens is None else soft_tokens[some])
            for some in (slice(start, start + self.chunk) for start in range(0, len(input_ids), self.chunk))
        ]
        return torch.cat(parts)

    def _read(self, input_ids: Tensor, attention_mask: Tensor, soft_tokens: Tensor | None) -> Tensor:
        shown, n_soft = attention_mask, 0
        with self.precision:
            inputs: dict[str, Any] = {"input_ids": input_ids}
            if soft_tokens is not None:
                embedded = self.backbone.get_input_embeddings()(input_ids)
                inputs = {"inputs_embeds": torch.cat([soft_tokens.to(embedded.dtype), embedded], dim=1)}
                n_soft = soft_tokens.shape[1]
                shown = torch.cat([attention_mask.new_ones(len(input_ids), n_soft), attention_mask], dim=1)
            # Counted over what is shown: padding between soft tokens and text, or in front, moves nothing.
            positions = (shown.long().cumsum(-1) - 1).clamp(min=0)
            hidden = self.backbone(
                **inputs, attention_mask=shown, position_ids=positions, use_cache=False
            ).last_hidden_state[:, n_soft:]
        return self.model.user_model.standardize(pool(hidden, attention_mask, self.model.config.pooling))


def encode(
    model: PersonalizedRewardModel,
    n_rows: int,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    context_index: Tensor | None = None,
    context_mask: Tensor | None = None,
) -> UserState:
    """State of `n_rows` users from the token ids (2N, L) of their context's pairs, or of k = 0 without any."""
    device = model.user_model.feature_mean.device
    if input_ids is None or context_index is None:
        input_ids = attention_mask = torch.zeros(0, 1, dtype=torch.long, device=device)
        context_index = torch.zeros(n_rows, 0, dtype=torch.long, device=device)
        context_mask = context_index.bool()
    reader = BackboneReader(model)
    with full_precision(device):
        return model.user_model.encode_tokens(reader, input_ids, attention_mask, context_index, context_mask)


def pair_rewards(
    model: PersonalizedRewardModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    state: UserState,
    pairs: bool,
    margin: Tensor | None = None,
    n_user_pairs: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, dict[str, Tensor]]:
    """Loss (`None` for single responses), logits (n, 1) and metrics; of pairs, the chosen rows come first."""
    if input_ids is None:
        raise ConfigError(f"`{model.config.user_model}` reads token ids: give `input_ids`, not `features`.")
    if attention_mask is None:
        attention_mask = model._mask_of(input_ids)
    head, reader = model.user_model, BackboneReader(model)
    with full_precision(input_ids.device):
        if not pairs:
            return None, head.score_tokens(reader, input_ids, attention_mask, state)[:, None], {}
        term, metrics = head.regularizer(state, n_user_pairs)
        both = state.map(lambda value: torch.cat([value, value]))
        rewards = head.score_tokens(reader, input_ids, attention_mask, both)
        loss = bradley_terry_loss(*rewards.chunk(2), margin).mean() + term
    return loss, rewards[:, None], metrics


def tokens(
    model: PersonalizedRewardModel, prompts: Sequence[Messages], responses: Sequence[Messages]
) -> tuple[Tensor, Tensor]:
    """Token ids and mask (n, L) of responses to prompts, padded on the right, on the model's device."""
    rows = [tokenize_response(model.tokenizer, p, r, model.config.max_length)[0] for p, r in zip(prompts, responses)]
    padded = model.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
    device = model.user_model.feature_mean.device
    return padded["input_ids"].to(device), padded["attention_mask"].to(device)


def encode_pairs(
    model: PersonalizedRewardModel, pairs: Sequence[dict[str, Any]], index: Tensor, mask: Tensor
) -> UserState:
    """States of several users from their labelled pairs, of which (B, K) rows are each user's."""
    if not pairs:
        return encode(model, len(index))
    prompts = [pair["prompt"] for pair in pairs]
    both = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    return encode(model, len(index), *tokens(model, prompts * 2, both), index, mask)


def text_rewards(
    model: PersonalizedRewardModel,
    prompts: Sequence[Messages],
    responses: Sequence[Messages],
    state: UserState | None,
    batch_size: int = _CHUNK,
) -> Tensor:
    """(n,) rewards of responses under the state of one user, of n users, or of an unknown user, `batch_size` at once.

    Raises:
        ConfigError: Not as many prompts as responses, or a state of another number of users.
    """
    if len(prompts) != len(responses):
        raise ConfigError(f"{len(prompts)} `prompts` and {len(responses)} `responses`; give one prompt each.")
    if not len(prompts):
        return model.user_model.feature_mean.new_zeros(0)
    state = encode(model, 1) if state is None else model._checked(state)
    if len(state) == 1 and len(prompts) != 1:
        state = state.rows(torch.zeros(len(prompts), dtype=torch.long, device=model.user_model.feature_mean.device))
    if len(state) != len(prompts):
        raise ConfigError(f"`state` holds {len(state)} users for {len(prompts)} responses; give 1 or as many.")
    reader, rewards = BackboneReader(model), []
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        ids, mask = tokens(model, prompts[some], responses[some])
        with full_precision(ids.device):
            rewards.append(model.user_model.score_tokens(reader, ids, mask, state.rows(some)))
    return torch.cat(rewards)
