"""The row contract: what a preference pair and a user look like, and the errors of rows that do not keep it.

Rows are plain dictionaries. A pair row is::

    {"user_id": "u7", "pair_id": "9f0c…", "item_ids": ["p-31"],
     "prompt":   [{"role": "user", "content": "…"}],
     "chosen":   [{"role": "assistant", "content": "…"}],
     "rejected": [{"role": "assistant", "content": "…"}],
     "margin": 1.0}                                   # optional, but then in every row

`prompt`, `chosen` and `rejected` are TRL's conversational preference columns. `item_ids` names what must not occur in
both a target and its context: the prompt's id, or the ids of the two texts compared. Keys that start with an
underscore carry a row's origin (`_file`, `_row`, `_raw`) or a population's own choice of item side (`_test_item`);
the writer reads and drops them.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1

TRAIN, VALIDATION = "train", "validation"
TEST_SPLITS = (
    "test_seen_users_seen_items",
    "test_seen_users_unseen_items",
    "test_unseen_users_seen_items",
    "test_unseen_users_unseen_items",
)
SPLITS = (TRAIN, VALIDATION, *TEST_SPLITS)

ROLES = ("system", "user", "assistant", "tool")
TEXT_COLUMNS = ("prompt", "chosen", "rejected")
PAIR_COLUMNS = ("user_id", "pair_id", "item_ids", *TEXT_COLUMNS)
USER_COLUMNS = ("user_id", "profile", "attributes", "conversations")

MAX_CHARS = 1_000_000  # a text; some 250,000 tokens, more than any reward model reads
MAX_ID_CHARS = 512
_EXACT = 2**53  # below it a decimal number is exactly one integer

FEW_PAIRS = 200  # of which an accuracy says little: its standard error is some 3.5 points

# Control characters other than white space, and halves of surrogate pairs (no valid UTF-8).
_FORBIDDEN = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
LEAVE_OUT = "leave the column out"  # of optional ones
_SKIP = "or drop such rows with --skip_invalid"


class RowError(DataError):
    """One row does not keep the contract. A source *yields* it in place of the row, so that it can be skipped.

    Args:
        reason: A short slug under which `--skip_invalid` counts the row, such as `empty_text`.
        raw: The row as it was read, written aside to `skipped.jsonl`; never printed.
    """

    def __init__(self, reason: str, found: str, remedy: str, *, raw: Any = None, **where: Any):
        self.reason, self.raw = reason, raw
        super().__init__(found, remedy, **where)

    def at(
        self, file: str | None, row: int | None, column: str | None = None, names: dict[str, str] | None = None
    ) -> RowError:
        """The same error with where it was found.

        Args:
            file, row: Where.
            column: The column, if the error does not know it already.
            names: What the table calls our columns; the error then speaks of the table's.
        """
        column, found, remedy = self.column or column, self.found, self.remedy
        if names is not None:
            remedy = remedy.replace(LEAVE_OUT, f"{LEAVE_OUT} with --map {column}=")
            if (theirs := names.get(column, column)) != column:
                found, remedy = (text.replace(f"`{column}`", f"`{theirs[:40]}`") for text in (found, remedy))
                column = theirs
        return RowError(self.reason, found, remedy, raw=self.raw, file=file, row=row, column=column)


def pairs_schema(with_margin: bool = False) -> pa.Schema:
    """Arrow schema of the `pairs` config."""
    import pyarrow as pa

    conversation = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    fields = [
        ("user_id", pa.string()),
        ("pair_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        *((column, conversation) for column in TEXT_COLUMNS),
    ]
    return pa.schema(fields + ([("margin", pa.float64())] if with_margin else []))


def __getattr__(name: str) -> Any:
    # USERS_SCHEMA is a module constant that needs pyarrow, which `data list` and `-h` must not wait for.
    if name == "USERS_SCHEMA":
        import pyarrow as pa

        return pa.schema([(column, pa.string()) for column in USER_COLUMNS])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def messages(text: str, role: str = "assistant") -> list[dict[str, str]]:
    """One text as a conversation of one message."""
    return [{"role": role, "content": text}]


def kind(value: Any) -> str:
    """What a value is, in words, for error messages: never the value itself."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity"
    names = {str: "a text", int: "an integer", float: "a decimal number", dict: "an object", list: "a list"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC), so that one word in two codings is one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def clean_id(value: Any, column: str, **where: Any) -> str:
    """An id as a composed string without surrounding white space: strings and integers are taken, all else is a `RowError`.

    A whole decimal number is the integer that it was before a missing value turned its column into decimals, below 2^53,
    from where on two integers may have become one.
    """
    whole = isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value)
    if whole and (abs(value) < _EXACT or isinstance(value, Decimal)):  # of a decimal every digit is there
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        # Python refuses to print integers of thousands of digits; such an id is too long anyway.
        value = str(value) if value.bit_length() < 4 * MAX_ID_CHARS else "9" * (MAX_ID_CHARS + 1)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        found, remedy, reason = (
            f"`{column}` is {kind(value)}",
            f"Give every row an id in `{column}`",
            f"missing_{column}",
        )
    elif not isinstance(value, str):
        found, reason = f"`{column}` is {kind(value)}, not a text or an integer", f"wrong_type_{column}"
        remedy = "Write ids as texts or whole numbers"
    elif not value.strip():
        found, remedy, reason = f"`{column}` is empty", f"Give every row an id in `{column}`", f"empty_{column}"
    elif len(value) > MAX_ID_CHARS:
        found, reason = f"an id of more than {MAX_ID_CHARS} characters", f"too_long_{column}"
        remedy = "Use a shorter id (is a text mapped to an id by mistake?)"
    elif not value.isprintable() and (_FORBIDDEN.search(value) or "\n" in value or "\r" in value):
        found, reason = "an id with a line break or control character", "control_character"
        remedy = "Remove it"
    else:
        return composed(value.strip())
    raise RowError(reason, found, f"{remedy}, {_SKIP}", column=column, **where)


