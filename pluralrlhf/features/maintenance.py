"""What the feature cache holds, and making room in it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from .cache import SHARD_SIZE
from .store import Shard, ShardStore, disk_errors, read_header, row_bytes

# Temporary files live for seconds; older ones were left by a kill.
_LEFTOVER_SECONDS = 3600


@dataclass
class StoreInfo:
    """One encoder's features.

    Attributes:
        path: Its folder; the folder's name is the encoder's fingerprint.
        name: What the encoder was called when it was first used.
        dim: Length of a vector.
        texts: Rows in its shards (a text that two processes encoded at once counts twice, until pruned).
        shards: Number of shards.
        bytes: Size on the disk.
        unused_days: Days since it was last used.
    """

    path: Path
    name: str
    dim: int
    texts: int
    shards: int
    bytes: int
    unused_days: float


def find_stores(root: Path, encoder: str | None = None) -> list[StoreInfo]:
    """The stores under `root`, largest first.

    Args:
        root: Folder of the cache.
        encoder: Only those of this encoder: its name, or the first digits of its fingerprint.

    Raises:
        ConfigError: if there is no store of that encoder.
    """
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if not re.fullmatch(r"[0-9a-f]{32}", folder.name) or not (folder / "encoder.json").is_file():
            continue
        info = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        if encoder is not None and encoder != info["name"] and not folder.name.startswith(encoder):
            continue
        counts = [_rows_and_size(path) for path in ShardStore(folder).files()]
        unused = (time.time() - (folder / "encoder.json").stat().st_mtime) / 86_400
        rows, size = (sum(column) for column in zip(*counts)) if counts else (0, 0)
        found.append(StoreInfo(folder, info["name"], info["dim"], rows, len(counts), size, unused))
    if encoder is not None and not found:
        raise ConfigError(
            f"`encoder`: {root} holds no features of {encoder!r}. `pluralrlhf data cache list` shows all."
        )
    return sorted(found, key=lambda info: (-info.bytes, info.path.name))


def damage(path: Path) -> str | None:
    """What is wrong with a shard, if anything; every byte is read."""
    try:
        return None if Shard(path).verify() else "the checksum of its vectors does not match"
    except ValueError as error:
        return str(error)
    except FileNotFoundError:
        return None  # merged meanwhile


def clear(stores: Iterable[StoreInfo]) -> int:
    """Deletes stores; returns the bytes freed."""
    freed = 0
    for info in stores:
        with disk_errors(info.path, 0):
            shutil.rmtree(info.path)
        freed += info.bytes
    return freed


def prune(info: StoreInfo) -> int:
    """Removes what kills left behind, damaged shards and rows stored twice, and merges small shards; no feature that
    can be read is lost or changed. Safe while others read and write. Returns the bytes freed."""
    store = ShardStore(info.path)
    with disk_errors(info.path, 0):
        for path in (info.path / "tmp").glob("*"):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink(missing_ok=True)
    for path in store.files():
        if reason := damage(path):
            store.discard(path, reason)
    store.refresh()
    kept = [store.shard_rows(number) for number in range(len(store.shards))]
    small = [
        number
        for number, (shard, rows) in enumerate(zip(store.shards, kept))
        if len(rows) < len(shard.keys) or len(rows) < SHARD_SIZE // 2
    ]
    if len(small) > 1 or any(len(kept[number]) < len(store.shards[number].keys) for number in small):
        _merge(store, small, kept)
    return info.bytes - sum(path.stat().st_size for path in store.files())


def _merge(store: ShardStore, numbers: list[int], kept: list[np.ndarray]) -> None:
    """Writes the rows that count of some shards into new ones, then removes the old ones: a kill loses nothing."""
    places = np.concatenate([np.stack([np.full(len(kept[n]), n), kept[n]], axis=1) for n in numbers])
    needed = len(places) * row_bytes(store.shards[0].vectors.shape[1])
    written = set()
    for start in range(0, len(places), SHARD_SIZE):
        rows = places[start : start + SHARD_SIZE]
        keys = np.array([store.shards[n].keys[row] for n, row in rows], dtype=store.shards[0].keys.dtype)
        vectors = np.stack([store.shards[n].vectors[row] for n, row in rows])
        truncated = np.array([store.shards[n].truncated[row] for n, row in rows])
        written.add(store.write(keys, vectors, truncated, needed))
        needed -= len(rows) * row_bytes(vectors.shape[1])
    for number in numbers:
        # A shard that merging would make again is there already.
        if store.shards[number].path not in written:
            store.shards[number].path.unlink(missing_ok=True)


def _rows_and_size(path: Path) -> tuple[int, int]:
    try:
        header, _, size = read_header(path)
        return header["keys"]["shape"][0], size
    except (ValueError, KeyError, TypeError, IndexError):
        return 0, path.stat().st_size
    except FileNotFoundError:
        return 0, 0
