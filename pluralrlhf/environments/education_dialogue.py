"""Education dialogues: recorded lessons in which a teacher finds out how a student learns.

google-research-datasets/Education-Dialogue-Dataset: rows `{background_info: {topic, student_preferences,
teacher_preferences, ...}, conversation: [{role, text}]}`. Its README spells the keys `student_prefrences` and
`teacher_prefrences`; both spellings are read. The student's type, as in Wan et al. 2025 (arXiv 2504.03206), is whether
the student learns by stories or hands on; it is read off the stated preferences by the words below, and lessons whose
preferences name neither or both are dropped and counted.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

TYPES = ("learns by stories", "learns hands on")
WORDS = (
    re.compile(r"\b(stor(y|ies|ytelling)|narratives?|anecdotes?|tales?)\b", re.IGNORECASE),
    re.compile(
        r"\b(hands[\s-]on|experiments?|by doing|activit(y|ies)|building|practical exercises?)\b", re.IGNORECASE
    ),
)
SPELLINGS = {
    "student": ("student_preferences", "student_prefrences"),
    "teacher": ("teacher_preferences", "teacher_prefrences"),
}


@dataclass(frozen=True)
class Lesson:
    """One recorded lesson: `messages` has the teacher as assistant and the student as user."""

    topic: str
    student_preferences: str
    teacher_preferences: str
    messages: tuple[dict[str, str], ...]
    type_index: int | None


def student_type(preferences: str) -> int | None:
    """Index into `TYPES`, or None if the preferences name neither way or both."""
    named = [bool(words.search(preferences)) for words in WORDS]
    return named.index(True) if sum(named) == 1 else None


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        text = file.read()
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg})", "Use the released .json or .jsonl file.", file=str(path)) from None
    yield from enumerate(rows, start=1)


def _field(info: dict, who: str, path: Path, row: int) -> str:
    for key in SPELLINGS[who]:
        if key in info:
            value = info[key]
            return " ".join(value) if isinstance(value, list) else str(value)
    raise DataError(
        f"`background_info` has neither of {', '.join(SPELLINGS[who])}",
        "Use the released files.",
        file=str(path),
        row=row,
        column="background_info",
    )


def load_lessons(path: str | Path, dropped: Counter | None = None) -> list[Lesson]:
    """Lessons of a .json or .jsonl file (or .gz of either); those without one type are dropped.

    Args:
        path: The file.
        dropped: Filled with reason -> count.

    Raises:
        DataError: If a row misses a field; names the file, the row and the column.
    """
    path, dropped = Path(path), dropped if dropped is not None else Counter()
    if not path.is_file():
        raise DataError("no such file", "Pass one of the dataset's files.", file=str(path))
    out = []
    for row, record in _rows(path):
        info = record.get("background_info")
        turns = record.get("conversation")
        for column, value in (("background_info", info), ("conversation", turns)):
            if not value:
                raise DataError("missing or empty", "Use the released files.", file=str(path), row=row, column=column)
        messages = []
        for turn in turns:
            role = str(turn.get("role", "")).strip().lower()
            if role not in ("teacher", "student"):
                found = f"unknown role {role!r}"
                raise DataError(
                    found, "Roles are Teacher and Student.", file=str(path), row=row, column="conversation"
                )
            role = "assistant" if role == "teacher" else "user"
            messages.append({"role": role, "content": str(turn.get("text", ""))})
        wishes = _field(info, "student", path, row)
        kind = student_type(wishes)
        if kind is None:
            dropped["no_single_type"] += 1
            continue
        teacher = _field(info, "teacher", path, row)
        out.append(Lesson(str(info.get("topic", "")), wishes, teacher, tuple(messages), kind))
    return out
