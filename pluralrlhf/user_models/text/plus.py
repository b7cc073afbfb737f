"""`plus`: a language model writes a summary of the user, the reward model reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError, loading
from ...features.rendering import neutralize_special_tokens
from ...features.tokenization import padding_id
from ...hub import HUB_OPTIONS, hub_copy
from .base import ASK, Message, TextUserModel, UserContext, WrittenConfig, context_messages, first_words

FOLDER = "summarizer"


@dataclass
class PlusConfig(WrittenConfig):
    """Settings of `plus`.

    Args:
        summarizer: Folder or id of the language model that writes summaries. A name without a folder in front of it is
            looked for beside the saved reward model.
        max_new_tokens: Longest summary, in tokens.
        max_pairs: Most pairs of a context that are read: `SummarizerTrainer` sets as many as it trained on, since a
            summariser misreads longer histories than it has met. Unset: all of them.
        batch_size: Contexts summarised at once.
    """

    summarizer: str = FOLDER
    max_new_tokens: int = 64
    max_pairs: int | None = None
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ConfigError(f"`max_pairs` is {self.max_pairs}; give at least 1, or leave it out.")


class Plus(TextUserModel):
    """Reward that reads a learned summary of the context; `SummarizerTrainer` trains both at the same time.

    Summaries are greedy and do not depend on the order of the pairs, so that a context always gives the same text.

    References:
        - Nam et al. 2025, PLUS, https://arxiv.org/abs/2507.13579

    Inputs:
        | context | what the reward model reads | output |
        |---|---|---|
        | K pairs, or the user's row | a summary as a message, then prompt and response | (B,) |

    Relations:
        - `plus_untrained`: the initial summariser, the reward model trained. `plus_frozen_rm`: the reward model as it
          was after its warm-up, the summariser trained.
    """

    name = "plus"
    config_class = PlusConfig

    def __init__(self, feature_dim: int, config: PlusConfig):
        super().__init__(feature_dim, config)
        # In a list, because it is a model of its own: it is saved beside this one and never part of its weights.
        self._summarizer: list[tuple[Any, Any]] = []
        self._known: dict[str, str] = {}

    def attach(self, model: Any, tokenizer: Any) -> None:
        """Sets the summariser; summaries written by an earlier one are forgotten."""
        self._summarizer[:] = [(model, tokenizer)]
        self._known.clear()

    def load(self, folder: str | Path | None, **options) -> None:
        """Loads the summariser that belongs to a saved reward model, in a folder or on the Hub.

        Args:
            folder: The reward model's folder or id.
            options: With which the reward model was loaded from the Hub (`revision`, `token`, `cache_dir`,
                `local_files_only`); `revision` is the reward model's and not that of a summariser with an id of its own.

        Raises:
            ConfigError: There is none.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        name = self.config.summarizer
        with loading("summarizer", folder or name):
            found = folder and hub_copy(folder, f"{name}/config.json", **options)
        beside = Path(found or folder or ".") / name
        source = str(beside) if (beside / "config.json").is_file() else name
        if source == FOLDER:
            raise ConfigError(
                f"There is no summariser at {beside}. Train one with `pluralrlhf train summarizer`, or name one in "
                '`user_model_kwargs`: {"summarizer": FOLDER_OR_ID}.'
            )
        where = {key: options[key] for key in HUB_OPTIONS if key in options}
        with loading("summarizer", source):
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **where)
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
        self.attach(model.to(self.feature_mean.device).eval(), tokenizer)

    @property
    def summarizer(self) -> tuple[Any, Any]:
        """The language model and its tokenizer."""
        if not self._summarizer:
            raise ConfigError("`plus` has no summariser yet: call `user_model.load(folder)` or `attach(...)` first.")
        return self._summarizer[0]

    def texts(self, contexts: Sequence[UserContext]) -> list[str]:
        chats = [context_messages(context.first(self.config.max_pairs), self.config) for context in contexts]
        keys = [json.dumps(chat, sort_keys=True) for chat in chats]
        new = {key: chat for key, chat in zip(keys, chats) if chat and key not in self._known}
        if new:
            self._known.update(zip(new, self._write(list(new.values()))))
        return [self._known[key] if chat else "" for key, chat in zip(keys, chats)]

    def _write(self, chats: Sequence[list[Message]]) -> list[str]:
        """Greedy summaries; contexts of like length share a batch."""
        model, tokenizer = self.summarizer
        rows = [request_ids(tokenizer, chat) for chat in chats]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = [""] * len(rows)
        training = model.training
        model.eval()
        for start in range(0, len(order), self.config.batch_size):
            some = order[start : start + self.config.batch_size]
            for i, text in zip(some, write(model, tokenizer, [rows[i] for i in some], self.config.max_new_tokens)):
                out[i] = first_words(text, self.config.max_words)
        model.train(training)
        return out


def request(chat: Sequence[Message]) -> list[Message]:
    """The context with the question for a summary: the summariser's prompt."""
    if chat and chat[-1]["role"] == "user":
        return [*chat[:-1], {"role": "user", "content": f"{chat[-1]['content']}\n\n{ASK}"}]
    return [*chat, {"role": "user", "content": ASK}]


def request_ids(tokenizer: Any, chat: Sequence[Message]) -> list[int]:
    """Tokens of the summariser's prompt; strings in it that look like special tokens are text."""
    messages = [{**m, "content": neutralize_special_tokens(m["content"], tokenizer)} for m in request(chat)]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    )


@torch.no_grad()
def write(model: Any, tokenizer: Any, rows: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    """Greedy continuations of prompts given as tokens."""
    width = max(map(len, rows))
    pad = padding_id(tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad,
    )
    return [clean(text) for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


def clean(text: str) -> str:
    """A summary on one line."""
    return " ".join(text.split())
