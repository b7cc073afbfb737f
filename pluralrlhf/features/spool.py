"""Texts on their way to the encoder, kept out of memory when they are many."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from .store import ShardStore, disk_errors, find_sorted

_SPOOL_MEMORY = 64 * 2**20


class Spool:
    """Missing texts on their way to the encoder: in memory while they are few, else in an unnamed file."""

    def __init__(self, store: ShardStore):
        self._store = store
        self._file: Any = None
        # Sorted runs, each at least twice as long as the next, so that adding costs little however many blocks come.
        self._runs: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = [np.zeros(1, np.int64)]
        self._parts: list[np.ndarray] = []
        self._size = 0

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def add(self, keys: np.ndarray, texts: list[str]) -> None:
        """Appends those texts that are not in the spool yet; `keys` are sorted and distinct."""
        new = np.ones(len(keys), dtype=bool)
        for run in self._runs:
            new &= ~find_sorted(run, keys)[1]
        rows = np.flatnonzero(new)
        if not len(rows):
            return
        data = [texts[row].encode("utf-8", "surrogatepass") for row in rows]
        with disk_errors(self._store.folder, self._size + sum(map(len, data))):
            if self._file is None:
                folder = self._store.temporary().parent
                self._file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_MEMORY, dir=folder)  # noqa: SIM115
            self._file.write(b"".join(data))
        ends = self._size + np.cumsum([len(item) for item in data])
        self._size = int(ends[-1])
        self._offsets.append(ends)
        self._parts.append(keys[rows])
        self._runs.append(keys[rows])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")

    def by_length(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the spool, longest text first (ties by key: the order of the texts does not matter), and the
        keys in that order."""
        self._bounds = np.concatenate(self._offsets)
        keys = np.concatenate(self._parts)
        order = np.lexsort((keys, -np.diff(self._bounds)))
        return order, keys[order]

    def read(self, positions: np.ndarray) -> list[str]:
        texts = []
        for position in positions:
            start, end = int(self._bounds[position]), int(self._bounds[position + 1])
            self._file.seek(start)
            texts.append(self._file.read(end - start).decode("utf-8", "surrogatepass"))
        return texts

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
