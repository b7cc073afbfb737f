"""Chat completions of an OpenAI-compatible server: retried with back-off, limited in flight, paid for once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..features.tokenization import padding_id
from .base import stable_random

Message = Mapping[str, str]


def filled(text: str | None) -> str | None:
    """The default check of an answer: one word for what is wrong with it, None where it will do."""
    return None if text and text.strip() else "empty"


class EndpointClient:
    """Asks an OpenAI-compatible server many things at once.

    A request that fails, times out or whose answer does not pass the check is tried again after a delay that doubles
    and is jittered.

    Attributes:
        failures: Failed tries by kind.
        requests: Tries.
        tokens: Prompt and completion tokens that the server reported.

    Args:
        model: Name of the model on the server.
        base_url: The server's address, such as `http://localhost:8000/v1`.
        api_key: Sent to the server; local servers take anything.
        attempts: Tries an answer at most.
        timeout: Seconds a try may take.
        backoff: Seconds before the second try; doubles for each further one, times a random factor in [0.5, 1.5].
        concurrency: Requests in flight at most.
        temperature, max_tokens: Of the answer.
        client: An `openai.AsyncOpenAI`-like client, in place of the one made from the address.

    Raises:
        ConfigError: Settings with which no request could be made.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str = "none",
        *,
        attempts: int = 5,
        timeout: float = 60.0,
        backoff: float = 0.5,
        concurrency: int = 16,
        temperature: float = 0.0,
        max_tokens: int = 256,
        client: Any = None,
    ):
        if attempts < 1 or concurrency < 1 or timeout <= 0:
            raise ConfigError(
                f"`attempts`, `concurrency`, `timeout` are {attempts}, {concurrency}, {timeout}; they must be positive."
            )
        if client is None and base_url is None:
            raise ConfigError("`base_url` is missing; pass the address of an OpenAI-compatible server.")
        self.model, self.base_url, self.api_key, self.client = model, base_url, api_key, client
        self.attempts, self.timeout, self.backoff, self.concurrency = attempts, timeout, backoff, concurrency
        self.temperature, self.max_tokens = temperature, max_tokens
        self.failures: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.requests = 0

    def delay(self, attempt: int, jitter: random.Random) -> float:
        """Seconds to wait before try number `attempt` (from 1)."""
        return self.backoff * 2 ** (attempt - 1) * (0.5 + jitter.random())

    def ask(
        self,
        chats: Mapping[Hashable, Sequence[Message]],
        check: Callable[[str | None], str | None],
        arrived: Callable[[Hashable, str], None] | None = None,
    ) -> dict[Hashable, tuple[str | None, str | None]]:
        """Answer and last error by key; one of the two is None.

        Args:
            chats: Key to messages; the jitter depends on the key.
            check: One word for what is wrong with an answer, None where it will do.
            arrived: Called with key and answer as soon as there is one.
        """
        return asyncio.run(self._ask_all(chats, check, arrived))

    async def _ask_all(self, chats, check, arrived) -> dict[Hashable, tuple[str | None, str | None]]:
        gate = asyncio.Semaphore(self.concurrency)
        async with self._open() as client:
            jobs = (self._one(client, gate, key, messages, check, arrived) for key, messages in chats.items())
            return dict(zip(chats, await asyncio.gather(*jobs)))

    def _open(self) -> AbstractAsyncContextManager:
        """A client for one event loop, to which it belongs; retries are ours, so that they are counted."""
        if self.client is not None:
            return nullcontext(self.client)
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise ConfigError("An endpoint needs the `openai` package: pip install 'pluralrlhf[llm]'.") from None
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0)

    async def _one(self, client, gate, key, messages, check, arrived) -> tuple[str | None, str | None]:
        jitter = stable_random("endpoint", key)
        error: str | None = None
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(self.delay(attempt, jitter))
            async with gate:
                text, error = await self._try(client, messages)
            error = error or check(text)
            if error is None:
                if arrived is not None:
                    arrived(key, text)
                return text, None
            self.failures[error] += 1
        return None, error

    async def _try(self, client: Any, messages: Sequence[Message]) -> tuple[str | None, str | None]:
        self.requests += 1
        request = client.chat.completions.create(
            model=self.model, messages=list(messages), temperature=self.temperature, max_tokens=self.max_tokens
        )
        try:
            answer = await asyncio.wait_for(request, self.timeout)
            usage = getattr(answer, "usage", None)
            if usage is not None:
                for kind in ("prompt", "completion"):  # servers leave out what they do not count
                    self.tokens[kind] += getattr(usage, f"{kind}_tokens", None) or 0
            return answer.choices[0].message.content, None
        except TimeoutError:
            return None, "timeout"
        except Exception as error:
            # Whatever the client raises (status, connection, malformed body) is one failed try; its kind is counted.
            return None, type(error).__name__


