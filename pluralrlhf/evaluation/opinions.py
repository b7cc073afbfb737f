"""Who judged the same two responses, and how far users agree: needed by the relabelled control and `agreed_accuracy`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ..data.history import mix, stable_hash

AGREED_SHARE = 0.9
MIN_JUDGES = 5


class Opinions:
    """Groups rows that hold the same prompt and the same two responses, in either order.

    Args:
        splits: Split name to dataset with `prompt`, `chosen`, `rejected` (message lists or texts), in the order that
            numbers the rows.
        user: (n,) user code of each row.

    Attributes:
        group: (n,) number of the unordered pair of responses.
        first: (n,) whether the response with the smaller key was chosen.
        response: (n, 2) codes of the chosen and the rejected response, the prompt included.
    """

    def __init__(self, splits: Mapping[str, object], user: np.ndarray):
        self.user = np.asarray(user)
        keys: list[list[np.ndarray]] = [[], [], []]
        for dataset in splits.values():
            for column, found in zip(("prompt", "chosen", "rejected"), keys):
                found.extend(_conversation_keys(chunk) for chunk in _chunks(dataset, column))
        prompt, *sides = (np.concatenate([np.zeros(0, np.uint64), *found]) for found in keys)
        chosen, rejected = (mix(side, prompt) for side in sides)
        self.first = chosen < rejected
        low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
        self.group = _codes(mix(high, low))
        self.response = _codes(np.concatenate([chosen, rejected])).reshape(2, -1).T
        self._order = np.lexsort((self.user, self.group)).astype(np.int32)
        group, user = self.group[self._order], self.user[self._order]
        self._start = np.searchsorted(group, np.arange(int(group.max(initial=-1)) + 2))
        block = np.cumsum(np.r_[True, (group[1:] != group[:-1]) | (user[1:] != user[:-1])][: len(group)])
        # A user's own judgments of one pair lie side by side: so many steps at most lead past them.
        self._longest_block = int(np.bincount(block).max(initial=0))

    def another_judgment(self, rows: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """For each row, the row of another user who judged the same two responses; -1 where there is none.

        Args:
            rows: (n,) rows; negative ones stay -1.
            draw: (n,) uint64 that choose among the candidates.
        """
        rows = np.asarray(rows)
        out = np.full(rows.shape, -1, dtype=np.int64)
        known = np.flatnonzero(rows >= 0)
        group = self.group[rows[known]]
        start, size = self._start[group], np.diff(self._start)[group]
        position = (draw[known] % size.astype(np.uint64)).astype(np.int64)
        mine = self.user[rows[known]]
        for _ in range(self._longest_block):
            found = self._order[start + position]
            own = self.user[found] == mine
            if not own.any():
                break
            position = np.where(own, (position + 1) % size, position)
        found = self._order[start + position]
        out[known] = np.where(self.user[found] == mine, -1, found)
        return out

    def agreed(self) -> np.ndarray:
        """(n,) bool: pairs on which nearly all users agree.

        Where at least 5 judgments of the same two responses exist, at least nine in ten of them are the same. Elsewhere
        each response's share of wins over all of its judgments (at least 5) stands in: with shares a and b the expected
        share of users who prefer the one is a(1 - b) / (a(1 - b) + b(1 - a)), which must reach nine in ten either way.
        """
        if not len(self.group):
            return np.zeros(0, dtype=bool)
        judged = np.bincount(self.group)[self.group]
        wins = np.bincount(self.group, weights=self.first)[self.group] / judged
        direct = np.maximum(wins, 1 - wins) >= AGREED_SHARE
        won = np.bincount(self.response[:, 0], minlength=int(self.response.max()) + 1)
        shown = won + np.bincount(self.response[:, 1], minlength=len(won))
        share = (won + 0.5) / (shown + 1)
        a, b = share[self.response[:, 0]], share[self.response[:, 1]]
        expected = a * (1 - b) / (a * (1 - b) + b * (1 - a))
        enough = (shown[self.response] >= MIN_JUDGES).all(axis=1)
        indirect = enough & (np.maximum(expected, 1 - expected) >= AGREED_SHARE)
        return np.where(judged >= MIN_JUDGES, direct, indirect)


def _codes(keys: np.ndarray) -> np.ndarray:
    """(n,) int32 ranks of the keys among the distinct ones."""
    return np.searchsorted(np.unique(keys), keys).astype(np.int32)


def _chunks(dataset, column: str):
    """Arrow arrays of a column of a `datasets.Dataset` (a few rows at a time), a pyarrow table, or a mapping of lists."""
    if hasattr(dataset, "with_format"):
        for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=20_000):
            yield from batch[column].chunks
    else:
        values = dataset[column]
        if isinstance(values, pa.ChunkedArray):
            yield from values.chunks
        else:
            yield values if isinstance(values, pa.Array) else pa.array(values)


def _conversation_keys(column: pa.Array) -> np.ndarray:
    """(n,) uint64 hash of each conversation (or text), equal exactly for equal roles and contents."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _text_keys(column)
    messages = column.flatten()
    keys = mix(_text_keys(messages.field("content")), _text_keys(messages.field("role")))
    lengths = np.asarray(column.value_lengths().fill_null(0))
    starts = np.cumsum(lengths) - lengths
    out = np.full(len(column), np.uint64(stable_hash("conversation")))
    for position in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > position)
        out[rows] = mix(keys[starts[rows] + position], out[rows])
    return out


def _text_keys(texts: pa.Array) -> np.ndarray:
    encoded = texts.dictionary_encode()
    keys = np.fromiter((stable_hash(t.as_py() or "") for t in encoded.dictionary), np.uint64, len(encoded.dictionary))
    return keys[encoded.indices.to_numpy(zero_copy_only=False)] if len(texts) else np.zeros(0, np.uint64)
