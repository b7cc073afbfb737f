"""Where a public dataset comes from: a local copy, or its repository at a pinned commit; and its files, read strictly."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ...errors import DataError
from ...files import blocks, cache_root
from ..schema import RowError, check_text, kind
from .table_json import json_values, row_object

# A cell may hold a long text; Python's own limit of 128 KiB would reject it with an error that names no remedy.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

_READ_ERRORS = (OSError, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Origin:
    """A public repository at one commit, whose files are served one by one.

    Args:
        repository: `owner/name` on GitHub.
        commit: The full hash of the commit that is read.
        licence: SPDX-like name of the data's licence.
        attribution: The sentence that the licence asks for.
    """

    repository: str
    commit: str
    licence: str
    attribution: str

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/"

    def describe(self) -> dict:
        return {
            "origin": f"https://github.com/{self.repository}",
            "commit": self.commit,
            "licence": self.licence,
            "attribution": self.attribution,
        }


def fetch(base_url: str, name: str, *, retries: int = 3, timeout: float = 60.0) -> Path:
    """Downloads one file of an origin, or returns the copy of an earlier call.

    Args:
        base_url: `http(s)://` or `file://` address of the origin's root, ending in `/`.
        name: Path of the file below it.

    Raises:
        DataError: The file is not there, or the origin cannot be reached; says how to use a local copy instead.
    """
    url = urllib.parse.urljoin(base_url, urllib.parse.quote(name))
    key = hashlib.blake2b(base_url.encode(), digest_size=8).hexdigest()
    target = cache_root() / "sources" / key / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(retries):
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
        try:
            with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=timeout) as response:
                length = response.headers.get("Content-Length")
                size = 0
                while block := response.read(1 << 20):
                    out.write(block)
                    size += len(block)
            if length is not None and size != int(length):
                raise OSError(f"{size} of {length} bytes arrived")
            os.replace(partial, target)
            return target
        except (urllib.error.URLError, OSError) as error:
            os.unlink(partial)
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if final or attempt == retries - 1:
                reason = (
                    error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
                )
                raise DataError(
                    f"the download failed ({reason})",
                    "Check the connection, or point `--path` at a local copy",
                    file=url,
                ) from None
            time.sleep(2.0**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def check_folder(path: str | os.PathLike) -> None:
    """Refuses a `--path` that is no folder."""
    if Path(path).is_file():
        raise DataError("a file, not a folder", "Point `--path` at the folder that it lies in", file=str(path))
    if not Path(path).is_dir():
        raise DataError("the folder does not exist", "Check `--path`", file=str(path))


def find_file(folder: str | os.PathLike, names: Sequence[str]) -> Path | None:
    """First of `names` (each also with `.gz`) that exists below `folder`."""
    for name in names:
        for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


def need_file(folder: str | os.PathLike, *names: str) -> Path:
    """Like `find_file`, but a missing file is an error that lists what was looked for."""
    check_folder(folder)
    found = find_file(folder, names)
    if found is None:
        looked_for = " or ".join(f"`{name}`" for name in names)
        raise DataError(
            f"no {looked_for} (plain or .gz) in this folder",
            "Point `--path` at a folder in the layout that `pluralrlhf data build SOURCE -h` shows",
            file=str(folder),
        )
    return found


def sha256(path: str | os.PathLike) -> str:
    """Hash of a file's content; that of the decompressed content for `.gz`, so that packing does not change it."""
    digest = hashlib.sha256()
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            for block in blocks(stream):
                digest.update(block)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest()


def _unreadable(path, error: Exception, row: int | None = None) -> DataError:
    return DataError(
        f"the file cannot be read ({type(error).__name__}: {error})",
        "It may be truncated: fetch it again",
        file=str(path),
        row=row,
    )


@contextlib.contextmanager
def _open_text(path: Path, errors: str = "strict") -> Iterator:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        stream = opener(path, "rt", encoding="utf-8-sig", errors=errors, newline="")
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    with stream:
        yield stream


def read_csv(path: str | os.PathLike) -> Iterator[tuple[int, list[str]]]:
    """Yields `(line, cells)` of a CSV file, header included, line being the 1-based number of the record's last line.

    Raises:
        DataError: The file is truncated, not UTF-8, or not CSV.
    """
    path, line = Path(path), 0
    with _open_text(path) as stream:
        reader = csv.reader(stream, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise DataError(
                    f"bytes that are not UTF-8 ({error.reason})",
                    "Save the file as UTF-8.",
                    file=str(path),
                    row=line + 1,
                ) from None
            except csv.Error as error:
                raise DataError(
                    f"malformed CSV ({error})", "Correct the quoting of this line.", file=str(path), row=line + 1
                ) from None
            except _READ_ERRORS as error:
                raise _unreadable(path, error, line + 1) from None
            line = reader.line_num
            yield line, cells


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict | RowError]]:
    """Yields `(row, object)` of a JSON Lines file, or `(row, error)` for a line that is not one JSON object.

    Blank lines are skipped.

    Raises:
        DataError: The file is truncated or not UTF-8.
    """
    path, row = Path(path), 0
    with _open_text(path) as stream:
        while True:
            try:
                line = stream.readline()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"bytes that are not UTF-8 ({error.reason})",
                    "Save the file as UTF-8.",
                    file=str(path),
                    row=row + 1,
                ) from None
            except _READ_ERRORS as error:
                raise _unreadable(path, error, row + 1) from None
            if not line:
                return
            row += 1
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                found = f"malformed JSON ({getattr(error, 'msg', 'nested too deeply')})"
                remedy = "Every line is one JSON object; is the last one cut off? Correct it, or use --skip_invalid"
                yield row, RowError("malformed_json", found, remedy, raw=line, file=str(path), row=row)
                continue
            if not isinstance(value, dict):
                found = f"{kind(value)} where an object is expected"
                remedy = "Every line is one JSON object; correct it, or use --skip_invalid"
                yield row, RowError("wrong_type", found, remedy, raw=value, file=str(path), row=row)
                continue
            yield row, value


def read_json(path: str | os.PathLike) -> Iterator[tuple[int, dict | RowError]]:
    """Like `read_jsonl`, but a file that is one JSON array gives its elements."""
    path, row = Path(path), 0
    try:
        with _open_text(path, errors="surrogateescape") as stream:
            start = stream.read(1 << 12).lstrip()
        if not start.startswith("["):
            yield from read_jsonl(path)
            return
        with _open_text(path, errors="surrogateescape") as stream:
            for row, value in enumerate(json_values(stream, str(path)), 1):
                yield row, row_object(value)
    except _READ_ERRORS as error:
        raise _unreadable(path, error, row + 1) from None


def text_cell(record: dict, column: str, path: Path, row: int) -> str:
    """Value of a column that must be a text with something in it; raises the `RowError` to yield."""
    if column not in record:
        found, remedy = "the column is missing", "Give every row one, or use --skip_invalid"
        raise RowError("missing_column", found, remedy, raw=record, file=str(path), row=row, column=column)
    try:
        return check_text(record[column], column, file=str(path), row=row)
    except RowError as error:
        error.raw = record
        raise


def parameters(source) -> dict:
    """A source's settings for `build.json`, without where on this machine its files were."""
    return {f.name: getattr(source, f.name) for f in fields(source) if f.name not in ("path", "origin_url")}
