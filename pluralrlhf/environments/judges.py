"""Judges of consistency: rules for scripted worlds, a local language model, an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ..rewards.consistency import Question, Verdict
from .base import UserProfile
from .endpoint_user import EndpointUser
from .generation import CachedGenerator, ChatFormat


class RuleJudge:
    """Judges a world's lines by what they state; a judge and an answerer in one.

    A line contradicts a profile if it states another value of an attribute, and an earlier line if the two state
    different values. A question states nothing. Words that the world does not know are not judged.

    Args:
        statements: A text -> [(attribute, value), ...], such as `ExerciseWorld.statements`.
        values: A profile -> its value of every attribute.
    """

    def __init__(
        self,
        statements: Callable[[str], list[tuple[int, int]]],
        values: Callable[[UserProfile], Sequence[int]],
    ):
        self.statements, self.values = statements, values

    def verdicts(self, pairs: Sequence[tuple[Any, str]]) -> list[Verdict]:
        out = []
        for reference, line in pairs:
            if isinstance(reference, UserProfile):
                known = dict(enumerate(self.values(reference)))
            else:
                known = dict(self.statements(reference))
            clash = any(known.get(attribute, value) != value for attribute, value in self.statements(line))
            out.append(Verdict.CONTRADICTION if clash else Verdict.CONSISTENT)
        return out

    def answers(self, items: Sequence[tuple[Sequence[str], Question]]) -> list[int | Verdict | None]:
        out: list[int | Verdict | None] = []
        for lines, question in items:
            said = [v for line in lines for a, v in self.statements(line) if str(a) == question.topic]
            out.append(said[-1] if said else None)  # what was said last is what the speaker now holds
        return out

    def questions(self, profile: UserProfile, options: Sequence[tuple[str, tuple[str, str]]]) -> list[Question]:
        """One question an attribute; `options` gives its name and the names of its two values."""
        values = self.values(profile)
        return [
            Question(f"Which {name} does this person choose?", names, values[a], topic=str(a))
            for a, (name, names) in enumerate(options)
        ]


class LocalCompletion:
    """Greedy answers of a local model to single prompts, batched."""

    def __init__(self, model: Any, tokenizer: Any, *, max_new_tokens: int = 16, batch_size: int = 32):
        self.model, self.tokenizer, self.chat = model.eval(), tokenizer, ChatFormat(tokenizer)
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, prompts: list[str]) -> list[str | None]:
        out: list[str | None] = []
        for start in range(0, len(prompts), self.batch_size):
            generator = CachedGenerator(self.model, self.tokenizer.pad_token_id)
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
