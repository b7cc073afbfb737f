"""Simulated users behind any OpenAI-compatible server: asynchronous, patient, and honest about failures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .base import Conversation, Reply
from .endpoint import EndpointClient
from .local_user import SYSTEM, user_view

# HTML or XML tags, chat markers, code fences: a person does not talk like that, a broken server does.
MARKUP = re.compile(r"<[/!|]?[A-Za-z|][^>]*>|```|\[/?INST\]|^\s*[{\[].*[}\]]\s*$", re.DOTALL)


def fault(text: str | None, max_characters: int) -> str | None:
    """One word for what is wrong with an answer, or None."""
    if text is None or not text.strip():
        return "empty"
    if MARKUP.search(text):
        return "markup"
    return "too_long" if len(text) > max_characters else None


class EndpointUser(EndpointClient):
    """Asks a chat-completions endpoint for the user's answers.

    A request that fails, times out, or is answered with nothing or with markup is tried again; when the attempts are
    used up the conversation is marked failed (`Reply.error`), and the trainer masks it out.

    Args:
        max_characters: A longer answer is a failure.
        system: Template of the system message, with `{description}`.
        model, base_url, api_key, settings: Of `EndpointClient`.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str = "none",
        *,
        attempts: int = 4,
        timeout: float = 30.0,
        temperature: float = 0.7,
        max_tokens: int = 96,
        max_characters: int = 600,
        system: str = SYSTEM,
        **settings: Any,
    ):
        settings |= {"attempts": attempts, "timeout": timeout, "temperature": temperature, "max_tokens": max_tokens}
        super().__init__(model, base_url, api_key, **settings)
        self.max_characters, self.system = max_characters, system

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        chats = {
            (i, conversation.seed, len(conversation.turns)): user_view(conversation, self.system)
            for i, conversation in enumerate(conversations)
        }
        answers = self.ask(chats, lambda text: fault(text, self.max_characters))
        return [Reply(None, error=e) if text is None else Reply(text.strip()) for text, e in answers.values()]
