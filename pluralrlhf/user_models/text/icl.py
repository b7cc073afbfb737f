"""`icl`: the user's labelled pairs themselves stand in front of the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Message, TextConfig, TextUserModel, UserContext, as_text, context_messages


class ICL(TextUserModel):
    """Reward that reads the context as it is, as a chat in front of the prompt.

    References:
        - The baseline "in-context learning" of Nam et al. 2025, https://arxiv.org/abs/2507.13579

    Inputs:
        | context | what the reward model reads | output |
        |---|---|---|
        | K pairs, or the user's row | the context's messages, then prompt and response | (B,) |

    Relations:
        - `plus` reads a summary of the same messages; `extract` a few sentences of them.
    """

    name = "icl"
    config_class = TextConfig

    def texts(self, contexts: Sequence[UserContext]) -> list[str]:
        if self.config.source != "pairs":
            return ["\n".join(m["content"] for m in context_messages(c, self.config)) for c in contexts]
        return [
            "\n".join(f"{as_text(p['chosen'])} / not: {as_text(p['rejected'])}" for p in c.sorted_pairs())
            for c in contexts
        ]

    def prefixes(self, contexts: Sequence[UserContext]) -> list[list[Message]]:
        return [context_messages(context, self.config) for context in contexts]