def check_text(text: Any, column: str, **where: Any) -> str:
    """A text that is not empty, not absurdly long and can be written as UTF-8, or a `RowError`."""
    if not isinstance(text, str):
        reason = "missing_text" if text is None else "wrong_type"
        remedy = "Give a text" if text is None else "Map a column that holds texts or message lists"
        raise RowError(reason, f"{kind(text)} where a text is expected", f"{remedy}, {_SKIP}", column=column, **where)
    if not text.strip():
        raise RowError("empty_text", "the text is empty", f"Fill it in, {_SKIP}", column=column, **where)
    if len(text) > MAX_CHARS:
        found = f"a text of {len(text):,} characters (at most {MAX_CHARS:,})"
        raise RowError("too_long", found, f"Shorten it, {_SKIP}", column=column, **where)
    if not text.isprintable() and (match := _FORBIDDEN.search(text)):
        code = ord(match.group())
        found = f"control character U+{code:04X} at character {match.start() + 1}"
        if code >= 0xD800:
            found = f"half a surrogate pair (U+{code:04X}) at character {match.start() + 1}: not valid Unicode"
        raise RowError("control_character", found, f"Remove it, {_SKIP}", column=column, **where)
    return text


def check_messages(value: Any, column: str, **where: Any) -> list[dict[str, str]]:
    """A conversation: a list of `{"role", "content"}` with known roles and texts that are not empty."""
    if not isinstance(value, list):
        reason = "missing_text" if value is None else "wrong_type"
        found = f"{kind(value)} where a list of messages is expected"
        raise RowError(reason, found, f"Give a list of role and content, {_SKIP}", column=column, **where)
    if not value:
        raise RowError("empty_text", "the list of messages is empty", f"Fill it in, {_SKIP}", column=column, **where)
    clean = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            found = f"message {number} is {kind(message)}" + (
                " without `role` and `content`" if isinstance(message, dict) else ", not an object"
            )
            remedy = f"Write messages as {{'role': …, 'content': …}}, {_SKIP}"
            raise RowError("wrong_type", found, remedy, column=column, **where)
        if message["role"] not in ROLES:
            role = message["role"]
            found = f"unknown role {role[:20]!r}" if isinstance(role, str) else f"a role that is {kind(role)}"
            remedy = f"Use one of {', '.join(ROLES)}, {_SKIP}"
            raise RowError("unknown_role", f"message {number} has {found}", remedy, column=column, **where)
        clean.append({"role": message["role"], "content": check_text(message["content"], column, **where)})
    return clean


