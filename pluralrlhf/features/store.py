"""The files of the feature cache: append-only shards of one encoder's vectors, and an index over their text hashes.

A store is a folder. `encoder.json` says whose vectors it holds; `shards/NNNNNN-HASH.safetensors` hold them: `keys`
(n, 16) uint8, blake2b of the texts; `vectors` (n, d) float16; `truncated` (n,) uint8. A shard is written beside its
place, synced and renamed, so that a kill leaves whole shards only. NNNNNN orders shards: where two hold the same text,
the earlier one counts, hence what has been read once never changes. HASH names the set of keys: whoever finds it
already there need not encode those texts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import PluralRLHFError
from ..locks import FileLocks

logger = logging.getLogger(__name__)

SCHEMA = 1
KEY_BYTES = 16
KEY = np.dtype(f"S{KEY_BYTES}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A location is the shard's place in the list of open shards and the row within it.
_ROW_BITS = 32


def text_key(text: str) -> bytes:
    """16-byte hash of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def row_bytes(dim: int) -> int:
    """Bytes that one vector takes on the disk."""
    return 2 * dim + KEY_BYTES + 1


@contextlib.contextmanager
def disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turns a full or unwritable disk into an error that names the folder, what is needed and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise no_room(folder, needed) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise PluralRLHFError(
                f"The feature cache {folder} cannot be written ({error.strerror}). Point $PLURALRLHF_CACHE to a folder "
                "that can be."
            ) from error
        raise


def no_room(folder: Path, needed: int) -> PluralRLHFError:
    """The error for a disk without room for `needed` more bytes."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    return PluralRLHFError(
        f"No room for features in {folder}: {needed / 1e6:.1f} MB more are needed, {free / 1e6:.1f} MB are free. Point "
        "$PLURALRLHF_CACHE to a disk with room, or free some with `pluralrlhf data cache prune` or `clear`; features "
        "that were finished are kept."
    )


def read_header(path: Path) -> tuple[dict, int, int]:
    """A shard's safetensors header, where its data begin, and the file's size.

    Raises:
        ValueError: if there is no whole header.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("its header is damaged")
        return json.loads(file.read(length)), 8 + length, size


class Shard:
    """One open shard: keys in memory, vectors memory-mapped.

    Raises:
        ValueError: if the file is not a whole, undamaged shard; the vectors' checksum is verified by `verify`.
    """

    def __init__(self, path: Path):
        self.path, self.verified = path, False
        header, start, size = read_header(path)
        try:
            metadata = header["__metadata__"]
            self.checksum = int(metadata["vectors_crc32"])
            parts = {}
            for name, dtype in (("keys", np.uint8), ("truncated", np.uint8), ("vectors", np.float16)):
                begin, end = header[name]["data_offsets"]
                if start + end > size:
                    raise ValueError(f"it ends after {size} bytes instead of {start + end}")
                shape = tuple(header[name]["shape"])
                parts[name] = np.memmap(path, dtype, mode="r", offset=start + begin, shape=shape)
            keys, truncated = np.array(parts["keys"]), np.array(parts["truncated"])
            if zlib.crc32(truncated, zlib.crc32(keys)) != int(metadata["keys_crc32"]):
                raise ValueError("the checksum of its keys does not match")
        except (KeyError, TypeError) as error:
            raise ValueError(f"its header lacks {error}") from error
        self.keys = np.ascontiguousarray(keys).view(KEY).reshape(-1)
        self.truncated, self.vectors = truncated, parts["vectors"]

    def verify(self) -> bool:
        """Whether the vectors are those that were written; read once, then remembered."""
        self.verified = self.verified or zlib.crc32(self.vectors) == self.checksum
        return self.verified


