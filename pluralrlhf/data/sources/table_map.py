"""From a table's own columns to users, texts and judgments (which `table_values.py` reads).

A table is laid out in one of four ways: as `pairs` (chosen, rejected), as `choices` (two responses and which one was
chosen), as `ratings` (a response and a number or label), or as `rankings` (a list of responses, best first). Which one
follows from the names in `--map`, or from the columns of the first row.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError
from ..schema import RowError, composed, kind
from ..splits import hash64
from .table_values import A_LIST, NO_LISTS, written_list, written_messages

LAYOUTS = {
    "pairs": ("chosen", "rejected"),
    "choices": ("response_a", "response_b", "choice"),
    "ratings": ("response", "rating"),
    "rankings": ("ranking",),
}
STANDALONE = ("ratings", "rankings")  # layouts whose texts need no prompt
OPTIONAL = ("prompt", "pair_id", "margin", "profile")
TARGETS = ("user_id", *OPTIONAL, *(name for names in LAYOUTS.values() for name in names))
MISSING = object()
_SKIP = "or drop such rows with --skip_invalid"


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Refuses unknown names, names of two layouts at once, and a name that cannot be left out mapped to nothing."""
    for name in mapping:
        if name not in TARGETS:
            close = difflib.get_close_matches(name, TARGETS, n=2)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(TARGETS)}"
            raise ConfigError(f"`--map` has the unknown name {name[:40]!r}. {hint}")
        if not mapping[name] and name not in OPTIONAL:
            remedy = f"name its column. What can be left out, as with {OPTIONAL[1]}=, is {', '.join(OPTIONAL)}"
            raise ConfigError(f"`--map {name}=` names no column, but a table needs `{name}`: {remedy}")
    layouts = [layout for layout, names in LAYOUTS.items() if any(name in mapping for name in names)]
    if len(layouts) > 1:
        raise ConfigError(
            f"`--map` names {' and '.join(layouts)} at once: map one of "
            + ", or ".join(" + ".join(LAYOUTS[layout]) for layout in LAYOUTS)
        )


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """The value under a column's name, or a dotted path into nested objects and lists; `MISSING` if there is none.

    In a list a number is a place; a name is the list of what each of its objects has under it.
    """
    value = row.get(path, MISSING)
    return _walk(row, path.split(".")) if value is MISSING and "." in path else value


def _walk(value: Any, parts: Sequence[str]) -> Any:
    if not parts:
        return value
    part, *rest = parts
    if isinstance(value, Mapping) and part in value:
        return _walk(value[part], rest)
    if not isinstance(value, list):
        return MISSING
    if part.removeprefix("-").isdecimal():
        return _walk(value[int(part)], rest) if -len(value) <= int(part) < len(value) else MISSING
    # Only objects: a list of lists would be walked as deep as it is nested, and has no place of its own for a name.
    values = [_walk(each, parts) if isinstance(each, Mapping) else MISSING for each in value]
    return MISSING if any(each is MISSING for each in values) else values


@dataclass
class Columns:
    """Where each of our names is found in a row.

    Args:
        mapping: our name -> the table's column, as far as the caller gave it; an empty text for an optional name
            leaves the column of that name unused.
        items: `prompt`, `responses`, a column, or None for what fits the layout.
        default_prompt: The prompt of rows that have none.
    """

    mapping: Mapping[str, str]
    items: str | None = None
    default_prompt: str | None = None
    layout: str = field(default="", init=False)
    found: dict[str, str] = field(default_factory=dict, init=False)
    raters: list[str] = field(default_factory=list, init=False)  # columns that are one rater's judgments each

    def resolve(self, row: Mapping[str, Any]) -> None:
        """Settles the layout and the columns by the first row.

        Raises:
            RowError: a column is not there; the row is not the one to settle it by.
        """
        layout = next((name for name, parts in LAYOUTS.items() if any(p in self.mapping for p in parts)), None)
        if layout is None:
            layout = next((name for name, parts in LAYOUTS.items() if all(p in row for p in parts)), None)
        if layout is None:
            wanted = ", or ".join(" + ".join(parts) for parts in LAYOUTS.values())
            raise self._missing(row, "chosen", f"Map {wanted}")
        found = {}
        for name in ("user_id", *OPTIONAL, *LAYOUTS[layout]):
            if name in self.unused:
                continue
            path = self.mapping.get(name, name)
            columns = [part.strip() for part in path.split(",")]
            if name in ("choice", "rating") and len(columns) > 1 and lookup(row, path) is MISSING:
                if absent := [column for column in columns if lookup(row, column) is MISSING]:
                    raise self._missing(row, absent[0], f"Correct --map {name}=COLUMN,COLUMN")
                found[name], self.raters = path, columns
            elif (name == "profile" and name in self.mapping) or lookup(row, path) is not MISSING:
                found[name] = path
            elif name in self.mapping:
                raise self._missing(row, path, f"Correct --map {name}=COLUMN")
        for name in LAYOUTS[layout]:
            if name not in found:
                raise self._missing(row, name, f"Add --map {name}=COLUMN")
        judged = row_value(row, found.get("rating") or found.get("choice"))
        if "user_id" not in found and not self.raters and not isinstance(judged, (list, dict)):
            if written_list(judged):
                column = found.get("rating") or found["choice"]
                raise RowError("wrong_type", A_LIST, f"{NO_LISTS}, {_SKIP}", column=column)
            raise self._missing(row, "user_id", "Add --map user_id=COLUMN: which column says who judged")
        if "prompt" not in found and self.default_prompt is None and layout not in STANDALONE:
            texts = row_value(row, found.get("chosen") or found.get("response_a"))
            if not isinstance(texts, list):
                raise self._missing(
                    row, "prompt", "Add --map prompt=COLUMN, or --default_prompt TEXT if there is none"
                )
        if self.items not in (None, "prompt", "responses") and lookup(row, self.items) is MISSING:
            raise self._missing(row, self.items, "Use --items prompt, responses, or the name of a column")
        if layout in STANDALONE and (extra := {"margin", "pair_id"} & set(self.mapping) - self.unused):
            raise ConfigError(f"`--map {extra.pop()}` fits pairs and choices; pairs made of {layout} have none")
        self.layout, self.found = layout, found

    @property
    def unused(self) -> set[str]:
        """Our names whose columns the caller left out."""
        return {name for name, path in self.mapping.items() if not path}

    def need(self, row: Mapping[str, Any], name: str) -> Any:
        """The row's value for one of our names; a row without the column is a `RowError`."""
        path = self.found[name]
        if self.raters and name in ("choice", "rating"):
            votes = {column: lookup(row, column) for column in self.raters}
            return {column: None if vote in (MISSING, "") else vote for column, vote in votes.items()}
        value = row.get(path, MISSING)
        if value is MISSING and (value := lookup(row, path)) is MISSING:
            raise self._missing(row, path, f"Give every row `{path[:40]}`")
        return value

    def _missing(self, row: Mapping[str, Any], column: str, remedy: str) -> RowError:
        columns = ", ".join(str(name)[:40] for name in list(row)[:20]) or "none"
        close = difflib.get_close_matches(column, [str(name) for name in row], n=1, cutoff=0.75)
        hint = f"; is it `{close[0][:40]}`?" if close and close[0] != column else ""
        found = f"there is no column `{column[:40]}` (columns: {columns}{hint})"
        return RowError("missing_column", found, f"{remedy}, {_SKIP}", column=column[:40])


