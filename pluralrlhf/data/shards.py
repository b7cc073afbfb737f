"""Parquet files written row by row in bounded memory, and values of any kind written as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

GROUP_ROWS, GROUP_CHARS = 10_000, 32_000_000  # rows are held back until one of these is reached, then written
SHARD_ROWS = 500_000


class ShardWriter:
    """Appends rows to parquet files of bounded size, holding little in memory.

    Args:
        stem: Files are `<stem>-<number>.parquet` until they get their final names.
        schema: Arrow schema; None takes it from the first rows written.
        shard_rows: Rows a file; a new one begins when it is reached.
    """

    def __init__(self, stem: Path, schema: Any, shard_rows: float = SHARD_ROWS):
        self.stem, self.schema, self.shard_rows = stem, schema, shard_rows
        self.rows: list[dict[str, Any]] = []
        self.chars = self.in_shard = 0
        self.writer: Any = None
        self.shards: list[Path] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.chars += _size(row)
        if len(self.rows) >= GROUP_ROWS or self.chars >= GROUP_CHARS:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self.rows:
            table = pa.Table.from_pylist(self.rows, schema=self.schema)
            self.schema = table.schema
            self.rows, self.chars = [], 0
            self.add_table(table)

    def add_table(self, table: Any) -> None:
        import pyarrow.parquet as pq

        if not len(table):
            return
        if self.writer is None or self.in_shard >= self.shard_rows:
            self._end_shard()
            self.shards.append(self.stem.with_name(f"{self.stem.name}-{len(self.shards):05d}.parquet"))
            self.writer = pq.ParquetWriter(self.shards[-1], self.schema, compression="zstd")
        self.writer.write_table(table)
        self.in_shard += len(table)

    def close(self) -> list[Path]:
        """The files written, in order."""
        self.flush()
        self._end_shard()
        return self.shards

    def _end_shard(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer, self.in_shard = None, 0


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def jsonable(value: Any) -> Any:
    """Any value read from a file as JSON: odd types as their text, NaN as a text, halves of surrogates escaped."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, bool, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return str(value) if not isinstance(value, int) else f"integer of {value.bit_length()} bits"
