"""The part of a long text that an encoder reads, so that texts that differ only past it are encoded once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .encoders import TextEncoder

_REST_OF_WORD = re.compile(r"\S*")
_BLOCK = 256


def read_part(texts: Sequence[str], encoder: TextEncoder) -> list[str]:
    """The texts, each without the words that lie past the encoder's `max_length`: they have the same vectors.

    A text is cut behind a whole word, since tokenizers may take half a word for another token, and stays longer than
    the limit, so that it still counts as truncated. Texts come back as they are where an encoder has no limit, reads
    the end of a text, or has a tokenizer that does not say where its tokens stand.
    """
    texts, limit, tokenizer = list(texts), encoder.max_length, encoder.tokenizer
    if not limit or not getattr(tokenizer, "is_fast", False) or tokenizer.truncation_side == "left":
        return texts
    long = [number for number, text in enumerate(texts) if len(text) > limit]
    for start in range(0, len(long), _BLOCK):
        block = long[start : start + _BLOCK]
        found = tokenizer(
            [texts[number] for number in block],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for number, offsets in zip(block, found["offset_mapping"]):
            if len(offsets) > limit:
                texts[number] = texts[number][: _REST_OF_WORD.match(texts[number], offsets[limit][1]).end()]
    return texts
