"""Simulated users behind any OpenAI-compatible server: asynchronous, patient, and honest about failures."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .base import Conversation, Reply, stable_random
from .endpoint import check_endpoint, open_client
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


class EndpointUser:
    """Asks a chat-completions endpoint for the user's answers.

    Requests of a batch run at the same time up to `concurrency`. A request that fails, times out, or is answered with
    nothing or with markup is tried again after a delay that doubles and is jittered; when the attempts are used up the
    conversation is marked failed (`Reply.error`), and the trainer masks it out. `failures` counts every failed attempt
    by kind, `requests` all attempts.

    Args:
        model: Name of the model on the server.
        base_url: The server's address, such as `http://localhost:8000/v1`.
        api_key: Sent to the server; local servers take anything.
        attempts: Tries a reply at most.
        timeout: Seconds a try may take.
        backoff: Seconds before the second try; doubles for each further one, times a random factor in [0.5, 1.5].
        concurrency: Requests in flight at most.
        temperature, max_tokens: Of the answer.
        max_characters: A longer answer is a failure.
        system: Template of the system message, with `{description}`.
        client: An `openai.AsyncOpenAI`-like client, in place of the one made from the address.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str = "none",
        *,
        attempts: int = 4,
        timeout: float = 30.0,
        backoff: float = 0.5,
        concurrency: int = 16,
        temperature: float = 0.7,
        max_tokens: int = 96,
        max_characters: int = 600,
        system: str = SYSTEM,
        client: Any = None,
    ):
        check_endpoint(attempts, concurrency, timeout, base_url, client)
        self.model, self.base_url, self.api_key, self.client = model, base_url, api_key, client
        self.attempts, self.timeout, self.backoff, self.concurrency = attempts, timeout, backoff, concurrency
        self.temperature, self.max_tokens, self.max_characters = temperature, max_tokens, max_characters
        self.system = system
        self.failures: Counter[str] = Counter()
        self.requests = 0

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        chats = [user_view(conversation, self.system) for conversation in conversations]
        seeds = [(conversation.seed, len(conversation.turns)) for conversation in conversations]
        return asyncio.run(self.complete(chats, seeds))

    async def complete(
        self, chats: Sequence[list[dict[str, str]]], seeds: Sequence[tuple] | None = None
    ) -> list[Reply]:
        """One reply for each chat, at most `concurrency` requests at a time; `seeds` make the jitter repeatable."""
        seeds = seeds or [(i,) for i in range(len(chats))]
        gate = asyncio.Semaphore(self.concurrency)
        if self.client is not None:
            return list(await asyncio.gather(*(self._reply(self.client, gate, c, s) for c, s in zip(chats, seeds))))
        async with open_client(self.base_url, self.api_key) as client:
            return list(await asyncio.gather(*(self._reply(client, gate, c, s) for c, s in zip(chats, seeds))))

    async def _reply(self, client: Any, gate: asyncio.Semaphore, messages: list, seed: tuple) -> Reply:
        jitter = stable_random("jitter", *seed)
        error: str | None = None
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(self.delay(attempt, jitter))
            async with gate:
                text, error = await self._ask(client, messages)
            if error is None:
                return Reply(text.strip())
            self.failures[error] += 1
        return Reply(None, error=error)

    def delay(self, attempt: int, jitter: random.Random) -> float:
        """Seconds to wait before try number `attempt` (from 1)."""
        return self.backoff * 2 ** (attempt - 1) * (0.5 + jitter.random())

    async def _ask(self, client: Any, messages: list[dict[str, str]]) -> tuple[str | None, str | None]:
        self.requests += 1
        request = client.chat.completions.create(
            model=self.model, messages=messages, temperature=self.temperature, max_tokens=self.max_tokens
        )
        try:
            answer = await asyncio.wait_for(request, self.timeout)
            text = answer.choices[0].message.content
        except TimeoutError:
            return None, "timeout"
        except Exception as error:
            # Whatever the client raises (status, connection, malformed body) is one failed try; its kind is counted.
            return None, type(error).__name__
        return text, fault(text, self.max_characters)
