"""The files of an evaluation: what their rows are, and how they are written in bounded memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
_ARROW_POOL = pa.default_memory_pool()
_GROUP_VALUES = 150_000  # rows and context ids held back before a row group is written


def release_memory() -> None:
    """Gives freed memory back to the system. The C library keeps it in pieces between what is still in use, and aligned
    blocks of a batch's size leave holes that add up over a long run."""
    for pool in {id(pool): pool for pool in (_ARROW_POOL, pa.default_memory_pool())}.values():
        pool.release_unused()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc only
        libc.malloc_trim(0)


@contextmanager
def system_memory() -> Iterator[None]:
    """Memory that goes back to the system when it is free. Arrow's own pool keeps large pieces, the more the longer a run
    is: in here Arrow takes the C library's memory, and that keeps large blocks apart from the small ones which would
    hold them. Also a decorator."""
    before = pa.default_memory_pool()
    if before.backend_name == "system":  # within another one
        yield
        return
    pa.set_memory_pool(pa.system_memory_pool())
    _large_blocks(2**20, 2**17)
    try:
        yield
    finally:
        # What the C library arrives at by itself when large blocks come and go, as they do in training.
        _large_blocks(2**25, 2**26)
        pa.set_memory_pool(before)


def _large_blocks(apart: int, kept: int) -> None:
    """Bytes from which a block is apart from others, and free bytes that are kept for what comes; glibc only."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, apart)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, kept)  # M_TRIM_THRESHOLD


class RowWriter:
    """Writes tables as row groups of bounded size, under a temporary name until all is written."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.part = path, path.with_name(path.name + ".part")
        # Numbers hardly repeat, and the tables in which the writer looks for repeats are larger than they are.
        repeated = [path for path, kind in map(_leaf, schema) if not pa.types.is_floating(kind)]
        self.writer = pq.ParquetWriter(self.part, schema, compression="zstd", use_dictionary=repeated)
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


def _leaf(field: pa.Field) -> tuple[str, pa.DataType]:
    """Path and type of what a column of a file holds."""
    return (
        (f"{field.name}.list.element", field.type.value_type)
        if pa.types.is_list(field.type)
        else (field.name, field.type)
    )


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
