"""`extract`: sentences of the context as they stand, as long as a summary. A control: no summariser is learned."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .base import TextUserModel, UserContext, WrittenConfig, as_text, context_messages, first_words

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Extract(TextUserModel):
    """Reward that reads what the user preferred, word for word: the first sentences of the chosen responses.

    Sentences are taken in turn, one of each chosen response, until `max_words` are full. From the `users` config it
    takes what the user wrote.

    Relations:
        - Same length and same reader as `plus`: what `plus` has over it, learning to summarise gives.
        - `random_sentence` takes sentences regardless of what was preferred.
    """

    name = "extract"
    config_class = WrittenConfig

    def texts(self, contexts: Sequence[UserContext]) -> list[str]:
        return [take(self._sources(context), self.config.max_words) for context in contexts]

    def _sources(self, context: UserContext) -> list[str]:
        if self.config.source == "pairs":
            return [as_text(pair["chosen"]) for pair in context.sorted_pairs()]
        return [m["content"] for m in context_messages(context, self.config) if m["role"] == "user"]


def sentences(text: str) -> list[str]:
    """A text's sentences, by their punctuation."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def take(sources: Sequence[str], max_words: int) -> str:
    """Sentences of several texts in turn, each once, up to `max_words` words; the first is cut if it is too long."""
    queues = [sentences(source) for source in sources]
    taken: list[str] = []
    room = max_words
    for round_number in range(max(map(len, queues), default=0)):
        for queue in queues:
            if round_number >= len(queue) or queue[round_number] in taken:
                continue
            length = len(queue[round_number].split())
            if length <= room:
                taken.append(queue[round_number])
                room -= length
            elif not taken:
                return first_words(queue[round_number], max_words)
    return " ".join(taken)