def validate_pair(row: dict[str, Any], *, file: str | None = None, row_number: int | None = None) -> dict[str, Any]:
    """The row in the contract's form (keys in the schema's order, ids as strings).

    Args:
        row: A pair row; keys with a leading underscore are ignored.
        file, row_number: Where it came from, for the error.

    Raises:
        RowError: a column is missing or unknown, a text is empty, `chosen` equals `rejected`, a role is unknown, the
            margin is not a finite number.
    """
    where = {"file": file, "row": row_number}
    for column in PAIR_COLUMNS:
        if column not in row:
            found = f"there is no `{column}`"
            raise RowError("missing_column", found, f"Map a column to it, {_SKIP}", column=column, **where)
    clean: dict[str, Any] = {
        "user_id": clean_id(row["user_id"], "user_id", **where),
        "pair_id": clean_id(row["pair_id"], "pair_id", **where),
    }
    items = row["item_ids"]
    if not isinstance(items, (list, tuple)) or not items:
        found = "no item id" if isinstance(items, (list, tuple)) else f"{kind(items)} where a list of ids is expected"
        remedy = f"Give a list with the prompt's id or the responses' ids, {_SKIP}"
        raise RowError("wrong_type_item_ids", found, remedy, column="item_ids", **where)
    clean["item_ids"] = list(dict.fromkeys(clean_id(item, "item_ids", **where) for item in items))
    for column in TEXT_COLUMNS:
        clean[column] = check_messages(row[column], column, **where)
    for column in ("chosen", "rejected"):
        if clean[column][-1]["role"] != "assistant":
            found = f"the last message is by `{clean[column][-1]['role']}`"
            remedy = f"A response ends with a message of role `assistant`: correct the role, {_SKIP}"
            raise RowError("unknown_role", found, remedy, column=column, **where)
    if _stripped(clean["chosen"]) == _stripped(clean["rejected"]):
        remedy = f"A preference needs two different texts, {_SKIP}"
        raise RowError("equal_responses", "`chosen` equals `rejected`", remedy, column="rejected", **where)
    if "margin" in row:
        margin = row["margin"]
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not _finite(margin):
            remedy = f"Give every row a finite number, {LEAVE_OUT}, {_SKIP}"
            raise RowError("bad_margin", f"the margin is {kind(margin)}", remedy, column="margin", **where)
        if margin < 0:
            remedy = f"Swap `chosen` and `rejected`, give the margin without its sign, {LEAVE_OUT}, {_SKIP}"
            raise RowError("negative_margin", "the margin is negative", remedy, column="margin", **where)
        clean["margin"] = float(margin)
    for column in row:
        if column not in clean and not str(column).startswith("_"):
            remedy = f"A pair has {', '.join(PAIR_COLUMNS)} and, if given for all, margin"
            raise RowError("unknown_column", "the column is unknown", remedy, column=str(column)[:40], **where)
    return clean


def validate_user(row: dict[str, Any], *, file: str | None = None, row_number: int | None = None) -> dict[str, Any]:
    """A row of the `users` config: `attributes` and `conversations` become JSON texts, absent columns null."""
    where = {"file": file, "row": row_number}
    if "user_id" not in row:
        raise RowError("missing_column", "there is no `user_id`", "Give every user an id", column="user_id", **where)
    clean: dict[str, Any] = {"user_id": clean_id(row["user_id"], "user_id", **where)}
    profile = row.get("profile")
    clean["profile"] = None if profile is None or profile == "" else check_text(profile, "profile", **where)
    for column in ("attributes", "conversations"):
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            value = json.dumps(value, sort_keys=True, ensure_ascii=False)
        clean[column] = None if value is None else check_text(value, column, **where)
    for column in row:
        if column not in clean and not str(column).startswith("_"):
            remedy = f"A user has {', '.join(USER_COLUMNS)}"
            raise RowError("unknown_column", "the column is unknown", remedy, column=str(column)[:40], **where)
    return clean


def _stripped(conversation: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in conversation]


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of a float
        return False
