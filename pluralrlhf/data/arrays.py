"""Every pair of a dataset folder as numbers: users, items and hashes of the texts."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from .progress import Progress
from .schema import SPLITS, TEXT_COLUMNS
from .splits import hash64

BATCH = 2048


@dataclass
class Pairs:
    """Every pair of a folder as numbers. n pairs, m item references.

    Attributes:
        split: (n,) int8 position in `SPLITS`.
        user: (n,) int32 number of the user.
        prompt, chosen, rejected: (n,) uint64 hashes of the texts.
        chars: (n, 2) int32 lengths of the prompt and of the longer response.
        items: (m,) uint64 hashes of item ids; `item_row` (m,) int64 the pair that each belongs to.
        users: Names of the users.
    """

    split: np.ndarray
    user: np.ndarray
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    chars: np.ndarray
    items: np.ndarray
    item_row: np.ndarray
    users: list[str]

    def __len__(self) -> int:
        return len(self.user)

    def where(self, *splits: str) -> np.ndarray:
        """(n,) bool: pairs of these splits."""
        return np.isin(self.split, [SPLITS.index(split) for split in splits])


def read_pairs(files: dict[str, list[str]], progress: bool = False) -> Pairs:
    """Reads the parquet files of `pair_files` into numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = sum(pq.read_metadata(path).num_rows for paths in files.values() for path in paths)
    columns = {name: array("Q") for name in (*TEXT_COLUMNS, "items")}
    split, user, item_row, chars = array("b"), array("l"), array("q"), array("l")
    numbers: dict[str, int] = {}
    with Progress("pairs", lambda: bar.count / max(total, 1), shown=progress) as bar:
        for name, paths in files.items():
            for path in paths:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(BATCH):
                        start, n = len(user), len(batch)
                        split.extend([SPLITS.index(name)] * n)
                        user.extend(numbers.setdefault(u, len(numbers)) for u in batch["user_id"].to_pylist())
                        texts = {column: column_texts(batch[column]) for column in TEXT_COLUMNS}
                        for column, values in texts.items():
                            columns[column].extend(map(hash64, values))
                        for prompt, chosen, rejected in zip(*texts.values()):
                            chars.extend((len(prompt), max(len(chosen), len(rejected))))
                        lists = batch["item_ids"]
                        columns["items"].extend(map(hash64, pa.compute.list_flatten(lists).to_pylist()))
                        item_row.extend(np.repeat(np.arange(start, start + n), pa.compute.list_value_length(lists)))
                        bar.step(n)
    arrays = {name: np.array(values, dtype=np.uint64) for name, values in columns.items()}
    return Pairs(
        split=np.array(split, dtype=np.int8),
        user=np.array(user, dtype=np.int32),
        chars=np.array(chars, dtype=np.int32).reshape(-1, 2),
        item_row=np.array(item_row, dtype=np.int64),
        users=list(numbers),
        **arrays,
    )


def column_texts(column: Any) -> list[str]:
    """One string a conversation (roles left out), from an Arrow column of message lists; texts stay what they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.to_pylist()
    contents = pc.struct_field(pc.list_flatten(column), "content").to_pylist()
    if len(contents) == len(column):
        return contents
    lengths = pc.list_value_length(column).to_pylist()
    texts, at = [], 0
    for length in lengths:
        texts.append("\n".join(contents[at : at + length]))
        at += length
    return texts
