"""Reads rows from JSONL, JSON, CSV, TSV and parquet files, a folder of them, or a dataset on the Hub.

Everything streams: one line, one JSON value or a few hundred parquet rows are in memory at a time. A row that cannot
be read comes as a `RowError` in its place, so that it can be skipped; where the file itself is damaged, so that it is
unknown where the next row begins, the error is raised.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...files import sha256_of
from ..schema import RowError
from .table_hub import hub_commit, hub_rows
from .table_json import (
    DECODER,
    ENCODINGS,
    MAX_RECORD,
    UNDECODED,
    bad_json,
    check_encoding,
    json_values,
    row_object,
    undecoded,
    undecoded_in,
)

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_ACCEPTED = ".jsonl, .json, .csv, .tsv (each also with .gz) or .parquet"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MAGIC = {
    b"\xff\xfe": ("UTF-16 text", "Pass --encoding utf-16"),
    b"\xfe\xff": ("UTF-16 text", "Pass --encoding utf-16"),
    b"PK\x03\x04": ("a zip archive or spreadsheet", "Unpack it, or save it as CSV"),
    b"PAR1": ("parquet", "Name it .parquet"),
    b"\x1f\x8b": ("compressed by gzip", "Add .gz to its name"),
}


@dataclass
class TableReader:
    """Rows of one table, wherever it lies.

    Args:
        path: A file, a folder of files of one format, or a Hub dataset id such as `owner/name`.
        format: One of `jsonl`, `json`, `csv`, `tsv`, `parquet`, where the names do not tell.
        encoding: Of text files; a byte-order mark is accepted.
        delimiter: Between CSV cells.
        hub_config, hub_split, hub_revision: Which part and version of a Hub dataset.

    Iterating gives `(file, row number, row or RowError)`. Row numbers count from 1: lines in JSONL, values in JSON,
    rows as a spreadsheet shows them in CSV (the header is row 1), rows in parquet and on the Hub.
    """

    path: str
    format: str | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    hub_revision: str | None = None
    files: list[Path] = field(default_factory=list, init=False)
    hub: bool = field(default=False, init=False)
    columns: set[str] | None = field(default=None, init=False)  # parquet: read only these

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        if self.delimiter is not None:
            self.delimiter = {"\\t": "\t", "tab": "\t"}.get(self.delimiter, self.delimiter)
            if len(self.delimiter) != 1 or self.delimiter in '\r\n"':
                raise ConfigError(f"`delimiter` is {self.delimiter[:10]!r}: give one character, such as ;")
        self.files, self.format, self.hub = find_files(self.path, self.format)
        self._sizes = [max(file.stat().st_size, 1) for file in self.files]
        self._raw: Any = None
        self._number, self._share = 0, 0.0

    def __iter__(self) -> Iterator[tuple[str, int, dict[str, Any] | RowError]]:
        if self.hub:
            yield from hub_rows(self.path, self.hub_config, self.hub_split, self.hub_revision)
            return
        read = {"jsonl": self._jsonl, "json": self._json, "parquet": self._parquet}.get(self.format, self._csv)
        for index, file in enumerate(self.files):
            self._number, self._share, name, number = index, 0.0, str(file), 0
            try:
                for number, row in read(file):
                    yield name, number, row.at(name, number) if isinstance(row, RowError) else row
            except UnicodeError:
                remedy = f"Say which it has with --encoding: {ENCODINGS} (utf-16-le or utf-16-be where no mark tells)"
                raise DataError(f"bytes that are not {self.encoding}", remedy, file=name, row=number + 1) from None
            except (OSError, EOFError, zlib.error) as error:
                remedy = "It may be cut off: fetch or write it again"
                found = f"the file cannot be read ({type(error).__name__})"
                raise DataError(found, remedy, file=name, row=number + 1) from None
            finally:
                if self._raw is not None:
                    self._raw.close()
        self._number, self._share = len(self.files), 0.0

    def fraction(self) -> float | None:
        """The share of the bytes that was read; None for the Hub."""
        if self.hub:
            return None
        share = self._share
        if self._raw is not None and not self._raw.closed:
            share = self._raw.tell() / self._sizes[self._number]
        done = sum(self._sizes[: self._number])
        if self._number < len(self._sizes):
            done += min(share, 1.0) * self._sizes[self._number]
        return done / sum(self._sizes)

    def version(self) -> dict[str, Any]:
        """`{"sha256": {file name: hash}}`, or `{"version": "owner/name@revision"}`."""
        if self.hub:
            return {"version": f"{self.path}@{self.hub_revision or hub_commit(self.path)}"}
        root = Path(self.path)
        hashes = {}
        for file in self.files:
            hashes[file.relative_to(root).as_posix() if root.is_dir() else file.name] = sha256_of([file])
        return {"sha256": hashes}

    def _text(self, file: Path, newline: str) -> io.TextIOWrapper:
        """The file as text: unreadable bytes become lone surrogates, which the caller turns into a row's error."""
        raw = open(file, "rb")  # noqa: SIM115 - closed by `__iter__`
        self._raw = raw
        stream: Any = raw
        if file.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        stream = io.BufferedReader(stream) if not isinstance(stream, io.BufferedReader) else stream
        encoding = codecs.lookup(self.encoding).name
        start = stream.peek(4)[:4]
        for magic, (what, remedy) in _MAGIC.items():
            if start.startswith(magic) and not encoding.startswith(("utf-16", "utf-32")):
                raise DataError(f"the file is {what}, not {self.format} in {encoding}", remedy, file=str(file))
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding
        return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline=newline)

    def _jsonl(self, file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        with self._text(file, "\n") as stream:
            number = 0
            while line := stream.readline(MAX_RECORD):
                number += 1
                if len(line) == MAX_RECORD:
                    raise DataError(
                        f"a line of more than {MAX_RECORD:,} characters",
                        "Write one JSON object a line, or name the file .json if it is one array",
                        file=str(file),
                        row=number,
                    )
                if line.isspace():
                    continue
                if (error := undecoded(line, self.encoding)) is not None:
                    yield number, error
                    continue
                try:
                    row = DECODER.decode(line)
                except (ValueError, RecursionError) as error:
                    yield number, bad_json(error, line, "Each line must be one JSON object; is it cut off?")
                    continue
                yield number, row_object(row)

    def _json(self, file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        with self._text(file, "\n") as stream:
            for number, value in enumerate(json_values(stream, str(file), self.encoding), 1):
                yield number, row_object(value)

    def _csv(self, file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        csv.field_size_limit(2**31 - 1)
        delimiter = self.delimiter or ("\t" if self.format == "tsv" else ",")
        with self._text(file, "") as stream:
            lines = _Lines(stream, str(file), undecoded_in(self.encoding))
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header: list[str] | None = None
            while True:
                lines.begin()
                try:
                    cells = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    if "unexpected end" in str(error):
                        raise DataError(
                            "a quote that is opened in this row is never closed",
                            "Close it, or double it inside a quoted cell",
                            file=str(file),
                            row=lines.record,
                        ) from None
                    found = "the quoting is wrong (text after a closing quote)"
                    remedy = "Double quotes inside a quoted cell, or drop such rows with --skip_invalid"
                    if header is None:
                        raise DataError(found, remedy, file=str(file), row=1) from None
                    yield lines.record, RowError("malformed_csv", found, remedy, raw="".join(lines.raw))
                    continue
                if not cells:
                    continue
                if header is None:
                    header = _header(cells, str(file), delimiter)
                elif lines.undecoded:
                    yield lines.record, undecoded("".join(lines.undecoded), self.encoding, raw=cells)
                elif len(cells) != len(header):
                    found = f"{len(cells)} cells where the header has {len(header)}"
                    remedy = "Quote cells that hold the delimiter, or drop such rows with --skip_invalid"
                    column = header[len(cells)] if len(cells) < len(header) else None
                    yield lines.record, RowError("ragged_row", found, remedy, raw=cells, column=column)
                else:
                    yield lines.record, dict(zip(header, cells))

    def _parquet(self, file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        try:
            with pq.ParquetFile(file) as table:
                names = table.schema_arrow.names
                _refuse_duplicates(names, str(file))
                # The first row settles which columns are wanted; the others are not read.
                for batch in table.iter_batches(1):
                    number = 1
                    yield number, batch.to_pylist()[0]
                    break
                wanted = None if self.columns is None else [name for name in names if name in self.columns]
                skip = 1
                for batch in table.iter_batches(256, columns=wanted):
                    for row in batch.to_pylist()[skip:]:
                        number += 1
                        yield number, row
                    skip, self._share = 0, number / max(table.metadata.num_rows, 1)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            found = f"the file is damaged or no parquet ({type(error).__name__})"
            raise DataError(found, "Fetch or write it again", file=str(file), row=number + 1) from None


def find_files(path: str, format: str | None) -> tuple[list[Path], str | None, bool]:
    """`(files, their format, whether path is a Hub dataset)`."""
    root = Path(path)
    if root.suffix == ".arrow":
        raise _saved_to_disk(path)
    if root.is_file():
        found = format or format_of(root)
        if found is None:
            raise DataError(
                f"`{root.suffix or 'no ending'}` does not tell the format", f"Use {_ACCEPTED}, or --format", file=path
            )
        return [root], found, False
    if (root / "build.json").is_file():
        raise DataError("this is a dataset folder already", "Use it as it is: `pluralrlhf data inspect`", file=path)
    if not root.is_dir():
        if _HUB_ID.fullmatch(path) and format_of(root) is None:
            return [], None, True
        raise DataError("there is no such file or folder", "Check --path (a Hub dataset is owner/name)", file=path)
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and not _hidden(p.relative_to(root))]
    if format in (None, "json") and any(p.suffix == ".arrow" or p.name == "dataset_dict.json" for p in files):
        raise _saved_to_disk(path)
    formats = Counter(f for p in files if (f := format_of(p)))
    if format is None and len(formats) > 1:
        held = ", ".join(f"{n} {f}" for f, n in sorted(formats.items()))
        raise DataError(
            f"the folder holds several formats ({held})", "Name the file, or choose by --format", file=path
        )
    chosen = format or next(iter(formats), None)
    files = [p for p in files if chosen and format_of(p) == chosen]
    if not files:
        raise DataError(
            "there are no data files in the folder", f"Files are taken by their ending: {_ACCEPTED}", file=path
        )
    return files, chosen, False


def _saved_to_disk(path: str) -> DataError:
    remedy = "Export it: `datasets.load_from_disk(...)`, then `to_parquet` or `to_json` of one split"
    return DataError("Arrow files, as `Dataset.save_to_disk` writes them", remedy, file=path)


def format_of(path: Path) -> str | None:
    """The format by the file's name, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        return FORMATS.get(suffixes[-2]) if len(suffixes) > 1 and suffixes[-2] != ".parquet" else None
    return FORMATS.get(suffixes[-1]) if suffixes else None


class _Lines:
    """Lines for `csv.reader`, counting records, and refusing one that an unclosed quote makes endless."""

    def __init__(self, stream: io.TextIOBase, file: str, no_text: re.Pattern[str]):
        self.stream, self.file, self.no_text = stream, file, no_text
        self.record, self.chars = 0, 0
        self.raw: list[str] = []
        self.undecoded: list[str] = []

    def begin(self) -> None:
        self.record, self.chars = self.record + 1, 0
        self.raw, self.undecoded = [], []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(MAX_RECORD)
        if not line:
            raise StopIteration
        self.chars += len(line)
        self.raw.append(line)
        if self.chars >= MAX_RECORD:
            found = f"a row of more than {MAX_RECORD:,} characters: a quote opened in it may never be closed"
            raise DataError(found, "Correct the quoting", file=self.file, row=self.record)
        if not line.isascii() and self.no_text.search(line):
            self.undecoded.append(line)
        return line


def _header(cells: list[str], file: str, delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if any(UNDECODED.search(name) for name in names):
        raise DataError("the header is not in this encoding", "Say which it has with --encoding", file=file, row=1)
    if len(names) == 1 and delimiter == "," and (other := next((d for d in ";\t|" if d in names[0]), None)):
        shown = "tab" if other == "\t" else f"'{other}'"
        raise DataError(f"one column only, whose name holds {shown}", f"Pass --delimiter {shown}", file=file, row=1)
    _refuse_duplicates([name for name in names if name], file)
    return names


def _refuse_duplicates(names: list[str], file: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(
                f"the column occurs {count} times", "Rename all but one", file=file, row=1, column=name[:40]
            )


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)
