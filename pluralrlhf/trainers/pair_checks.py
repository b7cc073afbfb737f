"""What a preference dataset must hold before its texts are embedded or tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..data.history import id_column
from ..data.schema import kind
from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

SIDES = ("chosen", "rejected")


def check_split(name: str, dataset: Dataset) -> None:
    """Raises a `DataError` for a split without rows, without a side, or with a row that says not who judged."""
    where = f"split `{name}`"
    if not len(dataset):
        raise DataError("there are no rows", "Give a split that has some.", file=where)
    for column in SIDES:
        if column not in dataset.column_names:
            raise DataError("the column is missing", "Give `prompt`, `chosen`, `rejected`.", file=where, column=column)
    if "user_id" in dataset.column_names:
        id_column(dataset, "user_id", where)


def checked_texts(name: str, rows: Iterable[tuple[Any, Any, Any]]) -> Iterator[tuple[Any, Any, Any]]:
    """The prompt, chosen and rejected of each row, or a `DataError` that names the row which says nothing."""
    for number, row in enumerate(rows, 1):
        where = {"file": f"split `{name}`", "row": number}
        stripped = []
        for column, value in zip(("prompt", *SIDES), row):
            texts = [value] if isinstance(value, str) else value if isinstance(value, list) else None
            contents = [text if isinstance(text, str) else _content(text) for text in texts or ()]
            if texts is None or not all(isinstance(content, str) for content in contents):
                found = (
                    f"{kind(value)} {'that holds no text' if isinstance(value, list) else 'where a text is expected'}"
                )
                raise DataError(found, "Give a text or messages, or leave the row out.", column=column, **where)
            stripped.append([content.strip() for content in contents])
        if stripped[1] == stripped[2]:
            remedy = "A preference needs two different texts: leave the row out."
            raise DataError("`chosen` equals `rejected`", remedy, column="rejected", **where)
        yield row


def _content(message: Any) -> Any:
    return message.get("content") if isinstance(message, dict) else None
