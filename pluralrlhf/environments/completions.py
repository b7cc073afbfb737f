"""Answers to single prompts, for judges: from a local language model or from an endpoint."""

from __future__ import annotations

import asyncio
from typing import Any

from ..features.tokenization import padding_id
from .endpoint_user import EndpointUser
from .generation import CachedGenerator, ChatFormat


class LocalCompletion:
    """Greedy answers of a local model to single prompts, batched."""

    def __init__(self, model: Any, tokenizer: Any, *, max_new_tokens: int = 16, batch_size: int = 32):
        self.model, self.tokenizer, self.chat = model.eval(), tokenizer, ChatFormat(tokenizer)
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, prompts: list[str]) -> list[str | None]:
        out: list[str | None] = []
        for start in range(0, len(prompts), self.batch_size):
            generator = CachedGenerator(self.model, padding_id(self.tokenizer))
            batch = prompts[start : start + self.batch_size]
            generator.start([self.chat.prompt_ids([{"role": "user", "content": p}]) for p in batch])
            ids, _ = generator.generate(self.max_new_tokens, self.chat.stop_ids, temperature=0.0)
            out += [self.chat.text(tokens) for tokens in ids]
        return out


class EndpointCompletion:
    """Answers of an OpenAI-compatible server to single prompts, with `EndpointUser`'s retries; None where it failed."""

    def __init__(self, endpoint: EndpointUser):
        self.endpoint = endpoint

    def __call__(self, prompts: list[str]) -> list[str | None]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return [reply.text for reply in asyncio.run(self.endpoint.complete(chats))]
