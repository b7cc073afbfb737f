"""Token ids of a response to a prompt, for backbones that are part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rendering import neutralize_special_tokens, render

Messages = str | Sequence[dict[str, str]]


def as_messages(text: Messages, role: str) -> list[dict[str, str]]:
    """A text as one message of `role`; message lists as they are."""
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def padding_id(tokenizer: Any) -> int:
    """The id that fills up rows of token ids, which no mask shows: that of padding, or of the end where there is none."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(number for number in ids if number is not None)


def tokenize_response(
    tokenizer: Any, prompt: Messages, response: Messages, max_length: int | None = None
) -> tuple[list[int], bool]:
    """Token ids of the conversation that ends with the response, as TRL's `RewardTrainer` makes them.

    Message lists go through the tokenizer's chat template, with special-token strings in their content neutralised;
    plain texts, and tokenizers without a template, are joined and closed with the end-of-sequence token.

    Returns:
        (ids, truncated): past `max_length` the beginning is cut, so that the response is what remains.
    """
    if isinstance(prompt, str) and isinstance(response, str):
        text = neutralize_special_tokens(prompt + response, tokenizer)
    else:
        messages = as_messages(prompt, "user") + as_messages(response, "assistant")
        if tokenizer.chat_template:
            messages = [{**m, "content": neutralize_special_tokens(m["content"], tokenizer)} for m in messages]
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
            return _cut(list(ids), max_length)
        text = neutralize_special_tokens(render(messages), tokenizer)
    return _cut(list(tokenizer(text + (tokenizer.eos_token or ""))["input_ids"]), max_length)


def _cut(ids: list[int], max_length: int | None) -> tuple[list[int], bool]:
    if max_length is None or len(ids) <= max_length:
        return ids, False
    return ids[-max_length:], True
