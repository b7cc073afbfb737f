"""What the text-route methods share: what is known of a user, as messages, and a reward that reads a text of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError, DataError
from ...files import json_digest
from ..base import STATE_SCHEMA, UserModel, UserState, mlp

SUMMARY = "Here is a summary of my preferences: {text}"
PREFER, OVER, ASK = "I prefer", "to", "What do I prefer?"
SURVEY = "Ask me about myself."
SOURCES = ("pairs", "conversations", "profile", "survey")

Message = dict[str, str]


@dataclass(frozen=True)
class UserContext:
    """What may be read about one user, for one target.

    Args:
        pairs: Labelled pairs (`prompt`, `chosen`, `rejected` as texts or message lists); none of them shares an item
            with the target.
        user: The user's row of the `users` config; only for methods that declare that they read it.
        hidden_items: Items of the target: what the user wrote about them is not read.
    """

    pairs: Sequence[dict[str, Any]] = ()
    user: dict[str, Any] | None = None
    hidden_items: frozenset[str] = frozenset()

    def sorted_pairs(self) -> list[dict[str, Any]]:
        """The pairs in an order that depends on their content alone, so that the order given changes nothing."""
        return sorted(self.pairs, key=lambda pair: json_digest([pair[k] for k in ("prompt", "chosen", "rejected")]))

    def first(self, n: int | None) -> UserContext:
        """The context with `n` of its pairs at most, the same ones whatever their order and whichever sides were chosen."""
        if n is None or len(self.pairs) <= n:
            return self
        key = [
            json_digest([pair["prompt"], *sorted(map(json_digest, (pair["chosen"], pair["rejected"])))])
            for pair in self.pairs
        ]
        kept = sorted(range(len(key)), key=key.__getitem__)[:n]
        return dataclasses.replace(self, pairs=[self.pairs[i] for i in kept])


@dataclass
class TextConfig:
    """Settings that text-route methods share.

    Args:
        reader: `prefix`: the text is a message in front of the prompt, read by a backbone that is trained.
            `embedding`: the text's frozen features meet those of the response (for `encoder: ...`).
        source: What is read: `pairs`, or from the `users` config past `conversations` (unlabelled), the `profile`
            (a text) or the `survey` (`attributes`, questions and answers).
        context_prompts: Show the prompts of the context's pairs as well as the responses.
        context_words: Longest response of a context pair, in words: the rest is left out. Unset: all of it.
        hidden: Width of the reward's hidden layers (`embedding`).
    """

    reader: Literal["prefix", "embedding"] = "prefix"
    source: Literal["pairs", "conversations", "profile", "survey"] = "pairs"
    context_prompts: bool = True
    context_words: int | None = None
    hidden: int = 256

    def __post_init__(self):
        if self.reader not in ("prefix", "embedding"):
            raise ConfigError(f"`reader` is {self.reader!r}; it must be 'prefix' or 'embedding'.")
        if self.source not in SOURCES:
            raise ConfigError(f"`source` is {self.source!r}; it must be one of {', '.join(SOURCES)}.")
        for name in ("context_words", "max_words"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` is {value}; it must be at least 1.")


@dataclass
class WrittenConfig(TextConfig):
    """Settings of the methods that write or choose what is read of a user.

    Args:
        max_words: Longest text, in words.
    """

    max_words: int = 50


@dataclass
class TextState(UserState):
    """Users as texts.

    Args:
        texts: One text a user, for people; empty for an unknown user.
        prefixes: The messages that the reward model reads for each user, in front of the prompt.
    """

    texts: list[str] = field(default_factory=list)
    prefixes: list[list[Message]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, index: Tensor | slice) -> TextState:
        picked = range(len(self))[index] if isinstance(index, slice) else [int(i) for i in index]
        rest = {"texts": [self.texts[i] for i in picked], "prefixes": [self.prefixes[i] for i in picked]}
        return dataclasses.replace(self, tensors={k: v[index] for k, v in self.tensors.items()}, **rest)

    @classmethod
    def cat(cls, states: Sequence[TextState]) -> TextState:
        rest = {name: [value for state in states for value in getattr(state, name)] for name in ("texts", "prefixes")}
        return dataclasses.replace(super().cat(states), **rest)

    def to_json(self) -> dict[str, Any]:
        if len(self) != 1:
            raise ConfigError(f"`to_json` takes the state of one user, this one holds {len(self)}. Use `state.rows`.")
        content = {"schema": STATE_SCHEMA, "method": self.method, "summary": self.texts[0]}
        if self.prefixes[0] != summary_prefix(self.texts[0]):
            content["prefix"] = self.prefixes[0]
        return {**content, "edited": False, **self.provenance}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TextState:
        """Reads what `to_json` wrote; once `edited`, the `summary` alone counts.

        Raises:
            ConfigError: Another schema, or no `summary`.
        """
        if data.get("schema") != STATE_SCHEMA or not isinstance(data.get("summary"), str) or "method" not in data:
            raise ConfigError(
                f"Not a user summary of schema {STATE_SCHEMA} (found schema {data.get('schema')!r}, keys "
                f"{sorted(data)}). Write one with `pluralrlhf user summarize`."
            )
        text, prefix = data["summary"], data.get("prefix")
        if prefix is None or data.get("edited"):
            prefix = summary_prefix(text)
        rest = {k: v for k, v in data.items() if k not in ("schema", "method", "summary", "prefix")}
        return cls(data["method"], {"none": torch.zeros(1, 0)}, rest, [text], [prefix])


class TextUserModel(UserModel):
    """Base of the text-route methods: subclasses implement `texts`, and `prefixes` where the reader sees more.

    Args:
        feature_dim: d, size of a response's features: the backbone's last token state, or frozen features.
        config: [`TextConfig`] or a dataclass with its fields.
    """

    route: ClassVar[str] = "text"
    config_class: ClassVar[type] = TextConfig

    def __init__(self, feature_dim: int, config: Any):
        super().__init__(feature_dim, config)
        if config.reader == "prefix":
            self.head = nn.Linear(feature_dim, 1, bias=False)
        else:
            self.response = nn.Linear(feature_dim, config.hidden)
            self.text = nn.Linear(feature_dim, config.hidden)
            # From the start a text goes with what is like it, which holds of topics that training has not seen, too.
            self.text.load_state_dict(self.response.state_dict())
            self.head = mlp([3 * config.hidden, config.hidden, 1])

    @property
    def token_head(self) -> nn.Linear | None:
        return self.head if self.config.reader == "prefix" else None

    @property
    def reads_users(self) -> bool:
        """Whether the method reads the `users` config; nothing else of it reaches a reward model."""
        return self.config.source != "pairs"

    # Text

    def texts(self, contexts: Sequence[UserContext]) -> list[str]:
        """One text a user; empty where nothing is known."""
        raise NotImplementedError

    def prefixes(self, contexts: Sequence[UserContext]) -> list[list[Message]]:
        """The messages in front of the prompt, for each user; none where nothing is known."""
        return [summary_prefix(text) for text in self.texts(contexts)]

    # Reward

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        """State of B users from the features of their texts: a text is the first side of the one pair of a context.

        With `reader: prefix` the text is among the tokens of the response, and the state is empty.
        """
        if self.config.reader == "prefix":
            return UserState(self.name, {"none": context_features.new_zeros(len(context_index), 0)})
        known = context_mask.any(1) if context_mask.shape[1] else context_mask.new_zeros(len(context_mask))
        state = context_features.new_zeros(len(context_index), self.feature_dim)
        if known.any():
            state[known] = context_features[:, 0][context_index[known, 0]]
        return UserState(self.name, {"text": state})

    def score(self, features: Tensor, state: UserState) -> Tensor:
        if self.config.reader == "prefix":
            return self.head(features).squeeze(-1)
        response, text = self.response(features), self.text(state["text"])
        return self.head(torch.cat([response, text, response * text], -1)).squeeze(-1)


def summary_prefix(text: str) -> list[Message]:
    """A summary as the message that a reward model, or any other model, reads first."""
    return [{"role": "system", "content": SUMMARY.format(text=text)}] if text.strip() else []


def as_text(value: Any) -> str:
    """A text, or the contents of a message list."""
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


def pair_messages(pairs: Sequence[dict[str, Any]], prompts: bool = True, words: int | None = None) -> list[Message]:
    """Labelled pairs as a chat: what is preferred is told by the place of a message, never by marks within a text."""
    out: list[Message] = []

    def shown(response: Any) -> str:
        text = as_text(response)
        return text if words is None else first_words(text, words)

    for pair in pairs:
        opening = f"{as_text(pair['prompt'])}\n{PREFER}" if prompts and as_text(pair["prompt"]) else PREFER
        out += [
            {"role": "user", "content": opening},
            {"role": "assistant", "content": shown(pair["chosen"])},
            {"role": "user", "content": OVER},
            {"role": "assistant", "content": shown(pair["rejected"])},
        ]
    return out


def user_messages(
    user: dict[str, Any] | None, source: str, hidden_items: frozenset[str] = frozenset()
) -> list[Message]:
    """What the `users` config holds of a user, as a chat; none where it holds nothing.

    A conversation is a list of messages, or `{"reason", "item_ids"}`: what the user wrote about items, which is left out
    where it is about one of `hidden_items`.

    Raises:
        DataError: `attributes` or `conversations` are not the JSON that the contract asks for.
    """
    if user is None:
        return []
    if source == "profile":
        return [{"role": "user", "content": user["profile"]}] if user.get("profile") else []
    column = "attributes" if source == "survey" else "conversations"
    try:
        value = json.loads(user[column]) if user.get(column) else None
        if value is None:
            return []
        if source == "survey":
            answers = value.items()
            asked = [({"role": "assistant", "content": q}, {"role": "user", "content": str(a)}) for q, a in answers]
            # Chat templates want a user's message first.
            return [{"role": "user", "content": SURVEY}, *(message for pair in asked for message in pair)]
        out: list[Message] = []
        for conversation in value:
            if isinstance(conversation, list):
                out += [{"role": m["role"], "content": m["content"]} for m in conversation]
            elif not hidden_items & set(conversation["item_ids"]):
                out.append({"role": "user", "content": conversation["reason"]})
        return out
    except (ValueError, AttributeError, KeyError, TypeError):
        expected = "an object of questions and answers" if source == "survey" else "a list of message lists"
        raise DataError(
            f"not the JSON that is expected (user {user.get('user_id')!r})",
            f"Give {expected}.",
            file="users",
            column=column,
        ) from None


def context_messages(context: UserContext, config: Any) -> list[Message]:
    """All that a method may read of a user, as a chat."""
    if config.source == "pairs":
        return pair_messages(context.sorted_pairs(), config.context_prompts, config.context_words)
    # Who has no context pair is unknown: then the owner of the context cannot be told either.
    return user_messages(context.user, config.source, context.hidden_items)


def first_words(text: str, n: int) -> str:
    """The first `n` words of a text."""
    words = text.split()
    return text if len(words) <= n else " ".join(words[:n])
