"""Simulated users played by a local language model, batched over conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..features.tokenization import padding_id
from .base import Conversation, Reply, UserProfile, stable_seed
from .generation import CachedGenerator, ChatFormat

SYSTEM = (
    "You play a person who talks to an assistant. Stay in character, answer in one or two short sentences, and never "
    "say that you play a role. Who you are: {description}"
)


def user_view(conversation: Conversation, system: str = SYSTEM) -> list[dict[str, str]]:
    """The conversation as the simulated user sees it: the profile first, the assistant's lines as the other's.

    This is the only place where a profile becomes text, and the policy's messages are never built from it.
    """
    profile: UserProfile = conversation.profile
    swap = {"user": "assistant", "assistant": "user"}
    view = [{"role": "system", "content": system.format(description=profile.description)}]
    view += [{"role": swap[m["role"]], "content": m["content"]} for m in conversation.messages if m["role"] in swap]
    return view


class LocalLMUser:
    """Answers with a transformers model, all conversations in one batch.

    Args:
        model: A causal language model.
        tokenizer: With a chat template that knows `system` messages, or pass `system_as_user=True`.
        max_new_tokens: Tokens of an answer at most.
        temperature: 0 is greedy. Sampling is seeded by the conversations, so that the same ones get the same answers.
        system: Template of the system message, with `{description}`.
        system_as_user: Whether the profile is put into a user message, for templates without system messages.
        max_replies: The user's own limit: after that many answers the user leaves.
        batch_size: Conversations answered at once.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.7,
        system: str = SYSTEM,
        system_as_user: bool = False,
        max_replies: int | None = None,
        batch_size: int = 32,
    ):
        self.model, self.tokenizer, self.chat = model.eval(), tokenizer, ChatFormat(tokenizer)
        self.max_new_tokens, self.temperature, self.system = max_new_tokens, temperature, system
        self.system_as_user, self.max_replies, self.batch_size = system_as_user, max_replies, batch_size

    def _prompt(self, conversation: Conversation) -> list[int]:
        view = user_view(conversation, self.system)
        if self.system_as_user:
            view[0]["role"] = "user"
        return self.chat.prompt_ids(view)

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        out: list[Reply] = []
        for start in range(0, len(conversations), self.batch_size):
            batch = conversations[start : start + self.batch_size]
            generator = CachedGenerator(self.model, padding_id(self.tokenizer))
            generator.start([self._prompt(c) for c in batch])
            seed = stable_seed("user", *(c.seed for c in batch), *(len(c.turns) for c in batch)) % 2**63
            dice = torch.Generator(device=generator.device).manual_seed(seed)
            ids, _ = generator.generate(self.max_new_tokens, self.chat.stop_ids, self.temperature, dice)
            for conversation, tokens in zip(batch, ids):
                text = self.chat.text(tokens)
                leaves = self.max_replies is not None and len(conversation.turns) >= self.max_replies
                # An empty answer is the simulator's failure, not something a user said.
                out.append(Reply(text, leaves) if text else Reply(None, error="empty"))
        return out
