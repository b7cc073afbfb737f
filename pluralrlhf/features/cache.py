"""The on-disk cache of text features: no text is encoded twice by the same encoder.

Vectors are kept in half precision and memory-mapped, keyed by the encoder's fingerprint (weights, configuration,
tokenizer, pooling, length limit) and a hash of the text as it is encoded, template included. See `store.py` for files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, DataError, PluralRLHFError
from ..files import cache_root
from ..locks import lock_number
from .spool import Spool
from .store import (
    KEY,
    SCHEMA,
    ShardStore,
    disk_errors,
    no_room,
    row_bytes,
    shard_name,
    split_locations,
    text_key,
)

if TYPE_CHECKING:
    from .encoders import TextEncoder

SHARD_SIZE = 4096
_SCAN_BLOCK = 65_536
_SCAN_CHARACTERS = 2**23


class FeatureTable:
    """Features of a list of texts, each distinct text once.

    Attributes:
        index: (n_texts,) int64, the row of each text in the deduplicated table; rows are in the texts' first order.
        truncated: Number of distinct texts that were longer than the encoder's limit and were cut.
        dim: d.
    """

    def __init__(self, index: np.ndarray, locations: np.ndarray, store: ShardStore, dim: int):
        self.index, self.dim = index, dim
        self._shard, self._row = split_locations(locations)
        # Open files: what another process merges or clears meanwhile stays readable.
        self._shards = list(store.shards)
        self._table: np.ndarray | None = None
        self.truncated = sum(
            int(self._shards[i].truncated[self._row[self._shard == i]].sum()) for i in np.unique(self._shard)
        )

    def __len__(self) -> int:
        """Number of distinct texts."""
        return len(self._row)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features of rows of the deduplicated table (`table.gather(table.index[i])` for text i).

        Args:
            rows: Integers of any shape (...), in [0, len(self)).

        Returns:
            (..., d) float32.
        """
        rows = np.asarray(rows, dtype=np.int64)
        return self._gather_half(rows.reshape(-1)).astype(np.float32).reshape(*rows.shape, self.dim)

    @property
    def table(self) -> np.ndarray:
        """The whole deduplicated table, (len(self), d) float16: a memory map where one shard holds it in order, else
        an array made once, in memory (2 * d bytes a text)."""
        if self._table is None:
            shards = np.unique(self._shard)
            if len(shards) == 1 and len(self) and np.array_equal(self._row, self._row[0] + np.arange(len(self))):
                start = int(self._row[0])
                self._table = self._shards[shards[0]].vectors[start : start + len(self)]
            else:
                self._table = self._gather_half(np.arange(len(self)))
        return self._table

    def _gather_half(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.dim), dtype=np.float16)
        numbers = self._shard[rows]
        order = np.argsort(numbers, kind="stable")
        bounds = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1))
        for start, end in itertools.pairwise(bounds):
            places = order[start:end]
            out[places] = self._shards[numbers[places[0]]].vectors[self._row[rows[places]]]
        return out


