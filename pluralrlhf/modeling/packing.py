"""Token sequences of a reward model as prefix trees: what texts begin with in common is read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..features.shared_prefix import PackedTrees, check_shared_prefix, pack_by_owner, sort_key

if TYPE_CHECKING:
    from .model import PersonalizedRewardModel

PACKING_TOKENS = 4096


def check_packing(model: PersonalizedRewardModel, packing: str | None) -> None:
    """Raises a `ConfigError` where `packing` is asked for and the token sequences of this model cannot be packed."""
    if packing is None:
        return
    if packing != "shared_prefix":
        raise ConfigError(f"`packing` is {packing!r}; it must be 'shared_prefix', or unset for none.")
    if model.backbone is None:
        raise ConfigError("`packing: shared_prefix` needs a backbone; with frozen features there are no tokens.")
    if model.user_model.route == "backbone":
        raise ConfigError(
            f"`packing: shared_prefix`: `{model.user_model.name}` changes what the backbone reads for each user. Leave "
            "`packing` out."
        )
    if model.config.pooling != "last":
        raise ConfigError(
            f"`packing: shared_prefix` reads the last token of each text, but `pooling` is {model.config.pooling!r}. "
            "Leave `packing` out."
        )
    check_shared_prefix(model.backbone.config)


def pack(
    model: PersonalizedRewardModel,
    sequences: Sequence[Sequence[int]],
    owner: Sequence[int],
    max_tokens: int = PACKING_TOKENS,
) -> PackedTrees:
    """[`pack_by_owner`] as the model's backbone needs it."""
    flex = model.backbone.config._attn_implementation == "flex_attention"
    return pack_by_owner(
        sequences,
        owner,
        max_tokens=max_tokens,
        pad_token_id=model.config.pad_token_id or 0,
        pad_to_multiple_of=128 if flex else 1,
    )


def packed_features(
    model: PersonalizedRewardModel,
    sequences: Sequence[Sequence[int]],
    owner: Sequence[int] | None = None,
    batch_size: int = 32,
) -> Tensor:
    """(n, d) last-token states of n token sequences, of which those of one owner share what they begin with.

    Args:
        batch_size: Sequences read at once.
    """
    owner = np.zeros(len(sequences), dtype=np.int64) if owner is None else np.asarray(owner)
    # Like beginnings side by side: batches cut as few of them as can be.
    keys = [sort_key(np.asarray(ids)) for ids in sequences]
    order = sorted(range(len(sequences)), key=lambda i: (owner[i], keys[i]))
    out = model.user_model.feature_mean.new_zeros(len(sequences), model.config.feature_dim)
    for start in range(0, len(order), batch_size):
        at = order[start : start + batch_size]
        trees = pack(model, [sequences[i] for i in at], owner[at]).to(model.device)
        out[torch.tensor(at, device=out.device)] = model.packed_states(trees).to(out)
    return out
