"""Batches for text-route user models: a user's text is part of what the reward model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..features.prefix import PrefixTokenizer
from ..features.tokenization import as_messages
from ..features.truncation import read_part
from ..user_models.text import UserContext
from ..user_models.text.base import summary_prefix
from .pair_data import SIDES, PairData

PairRow = dict[str, Any]
_MAX_EMBEDDED = 20_000


def pair_data(model: Any, *args: Any, users: Any = None, **kwargs: Any) -> PairData:
    """[`PairData`] of the route that the model's user model takes."""
    if model.user_model.route == "text":
        return TextPairData(model, *args, users=users, **kwargs)
    return PairData(model, *args, **kwargs)


class TextPairData(PairData):
    """[`PairData`] whose contexts become texts.

    With `reader: prefix` the messages about the user stand in front of prompt and response, and there are no context
    tensors; with `reader: embedding` the text's frozen features are the one context pair of each row.

    Args:
        users: Rows of the `users` config, for methods that read it; others never see it.
    """

    def __init__(self, model: Any, *args: Any, users: Any = None, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        head = model.user_model
        wanted = "embedding" if self.frozen else "prefix"
        if head.config.reader != wanted:
            kind = "a frozen encoder" if self.frozen else "a backbone"
            raise ConfigError(
                f"`reader` of `{head.name}` is {head.config.reader!r}, but the model has {kind}: set "
                f'`user_model_kwargs: {{"reader": "{wanted}"}}`.'
            )
        self.users: dict[str, Any] = {}
        if head.reads_users:
            if users is None:
                raise ConfigError(
                    f"`{head.name}` with `source: {head.config.source}` reads the `users` config: pass `users`."
                )
            self.users = {row["user_id"]: row for row in users}
        if hasattr(head, "load") and not head._summarizer:
            head.load(model.config.name_or_path or None, **model.hub_options)
        self._tokenizer = None if self.frozen else PrefixTokenizer(model.tokenizer)
        self._rows: dict[int, PairRow] = {}
        self._texts_cut = 0
        self._embedded: dict[str, Tensor] = {}

    def _texts(self, name: str, dataset: Any):
        # As messages, also where they are plain texts: what stands in front must not change the rest.
        for prompt, chosen, rejected in super()._texts(name, dataset):
            yield as_messages(prompt, "user"), as_messages(chosen, "assistant"), as_messages(rejected, "assistant")

    def row(self, number: int) -> PairRow:
        """The texts of a global row."""
        number = int(number)
        if number not in self._rows:
            for name, (low, high) in self.history.splits.items():
                if low <= number < high:
                    row = self.splits[name][number - low]
                    self._rows[number] = {key: row[key] for key in ("prompt", *SIDES, "pair_id", "user_id")}
                    break
            else:
                raise DataError(f"no row {number}", "Add the split first.")
        return self._rows[number]

    def user_contexts(
        self, context_rows: np.ndarray, flip: np.ndarray | None = None, targets: np.ndarray | None = None
    ) -> list[UserContext]:
        """What may be read of each row's user: (B, K) context rows, -1 where there is none, to B contexts.

        Args:
            targets: (B,) target rows, for sources that hold what users wrote about items: none of it that is about a
                target's items is read.
        """
        items = self._target_items(targets, len(context_rows))
        flip = np.zeros(context_rows.shape, bool) if flip is None else flip
        known: dict[tuple, UserContext] = {}
        out = []
        for rows, flipped, hidden in zip(context_rows, flip, items):
            shown = rows >= 0
            shown_pairs = tuple(sorted(zip(rows[shown].tolist(), flipped[shown].tolist())))
            key = shown_pairs, hidden
            if key not in known:
                pairs = [self._pair(row, turned) for row, turned in shown_pairs]
                # The owner of the context, not of the target: a control that shows another user's context must
                # bring that user's profile as well.
                asked = bool(shown_pairs and self.users)
                owner = self.users.get(self.row(shown_pairs[0][0])["user_id"]) if asked else None
                known[key] = UserContext(pairs, owner, hidden)
            out.append(known[key])
        return out

    def _target_items(self, targets: np.ndarray | None, n: int) -> list[frozenset[str]]:
        if self.model.user_model.config.source != "conversations":
            return [frozenset()] * n
        if targets is None:
            if any("item_ids" in (row["conversations"] or "") for row in self.users.values()):
                raise ConfigError("What users wrote about items needs the targets, whose items must stay hidden.")
            return [frozenset()] * n
        history = self.history
        return [frozenset(history.item_ids[i] for i in history.items[row] if i >= 0) for row in targets]

    def _pair(self, row: int, turned: bool) -> PairRow:
        pair = self.row(row)
        if turned:
            pair = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
        return pair

    def texts(
        self, context_rows: np.ndarray, flip: np.ndarray | None = None, targets: np.ndarray | None = None
    ) -> list[str]:
        """The user's text of each row; `targets` as for `user_contexts`."""
        return self._once(self.model.user_model.texts, self.user_contexts(context_rows, flip, targets))

    def _once(self, function, contexts: Sequence[UserContext]) -> list:
        distinct = {id(context): context for context in contexts}
        values = dict(zip(distinct, function(list(distinct.values()))))
        return [values[id(context)] for context in contexts]

    def batch(self, rows: np.ndarray, context_rows: np.ndarray, flip: np.ndarray | None = None) -> dict[str, Tensor]:
        contexts = self.user_contexts(context_rows, flip, rows)
        return self.under(rows, self._once(self.shown, contexts), cached=True)

    def shown(self, contexts: Sequence[UserContext]) -> list:
        """What the reward model is shown of each context: texts with a frozen encoder, messages with a backbone."""
        head = self.model.user_model
        return head.texts(contexts) if self.frozen else head.prefixes(contexts)

    def shown_summary(self, text: str) -> Any:
        """The same for a text that somebody wrote."""
        return text if self.frozen else summary_prefix(text)

    def under(self, rows: np.ndarray, shown: Sequence[Any], cached: bool = False) -> dict[str, Tensor]:
        """Targets (B,) with what is shown of each row's user; texts that a model just wrote stay out of the cache."""
        if self.frozen:
            return self.targets(rows) | self._text_features(
                shown, self.embed_texts if cached else self._embed_in_memory
            )
        return self.prefixed(rows, shown)

    def prefixed(self, rows: np.ndarray, prefixes: Sequence[list[dict[str, str]]]) -> dict[str, Tensor]:
        """Targets (B,) with the messages about each row's user in front, as padded or packed tokens."""
        limit = self.model.config.max_length
        sides: list[list[np.ndarray]] = [[], []]
        for row, prefix in zip(np.asarray(rows).tolist(), prefixes):
            texts = self.row(row) if prefix and not self._tokenizer.joins else None
            for side, tokens in enumerate(self._tokens):
                response = texts[SIDES[side]] if texts else None
                prompt = texts["prompt"] if texts else None
                ids, cut = self._tokenizer.ids(prefix, prompt, response, limit, tokens[row])
                self._texts_cut += cut
                sides[side].append(np.asarray(ids))
        return self._packed(np.asarray(rows), sides) if self.packing else self._padded(sides)

    def _text_features(self, texts: Sequence[str], embed: Callable[[Sequence[str]], Tensor]) -> dict[str, Tensor]:
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        values = embed(list(distinct))
        index = torch.tensor([distinct[text] for text in texts])[:, None]
        return {
            "context_features": torch.stack([values, torch.zeros_like(values)], 1),
            "context_index": index,
            "context_mask": torch.tensor([bool(text) for text in texts])[:, None],
        }

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) raw features of users' texts, through the cache, as of a response without a prompt."""
        parts = [part for text in texts for part in self.model.encoder_texts("", text or " ")]
        parts = read_part(parts, self.model.encoder)
        table = self.cache.embed(parts, self.model.encoder, progress=False)
        return torch.from_numpy(table.gather(np.asarray(table.index)).reshape(len(texts), -1).astype(np.float32))

    def _embed_in_memory(self, texts: Sequence[str]) -> Tensor:
        """`embed_texts` without a file for every few texts: of those met lately, vectors are kept in memory.

        One at a time: a vector's last bits depend on the texts encoded with it, and a resumed run has met others.
        """
        for text in texts:
            if text not in self._embedded:
                self._embedded[text] = self.model.featurize([""], [text or " "])[0].cpu()
        out = torch.stack([self._embedded[text] for text in texts])
        while len(self._embedded) > _MAX_EMBEDDED:
            del self._embedded[next(iter(self._embedded))]
        return out

    def context(self, context_rows: np.ndarray, flip: np.ndarray | None = None) -> dict[str, Tensor]:
        if not self.frozen:
            return {}
        return self._text_features(self.texts(context_rows, flip), self.embed_texts)
