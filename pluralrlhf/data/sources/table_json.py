"""JSON read strictly and one value at a time; and text whose bytes do not fit its encoding."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...errors import ConfigError, DataError
from ..schema import RowError, kind

UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of bytes that are no text
ENCODINGS = "utf-8, utf-16, cp1252, cp932, gb18030, ..."  # names that errors suggest
# Latin-1 gives every byte a character: those of other encodings show as control characters that no text holds.
_UNDECODED_LATIN_1 = re.compile("[\x80-\x84\x86-\x9f]")
MAX_RECORD = 64_000_000  # characters; a longer line or record is a damaged file


def check_encoding(name: str) -> None:
    """Refuses (ConfigError) what is no encoding of text files."""
    try:
        text = codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):  # ValueError: a name with a null byte
        text = False
    if not text or codecs.lookup(name).name in ("idna", "punycode", "undefined"):
        raise ConfigError(f"`encoding` is {name[:40]!r}, which is no encoding of texts: known are {ENCODINGS}")


def json_values(stream: io.TextIOBase, file: str, encoding: str = "utf-8") -> Iterator[Any]:
    """The elements of a JSON array, or the values of a file that holds several, one at a time.

    Raises:
        DataError: the JSON is malformed (where the next value begins is then unknown).
    """
    buffer, at, number, ended, block = "", 0, 1, False, 1 << 20
    in_array: bool | None = None
    while True:
        at = _SPACE.match(buffer, at).end()
        if at == len(buffer):
            buffer, at = stream.read(block), 0
            ended = not buffer
            if ended and in_array:
                _cut_off(file, number)
            if ended:
                return
            continue
        if in_array is None:
            in_array = buffer[at] == "["
            at += in_array
            opening = True
            continue
        if in_array and buffer[at] == "]":
            if buffer[at + 1 :].strip() or stream.read(block).strip():
                raise DataError("there is more after the array's end", "Keep one array a file", file=file, row=number)
            return
        if in_array and not opening:
            if buffer[at] != ",":
                raise DataError("malformed JSON (a comma is missing)", "Correct it", file=file, row=number)
            at, opening = at + 1, True
            continue
        try:
            value, end = DECODER.raw_decode(buffer, at)
            # A number or word at the very end of what was read may go on.
            complete = ended or end < len(buffer) or buffer[end - 1] in '}]"'
        except json.JSONDecodeError as error:
            complete = False
            if not error.msg.startswith("Unterminated string") and error.pos < len(buffer) - 16:
                remedy = "Correct it, or write one JSON object a line (.jsonl)"
                raise DataError(f"malformed JSON ({error.msg})", remedy, file=file, row=number) from None
            if ended:
                _cut_off(file, number)
        except (ValueError, RecursionError) as error:
            bad = bad_json(error, None, "Correct it")
            raise DataError(bad.found, bad.remedy, file=file, row=number) from None
        if complete:
            yield undecoded(buffer[at:end], encoding) or value
            at, number, opening, block = end, number + 1, False, 1 << 20
            continue
        if len(buffer) - at > MAX_RECORD:
            raise DataError(f"one value of more than {MAX_RECORD:,} characters", "Split it", file=file, row=number)
        more = stream.read(block)
        ended, block = not more, min(block * 2, 1 << 25)
        buffer, at = buffer[at:] + more, 0


def row_object(value: Any) -> dict[str, Any] | RowError:
    """A row that was read as JSON, or the error of one that is no object."""
    if isinstance(value, (dict, RowError)):
        return value
    remedy = "Each row must be an object of column: value, or drop such rows with --skip_invalid"
    return RowError("wrong_type", f"{kind(value)} where an object is expected", remedy, raw=value)


def undecoded_in(encoding: str) -> re.Pattern[str]:
    """What shows in a text that it was not written in the encoding it was read in."""
    return _UNDECODED_LATIN_1 if codecs.lookup(encoding).name == "iso8859-1" else UNDECODED


def undecoded(text: str, encoding: str, raw: Any = None) -> RowError | None:
    """The error of a row that holds bytes which are no text in this encoding, or None."""
    if text.isascii() or not undecoded_in(encoding).search(text):
        return None
    remedy = f"Save the file as UTF-8, say its --encoding ({ENCODINGS}), or drop such rows with --skip_invalid"
    return RowError("wrong_encoding", f"bytes that are not {encoding}", remedy, raw=text if raw is None else raw)


class _DuplicateKey(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        repeated = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise _DuplicateKey(repeated[:40])
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
_SPACE = re.compile(r"[ \t\n\r]*")


def bad_json(error: Exception, raw: Any, remedy: str) -> RowError:
    remedy = f"{remedy} Correct it, or drop such rows with --skip_invalid" if raw is not None else remedy
    column, found = None, "malformed JSON"
    if isinstance(error, _DuplicateKey):
        column, found, remedy = (
            str(error),
            "the key occurs twice in one object",
            "Keep one, or drop with --skip_invalid",
        )
    elif isinstance(error, json.JSONDecodeError):
        found = f"malformed JSON ({error.msg} at character {error.pos + 1})"
    elif isinstance(error, RecursionError):
        found = "JSON that is nested too deeply"
    else:
        found = "a number of too many digits"
    return RowError("malformed_json", found, remedy, raw=raw, column=column)


def _cut_off(file: str, number: int) -> None:
    raise DataError(
        "the JSON ends in the middle: the file is cut off", "Fetch or write it again", file=file, row=number
    )
