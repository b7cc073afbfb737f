"""The files of an evaluation: what their rows are, and how they are written in bounded memory."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
# `probability` is the model's predictive one under the user's own context (control `none`), sigmoid(margin) under controls.
PER_PAIR, PAIRS, STATES, RUN = "per_pair.parquet", "pairs.parquet", "states.parquet", "run.json"
PER_PAIR_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("split", pa.string()),
        ("n_context", pa.int64()),
        ("control", pa.string()),
        ("user_id", pa.string()),
        ("pair_id", pa.string()),
        ("context_pair_ids", pa.list_(pa.string())),
        ("margin", pa.float64()),
        ("probability", pa.float64()),
    ]
)
PAIRS_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("user_id", pa.string()),
        ("pair_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("agreed", pa.bool_()),
    ]
)
STATES_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("split", pa.string()),
        ("n_context", pa.int64()),
        ("user_id", pa.string()),
        ("type", pa.string()),
        ("state", pa.list_(pa.float32())),
    ]
)
_GROUP_VALUES = 150_000  # rows and context ids held back before a row group is written


def release_memory() -> None:
    """Gives freed memory back to the system. The C library keeps it in pieces between what is still in use, and aligned
    blocks of a batch's size leave holes that add up over a long run."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's own
        libc.malloc_trim(0)


class RowWriter:
    """Writes tables as row groups of bounded size, under a temporary name until all is written."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.writer = pq.ParquetWriter(self.part, schema, compression="zstd")
        self.held: list[pa.Table] = []
        self.values = 0

    def __enter__(self) -> RowWriter:
        return self

    def write(self, table: pa.Table) -> None:
        if not len(table):
            return
        self.held.append(table)
        lists = [column for column in table.columns if pa.types.is_list(column.type)]
        self.values += len(table) + sum(len(chunk.values) for column in lists for chunk in column.chunks)
        if self.values >= _GROUP_VALUES:
            self.flush()

    def flush(self) -> None:
        if self.held:
            self.writer.write_table(pa.concat_tables(self.held))
        self.held, self.values = [], 0

    def __exit__(self, kind, *exception: object) -> None:
        if kind is None:
            self.flush()
        self.writer.close()
        if kind is None:
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Source:
    """Where a dataset's rows lie.

    Args:
        folder: A run or a suite's output.
        dataset: Which of the datasets in it, for a suite; None takes every row.
        fold: Fold of a run's rows; a suite's files say so themselves.
        rename: Method in the file to the name it goes by here, for methods of one name from several runs.
    """

    folder: Path
    dataset: str | None = None
    fold: int = 0
    rename: tuple[tuple[str, str], ...] = ()