class ShardStore:
    """The shards of one encoder.

    Args:
        folder: The store's folder; made when the first shard is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shards: list[Shard] = []
        self._open: set[str] = set()
        self._keys, self._locations = np.empty(0, KEY), np.empty(0, np.int64)
        # Never closed while the store lives: closing any descriptor of a file drops all the process's locks on it.
        self.locks = FileLocks(folder / "lock")

    def files(self) -> list[Path]:
        """The shards' paths, in the order in which they count."""
        with contextlib.suppress(FileNotFoundError):
            return sorted((self.folder / "shards").glob("*.safetensors"))
        return []

    def refresh(self) -> None:
        """Opens shards that have appeared since; a damaged one is removed, with a warning, to be made again."""
        new: list[Shard] = []
        for path in self.files():
            if path.name in self._open:
                continue
            try:
                new.append(Shard(path))
            except FileNotFoundError:
                continue  # merged by a `prune` that ran at the same time; its rows are in a later shard
            except ValueError as error:
                self.discard(path, str(error))
                continue
            self._open.add(path.name)
        if not new:
            return
        keys, locations = [self._keys], [self._locations]
        for number, shard in enumerate(new, start=len(self.shards)):
            keys.append(shard.keys)
            locations.append((number << _ROW_BITS) + np.arange(len(shard.keys), dtype=np.int64))
        self.shards += new
        keys, locations = np.concatenate(keys), np.concatenate(locations)
        # Stable, so that of several shards with the same text the first one stays the one that counts.
        order = np.argsort(keys, kind="stable")
        keys, locations = keys[order], locations[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        self._keys, self._locations = keys[first], locations[first]

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """Locations of text keys, (n,) int64, -1 where the store has none.

        The shards found are verified, once each; damaged ones are removed, with a warning, and their texts are missing.
        """
        while True:
            found = np.full(len(keys), -1, dtype=np.int64)
            place, hit = find_sorted(self._keys, keys)
            found[hit] = self._locations[place[hit]]
            numbers = np.unique(found[found >= 0] >> _ROW_BITS)
            damaged = [shard for shard in (self.shards[i] for i in numbers) if not shard.verify()]
            if not damaged:
                return found
            for shard in damaged:
                self.discard(shard.path, "the checksum of its vectors does not match")
            self.reload()

    def shard_rows(self, number: int) -> np.ndarray:
        """Rows of an open shard that count: those whose text no earlier shard has."""
        mine = self._locations[self._locations >> _ROW_BITS == number]
        return np.sort(mine & ((1 << _ROW_BITS) - 1))

    def reload(self) -> None:
        """Forgets what is open and reads the folder again; earlier locations are void."""
        self.shards, self._open = [], set()
        self._keys, self._locations = np.empty(0, KEY), np.empty(0, np.int64)
        self.refresh()

    def discard(self, path: Path, reason: str) -> None:
        """Removes a damaged shard, with a warning."""
        logger.warning("feature cache: %s is damaged (%s); its texts are encoded again", path, reason)
        with disk_errors(self.folder, 0), contextlib.suppress(FileNotFoundError):
            path.unlink()

    def has(self, name: str) -> bool:
        """Whether a shard of this set of keys exists."""
        return any((self.folder / "shards").glob(f"*-{name}.safetensors"))

    def write(self, keys: np.ndarray, vectors: np.ndarray, truncated: np.ndarray, needed: int) -> Path:
        """Adds a shard, unless one of the same keys is there already.

        Args:
            keys: (n,) of dtype `KEY`.
            vectors: (n, d) float16.
            truncated: (n,) bool.
            needed: Bytes still to be written in all, for the error if the disk is full.
        """
        keys = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, KEY_BYTES)
        truncated = np.ascontiguousarray(truncated, dtype=np.uint8)
        vectors = np.ascontiguousarray(vectors, dtype=np.float16)
        content = _shard_bytes(keys, truncated, vectors)
        name = shard_name(keys)
        with disk_errors(self.folder, needed):
            shards, temporary = self.folder / "shards", self.temporary()
            shards.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                with self.lock(0):
                    existing = [path for path in self.files() if path.stem.endswith(f"-{name}")]
                    if existing:
                        return existing[0]
                    last = max((int(path.name.split("-")[0]) for path in self.files()), default=-1)
                    final = shards / f"{last + 1:06d}-{name}.safetensors"
                    os.replace(temporary, final)
                    _sync_folder(shards)
                    return final
            finally:
                temporary.unlink(missing_ok=True)

    def temporary(self) -> Path:
        """A path of its own for a file being written; `prune` clears what a kill left there."""
        folder = self.folder / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"

    @contextlib.contextmanager
    def lock(self, number: int) -> Iterator[None]:
        """Waits for lock `number` of the store (0: its list of shards) and holds it; ends with the process at worst."""
        self.locks.acquire(number)
        try:
            yield
        finally:
            self.locks.release(number)


def find_sorted(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in sorted `keys` each wanted one would stand, and whether it does; both (n,)."""
    place = np.searchsorted(keys, wanted)
    hit = np.zeros(len(wanted), dtype=bool)
    inside = place < len(keys)
    hit[inside] = keys[place[inside]] == wanted[inside]
    return place, hit


def shard_name(keys: np.ndarray) -> str:
    """16 hex digits that name a set of keys in their order."""
    return hashlib.blake2b(np.ascontiguousarray(keys).view(np.uint8), digest_size=8).hexdigest()


def split_locations(locations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shard numbers and rows of locations."""
    return locations >> _ROW_BITS, locations & ((1 << _ROW_BITS) - 1)


def _shard_bytes(keys: np.ndarray, truncated: np.ndarray, vectors: np.ndarray) -> bytes:
    """A safetensors file. Not by `safetensors.save`, which puts metadata in random order: equal shards, equal bytes."""
    header: dict = {
        "__metadata__": {
            "schema": str(SCHEMA),
            "keys_crc32": str(zlib.crc32(truncated, zlib.crc32(keys))),
            "vectors_crc32": str(zlib.crc32(vectors)),
        }
    }
    parts, end = (("vectors", "F16", vectors), ("keys", "U8", keys), ("truncated", "U8", truncated)), 0
    for name, dtype, array in parts:
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the vectors are aligned
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for _, _, array in parts)])


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