def row_value(row: Mapping[str, Any], path: str | None) -> Any:
    return lookup(row, path) if path else MISSING


def conversation(value: Any, role: str) -> Any:
    """A text as one message of `role`; a list of messages with their roles and contents; others as they are.

    Keys of a message other than role and content are left out. What is wrong is reported by the row's validation.
    """
    if isinstance(value, str):
        if written_messages(value):
            remedy = f"Save the table as JSONL or parquet, where a list is one, {_SKIP}"
            raise RowError("wrong_type", "a message list that is written as one text", remedy)
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        found = "the text is null" if value is None else f"{kind(value)} where a text or message list is expected"
        reason = "missing_text" if value is None else "wrong_type"
        raise RowError(reason, found, f"Give a text, {_SKIP}")
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            found = f"a list that holds {kind(message)}" + (
                " without role or content" if isinstance(message, dict) else ""
            )
            remedy = f"Give a text, or messages with role and content, {_SKIP}"
            if isinstance(message, dict) and {"from", "value"} <= message.keys():
                remedy = (
                    "Rename `from` and `value` to `role` and `content`, and human and gpt to user and assistant, or give a "
                    "text"
                )
            raise RowError("wrong_type", found, remedy)
    return [{"role": message["role"], "content": message["content"]} for message in value]


def item_key(conversation: Sequence[Mapping[str, Any]]) -> int:
    """Hash of a conversation that upper case, white space and Unicode's coding do not change: a leak is one in either spelling."""
    return hash64(*(" ".join(composed(str(message["content"])).split()).casefold() for message in conversation))


def several(responses: Any) -> bool:
    """Whether this is a list of responses, texts or message lists, and not one response."""
    return isinstance(responses, list) and bool(responses) and all(isinstance(each, (str, list)) for each in responses)


def shared_prefix(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many first messages two conversations share, leaving each at least one (TRL's implicit prompt)."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), max(most, 0))


def repeated_prompt(prompt: Sequence[Any], responses: Sequence[Sequence[Any]]) -> int:
    """How many first messages of all the responses are the prompt, or end with it after earlier turns or a system message."""
    first = responses[0] if responses else []
    for n in range(len(prompt), min((len(response) for response in responses), default=0)):
        if n and first[n - len(prompt) : n] == prompt and all(response[:n] == first[:n] for response in responses):
            return n
    return 0


def by_user(user: Any, value: Any) -> list[tuple[Any, Any]]:
    """`(user, judgment)` for each rater of a row.

    A scalar judgment is the row's user's. A list holds one judgment a rater: the users are the row's list of the same
    length, or `rater_1`, `rater_2`, … by position. An object maps raters to judgments. Nulls are raters who gave none.
    """
    if isinstance(value, dict):
        if user is not MISSING:
            raise RowError("wrong_type", "an object of judgments beside a user id", f"Do not map `user_id`, {_SKIP}")
        return [(rater, judged) for rater, judged in value.items() if judged is not None]
    if not isinstance(value, list):
        if user is MISSING:
            raise RowError("missing_column", "a single judgment without a user id", f"Map `user_id`, {_SKIP}")
        return [(user, value)]
    if user is MISSING:
        user = [f"rater_{position}" for position in range(1, len(value) + 1)]
    if not isinstance(user, list) or len(user) != len(value):
        found = f"{len(value)} judgments for {f'{len(user)} users' if isinstance(user, list) else 'one user id'}"
        raise RowError("wrong_type", found, f"Give a list of users of the same length, {_SKIP}")
    return [(rater, judged) for rater, judged in zip(user, value) if judged is not None]