class Completions(ABC):
    """Answers under keys. Called with single prompts it gives their answers, None where there is none: a judge."""

    @abstractmethod
    def complete(
        self, requests: Mapping[str, Sequence[Message]], check: Callable[[str | None], str | None] = filled
    ) -> dict[str, str | None]:
        """Answers to keyed requests; None where there is none that passes the check."""

    @abstractmethod
    def cost(self) -> str:
        """One line on what was asked and paid."""

    def key(self, messages: Sequence[Message]) -> str:
        """A request's name in a store: its messages, and the model that is asked."""
        name = getattr(self, "model", None)
        content = json.dumps([name if isinstance(name, str) else "local", list(messages)])
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = self.complete({self.key(chat): chat for chat in chats})
        return [answers[self.key(chat)] for chat in chats]


class ChatEndpoint(EndpointClient, Completions):
    """Chat completions under keys, paid for once.

    Answers are appended to a file as they arrive, under the request's key: a run that was killed goes on where it
    stopped, and asks for no answer twice.

    Attributes:
        reused: Answers that were found in the store.

    Args:
        store: JSONL file of answers; without it nothing is kept.
        prices: Cost of a million prompt tokens and of a million completion tokens.
        model, base_url, api_key, settings: Of `EndpointClient`.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str = "none",
        *,
        store: str | Path | None = None,
        prices: tuple[float, float] | None = None,
        **settings: Any,
    ):
        super().__init__(model, base_url, api_key, **settings)
        self.store, self.prices = None if store is None else Path(store), prices
        self.reused = 0

    def complete(
        self,
        requests: Mapping[str, Sequence[Message]],
        check: Callable[[str | None], str | None] = filled,
    ) -> dict[str, str | None]:
        """Answers to keyed requests; None where every try failed.

        Args:
            requests: Key to messages. A key names a request for good: an answer in the store under it is used.
            check: One word for what is wrong with an answer, None where it will do. An answer that fails on every try
                is no answer.
        """
        known = self._read()
        answers: dict[str, str | None] = {key: known[key] for key in requests if key in known}
        self.reused += len(answers)
        missing = {key: messages for key, messages in requests.items() if key not in answers}
        if missing:
            with self._keeping() as keep:
                answers |= {key: text for key, (text, _) in self.ask(missing, check, keep).items()}
        return {key: answers[key] for key in requests}

    def cost(self) -> str:
        """One line: tries, failures, tokens, and the price where `prices` are given."""
        prompt, completion = self.tokens["prompt"], self.tokens["completion"]
        line = (
            f"{self.requests} requests ({sum(self.failures.values())} failed), {self.reused} answers from the store, "
        )
        line += f"{prompt} prompt and {completion} completion tokens"
        if self.prices is not None:
            line += f", {(prompt * self.prices[0] + completion * self.prices[1]) / 1e6:.4f} paid"
        return line

    def _read(self) -> dict[str, str]:
        if self.store is None or not self.store.is_file():
            return {}
        known = {}
        for line in self.store.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that was killed while it wrote
                continue
            known[row["key"]] = row["text"]
        return known

    @contextmanager
    def _keeping(self) -> Iterator[Callable[[str, str], None] | None]:
        """What keeps an answer: a line of the store."""
        if self.store is None:
            yield None
            return
        self.store.parent.mkdir(parents=True, exist_ok=True)
        with open(self.store, "a", encoding="utf-8") as file:
            if file.tell():
                # A line that a kill cut short must not swallow the first new one.
                file.write("\n")

            def keep(key: str, text: str) -> None:
                file.write(json.dumps({"key": key, "text": text}) + "\n")
                file.flush()

            yield keep


class LocalChat(Completions):
    """A transformers model with the same `complete`: greedy, in batches.

    Args:
        model: A causal language model.
        tokenizer: With a chat template.
        max_new_tokens: Tokens of an answer at most.
        batch_size: Answers written at once.
    """

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int = 256, batch_size: int = 16):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.failures: Counter[str] = Counter()

    def complete(
        self, requests: Mapping[str, Sequence[Message]], check: Callable[[str | None], str | None] = filled
    ) -> dict[str, str | None]:
        """Answers to keyed requests; None where the answer does not pass the check."""
        import torch

        from .generation import CachedGenerator, ChatFormat

        chat, keys, out = ChatFormat(self.tokenizer), list(requests), {}
        generator = CachedGenerator(self.model, padding_id(self.tokenizer))
        for start in range(0, len(keys), self.batch_size):
            some = keys[start : start + self.batch_size]
            with torch.no_grad():
                generator.start([chat.prompt_ids([dict(m) for m in requests[key]]) for key in some])
                ids, _ = generator.generate(self.max_new_tokens, chat.stop_ids, temperature=0.0)
            for key, tokens in zip(some, ids):
                text = chat.text(tokens)
                error = check(text)
                self.failures[error] += error is not None
                out[key] = None if error else text
        self.failures = +self.failures
        return out

    def cost(self) -> str:
        return "a local model: nothing paid"
