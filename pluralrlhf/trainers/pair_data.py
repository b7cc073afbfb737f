"""Pairs of all splits in one row numbering, with their features or token ids, as tensors a model takes."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.contexts import distinct_contexts, distinct_pairs
from ..data.history import UserHistory
from ..features.cache import FeatureCache
from ..features.shared_prefix import PackedTrees
from ..features.tokenization import tokenize_response
from ..modeling.packing import PACKING_TOKENS, check_packing, pack
from .pair_checks import SIDES, check_split, checked_texts
from .plain_pairs import one_prompt, with_ids

if TYPE_CHECKING:
    from datasets import Dataset

    from ..modeling import PersonalizedRewardModel

logger = logging.getLogger(__name__)
PACKED = ("input_ids", "position_ids", "visible_until", "row", "token")
_MAX_RENDERED = 50_000
# Of so many pairs of a split it is looked whether both responses have the same features, and said from this share on.
_MAX_COMPARED, _MANY_ALIKE = 10_000, 0.02


class TokenStore:
    """Token sequences of any length, end to end in one flat array: four bytes a token."""

    def __init__(self):
        self._ids, self._ends = array("i"), array("q", [0])

    def append(self, ids: Sequence[int]) -> None:
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    def __getitem__(self, row: int) -> np.ndarray:
        return np.array(self._ids[self._ends[row] : self._ends[row + 1]], dtype=np.int32)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """(n,) number of tokens of these sequences."""
        return np.array([self._ends[row + 1] - self._ends[row] for row in rows])


class PairData:
    """Targets and contexts as batches.

    Splits are added one after the other; rows keep their numbers. Texts are embedded through the feature cache where
    the model has a frozen encoder, and tokenised where it has a backbone.

    Args:
        model: Decides between features and tokens, and how texts are rendered.
        cache: Feature cache; the default folder if `None`.
        group_size: See `UserHistory`.
        progress: Show progress while embedding.
        packing: `shared_prefix` lays the token sequences of a batch out as prefix trees, by user.
        packing_tokens: Tokens in a packed row.

    Raises:
        ConfigError: The model cannot take packed sequences.
    """

    def __init__(
        self,
        model: PersonalizedRewardModel,
        cache: FeatureCache | None = None,
        group_size: int = 24,
        progress: bool = True,
        packing: str | None = None,
        packing_tokens: int = PACKING_TOKENS,
    ):
        self.model, self.group_size, self.progress = model, group_size, progress
        self.frozen = model.backbone is None
        self.by_row = False  # batches carry rows of a table on the device instead of frozen features
        self.packing, self.packing_tokens = packing, packing_tokens
        check_packing(model, packing)
        self.cache = (cache or FeatureCache()) if self.frozen else None
        self.splits: dict[str, Dataset] = {}
        self._history: UserHistory | None = None
        self._responses_are_items: bool | None = None
        self._n_rows = 0
        self.n_truncated = 0
        self._features: list[tuple[Any, np.ndarray]] = []
        self._tokens = (TokenStore(), TokenStore())
        self._margin: list[np.ndarray] = []

    def add(self, name: str, dataset: Dataset) -> np.ndarray:
        """Adds a split and returns its row numbers.

        Raises:
            DataError: No `user_id` for a user model that uses it, an empty split, or a row that says nothing.
        """
        if name in self.splits:
            number = 2
            while f"{name}_{number}" in self.splits:
                number += 1
            name = f"{name}_{number}"
        check_split(name, dataset)
        if self._responses_are_items is None:
            # Settled by the first split: ids of one rule tell nothing of those of another.
            self._responses_are_items = len(dataset) > 1 and one_prompt(dataset)
        dataset = with_ids(name, dataset, self.model.user_model.uses_context, self._responses_are_items)
        self.splits[name] = dataset
        self._history = None
        (self._embed if self.frozen else self._tokenize)(name, dataset)
        self._margin.append(
            np.asarray(dataset["margin"], dtype=np.float32)
            if "margin" in dataset.column_names
            else np.zeros(len(dataset), np.float32)
        )
        self.margin = np.concatenate(self._margin)
        self._n_rows += len(dataset)
        return np.arange(self._n_rows - len(dataset), self._n_rows)

    @property
    def history(self) -> UserHistory:
        """Who judged what, over all splits added so far; made when first asked for."""
        if self._history is None:
            columns = ["user_id", "pair_id", "item_ids"]
            splits = {name: split.select_columns(columns) for name, split in self.splits.items()}
            self._history = UserHistory(splits, self.group_size)
        return self._history

    def _texts(self, name: str, dataset: Dataset) -> Iterator[tuple[Any, Any, Any]]:
        batches = dataset.select_columns(["prompt", *SIDES]).iter(batch_size=1000)
        return checked_texts(name, chain.from_iterable(zip(*(b[c] for c in ("prompt", *SIDES))) for b in batches))

    def _embed(self, name: str, dataset: Dataset) -> None:
        # Many pairs share few texts, and rendering one costs more than looking it up.
        rendered: dict[tuple, list[str]] = {}

        def parts() -> Iterator[str]:
            for prompt, *responses in self._texts(name, dataset):
                for response in responses:
                    key = (_hashable(prompt), _hashable(response))
                    if key not in rendered:
                        if len(rendered) >= _MAX_RENDERED:
                            rendered.clear()
                        rendered[key] = self.model.encoder_texts(prompt, response)
                    yield from rendered[key]

        table = self.cache.embed(parts(), self.model.encoder, progress=self.progress)
        index = table.index.reshape(len(dataset), 2, -1)
        self._features.append((table, index))
        self._starts = np.cumsum([0] + [len(index) for _, index in self._features])
        if table.truncated:
            logger.warning(
                "%d of %d texts of split %s are longer than the %s tokens that the encoder `%s` reads; the rest of them is "
                "not seen. Another encoder may read more.",
                table.truncated, len(table), name, self.model.encoder.max_length, self.model.encoder.name,
            )  # fmt: skip
        some = index[:: -(-len(index) // _MAX_COMPARED)]
        alike = (table.gather(some[:, 0]) == table.gather(some[:, 1])).reshape(len(some), -1).all(1).mean()
        if alike >= _MANY_ALIKE:
            logger.warning(
                "%.0f %% of the pairs of split %s are of two responses that the encoder `%s` cannot tell apart, so that "
                "nothing can be learned from them: take an encoder that knows their language or script.",
                100 * alike, name, self.model.encoder.name,
            )  # fmt: skip

    def _tokenize(self, name: str, dataset: Dataset) -> None:
        limit, truncated = self.model.config.max_length, 0
        for prompt, *responses in self._texts(name, dataset):
            for side, response in enumerate(responses):
                ids, cut = tokenize_response(self.model.tokenizer, prompt, response, limit)
                self._tokens[side].append(ids)
                truncated += cut
        self.n_truncated += truncated
        if truncated:
            logger.warning(
                "%d of %d responses of split %s are longer than max_length=%d tokens; their beginning was cut.",
                truncated, 2 * len(dataset), name, limit,
            )  # fmt: skip

    def features(self, rows: np.ndarray) -> np.ndarray:
        """(n, 2, d) float32 raw features of the pairs, chosen first."""
        rows = np.asarray(rows)
        out = np.empty((len(rows), 2, self.model.config.feature_dim), np.float32)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for split in np.unique(owner):
            table, index = self._features[split]
            where = np.flatnonzero(owner == split)
            wanted = index[rows[where] - self._starts[split]]
            out[where] = table.gather(wanted.reshape(-1)).reshape(len(where), 2, -1)
        return out

    def feature_tables(self) -> list[tuple[Any, np.ndarray]]:
        """For each split, its feature table and the (n, 2, p) rows of it that its pairs are made of."""
        return self._features

    def lengths(self, rows: Sequence[int]) -> np.ndarray:
        """(n,) tokens of the longer side of each pair."""
        return np.maximum(*(store.lengths(np.asarray(rows)) for store in self._tokens))

    @torch.no_grad()
    def encoded(self, rows: np.ndarray) -> np.ndarray:
        """(2n, d) states of these rows under the backbone as it is, chosen first."""
        was_training, batch = self.model.training, self.targets(rows)
        # bitsandbytes repacks 4-bit weights on a CPU when they are used in evaluation mode, and cannot train them then.
        self.model.train(bool(getattr(self.model, "is_quantized", False)))
        device = self.model.user_model.feature_mean.device
        states = self.states(self.model, {name: value.to(device) for name, value in batch.items()})
        self.model.train(was_training)
        return states.float().cpu().numpy()

    def states(self, model: PersonalizedRewardModel, batch: dict[str, Tensor]) -> Tensor:
        """(2B, d) states of `targets` under a model's backbone, chosen first; the batch is on its device.

        Args:
            model: With this one's tokenizer; models that share their pairs differ in their backbones' weights.
        """
        if self.packing:
            return model.packed_states(PackedTrees(*(batch[f"packed_{name}"] for name in PACKED)))
        sides = [(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]) for side in SIDES]
        return torch.cat([model.pooled(*side) for side in sides])

    def targets(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The chosen and rejected responses of these rows: features, or padded token ids and masks."""
        if self.frozen:
            values = torch.from_numpy(self.features(rows))
            return {"chosen_features": values[:, 0], "rejected_features": values[:, 1]}
        sides = [[tokens[row] for row in rows] for tokens in self._tokens]
        return self._packed(rows, sides) if self.packing else self._padded(sides)

    def _padded(self, sides: list[list[np.ndarray]]) -> dict[str, Tensor]:
        out = {}
        width = max(len(ids) for ids in sides[0] + sides[1])
        for side, sequences in zip(SIDES, sides):
            out[f"{side}_input_ids"], out[f"{side}_attention_mask"] = self._pad(sequences, width)
        return out

    def _packed(
        self,
        rows: np.ndarray,
        sides: list[list[np.ndarray]],
        context: list[np.ndarray] | None = None,
        context_rows: np.ndarray | None = None,
    ) -> dict[str, Tensor]:
        """All sequences of a batch as prefix trees: chosen, rejected, then both sides of the context's pairs."""
        owner = np.tile(self.history.user[rows], 2)
        if context is not None:
            owner = np.r_[owner, np.tile(self.history.user[context_rows], 2)]
        if not self.model.user_model.uses_context:
            owner = np.zeros_like(owner)  # nothing of the user is in the text: users share prompts and responses
        trees = pack(self.model, [*sides[0], *sides[1], *(context or [])], owner, self.packing_tokens)
        return {f"packed_{name}": getattr(trees, name) for name in PACKED}

    def context(
        self, context_rows: np.ndarray, flip: np.ndarray | None = None, shared: bool = False
    ) -> dict[str, Tensor]:
        """The contexts, each distinct pair once.

        Args:
            context_rows: (B, K) rows, -1 where there is none.
            flip: (B, K) boolean: chosen and rejected change places.
            shared: Each distinct context once: C of them, and `target_context` (B,), which of them each target reads.

        Returns:
            `context_index` and `context_mask` (B, K), or (C, K) where shared, with `context_features` (N, 2, d) or
            `context_input_ids` and `context_attention_mask` (2N, L). There is at least one column and one pair, masked
            where not wanted, so that every parameter is part of every step.
        """
        out, rows, flipped = self._distinct(context_rows, flip, shared)
        if self.frozen:
            values = self.features(rows)
            values[flipped] = values[flipped, ::-1]
            out["context_features"] = torch.from_numpy(values)
        else:
            both = self._context_sequences(rows, flipped)
            out["context_input_ids"], out["context_attention_mask"] = self._pad(both, max(map(len, both)))
        return out

    @staticmethod
    def _distinct(
        context_rows: np.ndarray, flip: np.ndarray | None, shared: bool
    ) -> tuple[dict[str, Tensor], np.ndarray, np.ndarray]:
        """What `context` returns without the pairs themselves, then the rows of the distinct pairs, and whether their
        sides change places."""
        out = {}
        if shared:
            context_rows, flip, of_target = distinct_contexts(context_rows, flip)
            out["target_context"] = torch.from_numpy(of_target)
        index, mask, rows, flipped = distinct_pairs(context_rows, flip)
        if not len(rows):
            rows, flipped = np.zeros(1, np.int64), np.zeros(1, bool)
        return out | {"context_index": torch.from_numpy(index), "context_mask": torch.from_numpy(mask)}, rows, flipped

    def _context_sequences(self, rows: np.ndarray, flipped: np.ndarray) -> list[np.ndarray]:
        """Token ids of the first side of these pairs, then of their second side."""
        first = [self._tokens[int(f)][row] for row, f in zip(rows, flipped)]
        return first + [self._tokens[1 - int(f)][row] for row, f in zip(rows, flipped)]

    def _pad(self, sequences: list[np.ndarray], width: int) -> tuple[Tensor, Tensor]:
        pad = self.model.config.pad_token_id or 0
        ids = torch.full((len(sequences), width), pad, dtype=torch.long)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            mask[row, : len(sequence)] = 1
        return ids, mask

    def batch(
        self,
        rows: np.ndarray,
        context_rows: np.ndarray,
        flip: np.ndarray | None = None,
        context_by_row: bool = False,
    ) -> dict[str, Tensor]:
        """Targets with their contexts: what the model's `forward` takes.

        Args:
            rows: (B,) targets.
            context_rows, flip: See `context`.
            context_by_row: Contexts as `context_row` (N,), codes for `DeviceFeatures`, rather than as features or
                tokens.
        """
        targets = {"target_row": torch.from_numpy(np.asarray(rows, np.int64) * 2)} if self.by_row else None
        if not self.model.user_model.uses_context:
            return targets or self.targets(rows)
        shared = self.model.user_model.route == "head"  # elsewhere a target's own text is part of its state
        if context_by_row or self.by_row:
            out, distinct, flipped = self._distinct(context_rows, flip, shared)
            out["context_row"] = torch.from_numpy(distinct * 2 + flipped)
            return (targets or self.targets(rows)) | out
        if not self.packing:
            return self.targets(rows) | self.context(context_rows, flip, shared)
        out, distinct, flipped = self._distinct(context_rows, flip, shared)
        sides = [[tokens[row] for row in rows] for tokens in self._tokens]
        return out | self._packed(rows, sides, self._context_sequences(distinct, flipped), distinct)


def _hashable(text: Any) -> Any:
    return text if isinstance(text, str) else tuple((message["role"], message["content"]) for message in text)
