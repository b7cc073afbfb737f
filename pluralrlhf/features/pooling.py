"""One vector a text out of a backbone's hidden states; for frozen encoders and trainable backbones alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError

POOLING_MODES = ("last", "mean", "cls")


def last_token_index(attention_mask: Tensor) -> Tensor:
    """Position of each row's last attended token, whichever side the padding is on.

    Read from the mask and never from pad ids: with pad == eos, or a pad token in the text, ids point elsewhere.

    Args:
        attention_mask: (B, L), nonzero where a token is real.

    Returns:
        (B,) int64; 0 for a row without any token.
    """
    positions = torch.arange(1, attention_mask.size(1) + 1, device=attention_mask.device)
    return ((attention_mask != 0).long() * positions).argmax(dim=1)


def pool(hidden: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """Pools hidden states into one vector a text; padding, on either side, changes nothing.

    Args:
        hidden: (B, L, d) hidden states.
        attention_mask: (B, L), nonzero where a token is real.
        mode: `last` (the last real token, for decoders), `mean` (over the real tokens) or `cls` (the first real one).

    Returns:
        (B, d), in the dtype of `hidden`.

    Raises:
        ConfigError: for an unknown `mode`.
    """
    if mode == "mean":
        real = (attention_mask != 0).unsqueeze(-1)
        # A padded row of a left-padded batch may hold NaN, which 0 * NaN would let through.
        total = hidden.float().masked_fill(~real, 0.0).sum(dim=1)
        return (total / real.sum(dim=1).clamp(min=1)).to(hidden.dtype)
    if mode == "last":
        index = last_token_index(attention_mask)
    elif mode == "cls":
        index = (attention_mask != 0).long().argmax(dim=1)
    else:
        raise ConfigError(f"`pooling`: found {mode!r}. Choose one of {', '.join(POOLING_MODES)}.")
    return hidden[torch.arange(hidden.size(0), device=hidden.device), index]