class FeatureCache:
    """Features on disk, one folder an encoder, shared by any number of processes.

    Args:
        root: Folder of the cache. Default: `features` in the folder that `$PLURALRLHF_CACHE` names, or in `~/.cache/pluralrlhf`.

    Example:
        >>> cache = FeatureCache()
        >>> table = cache.embed(["a cat", "a dog", "a cat"], load_encoder("offline"), progress=False)
        >>> table.index.tolist(), table.gather(table.index).shape
        ([0, 1, 0], (3, 384))
    """

    def __init__(self, root: str | os.PathLike | None = None):
        self.root = Path(root) if root is not None else cache_root() / "features"
        self._stores: dict[str, ShardStore] = {}

    def embed(
        self,
        texts: Iterable[str],
        encoder: TextEncoder,
        *,
        progress: bool = True,
        shard_size: int = SHARD_SIZE,
        num_proc: int = 1,
    ) -> FeatureTable:
        """Features of texts: read where they are cached, encoded where they are not.

        Missing texts are encoded longest first, a shard at a time. A shard is on the disk before the next one is
        begun, so a killed run goes on where it stopped, and processes that embed the same texts share the work.
        Everything goes through half precision, so a fresh vector and a cached one are the same bits. Memory: 40 bytes a
        text and the pages of the file that are in use; texts themselves are passed through once and not kept.

        Args:
            texts: Any iterable of strings, as the encoder is to read them.
            encoder: What encodes them.
            progress: Whether to show a progress bar while encoding.
            shard_size: Texts in a shard: what a kill loses at most (of each process).
            num_proc: Processes that encode. On the CPU each takes its share of the threads, with CUDA they take turns
                over the devices. More than one needs an importable main module, as `multiprocessing` does.

        Raises:
            DataError: for a text that is not a string, or has no tokens.
            PluralRLHFError: if the disk is full or cannot be written, or a feature exceeds half precision.
        """
        for name, value in (("shard_size", shard_size), ("num_proc", num_proc)):
            if value < 1:
                raise ConfigError(f"`{name}`: found {value}. Give at least 1.")
        store = self._store(encoder)
        store.refresh()
        with contextlib.closing(Spool(store)) as spool:
            keys = _scan(texts, store, spool)
            if len(spool):
                self._describe(store, encoder)
                try:
                    _encode_missing(store, spool, encoder, progress, shard_size, num_proc)
                finally:
                    store.locks.release_all()
        with contextlib.suppress(OSError):
            os.utime(store.folder / "encoder.json")  # when it was last used, for `prune --unused_days`
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        store.refresh()
        locations = store.lookup(unique[order])
        if (locations < 0).any():
            raise PluralRLHFError(
                f"Features disappeared from {store.folder} while they were in use (cleared by another process, or the "
                "disk is failing). Run the same command again."
            )
        return FeatureTable(rank[inverse], locations, store, encoder.dim)

    def _store(self, encoder: TextEncoder) -> ShardStore:
        key = encoder.fingerprint
        if key not in self._stores:
            self._stores[key] = ShardStore(self.root / key)
        return self._stores[key]

    def _describe(self, store: ShardStore, encoder: TextEncoder) -> None:
        path = store.folder / "encoder.json"
        content = {
            "schema": SCHEMA,
            "name": encoder.name,
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
            "pooling": encoder.pooling,
            "max_length": encoder.max_length,
        }
        with disk_errors(store.folder, 0):
            temporary = store.temporary()
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)


def _scan(texts: Iterable[str], store: ShardStore, spool: Spool) -> np.ndarray:
    """Keys of all texts, (n,); those that the store lacks go into the spool, once each."""
    if isinstance(texts, str):
        raise DataError("`texts` is one string", "Give a list of strings.")
    parts, block, characters = [np.empty(0, KEY)], [], 0

    def flush() -> None:
        keys = np.frombuffer(b"".join(map(text_key, block)), dtype=KEY)
        unique, first = np.unique(keys, return_index=True)
        missing = store.lookup(unique) < 0
        spool.add(unique[missing], [block[i] for i in first[missing]])
        parts.append(keys)
        block.clear()

    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"text {number} is a {type(text).__name__}", "Only strings can be encoded; render messages."
            )
        block.append(text)
        characters += len(text)
        if len(block) >= _SCAN_BLOCK or characters >= _SCAN_CHARACTERS:
            flush()
            characters = 0
    if block:
        flush()
    return np.concatenate(parts)


