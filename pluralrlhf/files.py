"""Small files, written whole or not at all, and hashes of what files and values hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def cache_root() -> Path:
    """`$PLURALRLHF_CACHE`, else `~/.cache/pluralrlhf`: downloads lie in `sources/` below it, texts' features in `features/`."""
    return Path(os.environ.get("PLURALRLHF_CACHE") or Path.home() / ".cache" / "pluralrlhf")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file in UTF-8; a kill leaves the old one or the new one, never half of one."""
    path = Path(os.path.realpath(path))  # through a link
    if path.exists() and not path.is_file():  # a device or a pipe has no old content to keep
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    part = path.with_name(f"{path.name}.part")
    # What JSON writes of half a character, which a text that came from JSON may hold and UTF-8 has no bytes for.
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    if path.exists():
        shutil.copymode(path, part)
    os.replace(part, path)


def write_json(path: str | os.PathLike, content: Any, *, allow_nan: bool = True, sort_keys: bool = False) -> None:
    """Writes JSON for people, by `write_text`.

    Raises:
        ValueError: If there is a number that is not finite, without `allow_nan`.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan, sort_keys=sort_keys)
    write_text(path, text + "\n")


def json_digest(value: Any) -> str:
    """A hash of what JSON can say, 16 hexadecimal digits, the same in every process."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def blocks(stream: Any) -> Iterable[bytes]:
    """The bytes of an open file, a mebibyte at a time."""
    while block := stream.read(_BLOCK):
        yield block


def sha256_of(paths: Iterable[str | os.PathLike]) -> str:
    """Hash of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            for block in blocks(stream):
                digest.update(block)
    return digest.hexdigest()
