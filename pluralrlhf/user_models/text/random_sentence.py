"""`random_sentence`: sentences of the context regardless of what was preferred. A control that knows the topics only."""

from __future__ import annotations

from collections.abc import Sequence

from ...files import json_digest
from .base import TextUserModel, UserContext, WrittenConfig, as_text, context_messages
from .extract import take


class RandomSentence(TextUserModel):
    """Reward that reads a response of each pair, chosen or rejected by the toss of a hash.

    The toss depends on the two texts and not on which was preferred, so that the text says nothing of the user beyond
    what the pairs are about.

    Relations:
        - `extract` takes the chosen one always.
    """

    name = "random_sentence"
    config_class = WrittenConfig

    def texts(self, contexts: Sequence[UserContext]) -> list[str]:
        return [take(self._sources(context), self.config.max_words) for context in contexts]

    def _sources(self, context: UserContext) -> list[str]:
        if self.config.source != "pairs":
            messages = context_messages(context, self.config)
            return [m["content"] for m in sorted(messages, key=lambda m: json_digest(m["content"]))]
        sides = [sorted((as_text(p["chosen"]), as_text(p["rejected"])), key=json_digest) for p in context.pairs]
        return [first for first, _ in sorted(sides, key=json_digest)]