def _encode_missing(
    store: ShardStore, spool: Spool, encoder: TextEncoder, progress: bool, shard_size: int, num_proc: int
) -> None:
    order, keys = spool.by_length()
    needed = len(order) * row_bytes(encoder.dim)
    if needed > shutil.disk_usage(store.folder).free:
        raise no_room(store.folder, needed)
    chunks = [slice(start, start + shard_size) for start in range(0, len(order), shard_size)]
    names = [shard_name(keys[chunk]) for chunk in chunks]
    left = needed

    def finish(i: int, vectors: np.ndarray, truncated: np.ndarray) -> None:
        nonlocal left
        store.write(keys[chunks[i]], _to_half(vectors, encoder), truncated, left)
        left -= len(vectors) * row_bytes(encoder.dim)
        store.locks.release(lock_number(names[i]))

    def claimed(numbers: Iterable[int], wait: bool, later: list[int]) -> Iterator[int]:
        """Chunks that are this process's to encode; those that another one is at come in `later`."""
        nonlocal left
        for i in numbers:
            lock = lock_number(names[i])
            if not store.locks.acquire(lock, wait):
                later.append(i)
            elif store.has(names[i]):
                store.locks.release(lock)
                left -= len(keys[chunks[i]]) * row_bytes(encoder.dim)
                advance(len(keys[chunks[i]]))
            else:
                yield i

    with _progress_bar(len(order), encoder.name, progress) as advance:
        later: list[int] = []
        pool = _WorkerPool(encoder, num_proc) if num_proc > 1 else None
        with pool or contextlib.nullcontext():
            for numbers, wait in ((range(len(chunks)), False), (later, True)):
                # Waiting for one chunk while holding another could make two processes wait for each other.
                window = 1 if wait else 2 * num_proc
                mine = claimed(list(numbers), wait, later if not wait else [])
                if pool is None:
                    for i in mine:
                        finish(i, *encoder.encode_with_flags(spool.read(order[chunks[i]]), advance))
                else:
                    jobs = ((i, spool.read(order[chunks[i]])) for i in mine)
                    for i, vectors, truncated in pool.map(jobs, window):
                        encoder.truncated += int(truncated.sum())
                        finish(i, vectors, truncated)
                        advance(len(vectors))


def _to_half(vectors: np.ndarray, encoder: TextEncoder) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    if not np.isfinite(half).all():
        largest = np.abs(vectors[np.isfinite(vectors)]).max(initial=0.0)
        raise PluralRLHFError(
            f"The encoder {encoder.name!r} gave features that half precision cannot hold (largest finite value "
            f"{largest:.3g}, {np.isnan(vectors).sum()} NaN). Give a model whose last layer is normalised, or another "
            "`dtype` if the weights were loaded in a narrow one."
        )
    return half


class _WorkerPool:
    """Processes that each hold a copy of the encoder."""

    def __init__(self, encoder: TextEncoder, num_proc: int):
        import torch
        import torch.multiprocessing as multiprocessing

        context = multiprocessing.get_context("spawn")
        n_devices = torch.cuda.device_count() if encoder.device.type == "cuda" else 0
        threads = max(1, torch.get_num_threads() // num_proc)
        self._home = encoder.device
        self._encoder = encoder
        arguments = (encoder.to("cpu"), context.Value("i", 0), n_devices, threads)
        self._pool = ProcessPoolExecutor(num_proc, context, _start_worker, arguments)

    def map(self, jobs: Iterable[tuple[int, list[str]]], window: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Encodes each job, `window` of them under way at a time so that memory stays bounded."""
        waiting: list[tuple[int, Future]] = []
        for number, texts in jobs:
            waiting.append((number, self._pool.submit(_work, texts)))
            if len(waiting) >= window:
                number, future = waiting.pop(0)
                yield number, *future.result()
        for number, future in waiting:
            yield number, *future.result()

    def __enter__(self) -> _WorkerPool:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._encoder.to(self._home)


_worker_encoder: TextEncoder | None = None


def _start_worker(encoder: TextEncoder, counter: Any, n_devices: int, threads: int) -> None:
    import torch

    global _worker_encoder
    torch.set_num_threads(threads)
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    _worker_encoder = encoder.to(f"cuda:{number % n_devices}") if n_devices else encoder


def _work(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return _worker_encoder.encode_with_flags(texts)


@contextlib.contextmanager
def _progress_bar(total: int, name: str, shown: bool) -> Iterator[Any]:
    """Yields `advance(n)`; the bar goes to the error stream, with an estimate of the time left."""
    if not shown:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"encoding texts ({name})", total=total)
        yield lambda n: bar.advance(task, n)
