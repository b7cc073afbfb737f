"""What a table's cells say: which response was chosen, how it was rated, numbers."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ...errors import ConfigError, DataError
from ..schema import RowError, kind

A_LIST = "a list that is written as one text"
NO_LISTS = "A list of judgments needs JSON, JSONL or parquet, where a list is one, or a row a judgment"
_NULL = "null"  # in --choice_values, for an empty cell as well
_SHOWN = 8  # different choices that an error names at most
_WHOLE, _COMMA = re.compile(r"-?\d+\.0+"), re.compile(r"\s*-?\d+,\d+\s*")
_ACCEPTED = "Known are a and b, left and right, 0 and 1, 1 and 2, and tie; say what others mean"
_SKIP = "or drop such rows with --skip_invalid"

_SIDES = {
    "a": ("a", "response_a", "model_a", "option_a", "left", "first"),
    "b": ("b", "response_b", "model_b", "option_b", "right", "second"),
    "tie": (
        "tie",
        "draw",
        "equal",
        "same",
        "similar",
        "both",
        "neither",
        "none",
        "unsure",
        "both bad",
        "bothbad",
        "both_bad",
        "both good",
        "tie (bothbad)",
        "no preference",
    ),
}


class Choices:
    """Reads which of two responses was chosen: `a`, `b` or `tie`.

    Args:
        values: `{"a": ..., "b": ..., "tie": ...}`, each one value or several separated by commas, in place of the words
            that are known (a, b, left, right, model_a, tie, both, …). Of the numbers, 0 and 1 or 1 and 2 stand for a
            and b, whichever of the two the data uses.
        names: The columns of the two responses, which also name them.
    """

    def __init__(self, values: Mapping[str, str], names: tuple[str, str]):
        if unknown := set(values) - set(_SIDES):
            raise ConfigError(f"`--choice_values` has the unknown side {unknown.pop()[:40]!r}: use a=… b=… tie=…")
        if values and not {"a", "b"} <= set(values):
            raise ConfigError("`--choice_values` needs both a=… and b=…")
        self.sides = {word: side for side, words in _SIDES.items() for word in words}
        self.sides |= {_word(names[0]): "a", _word(names[1]): "b"}
        for side, text in values.items():
            self.sides |= {_word(word): side for word in (text, *text.split(","))}
            if _NULL in map(_word, (text, *text.split(","))):
                self.sides[""] = side
        self.told = bool(values)
        self.zero_based: bool | None = None
        self.numbers: Counter = Counter()  # how often each number was read as a side without being told
        self.others: dict[str, None] = {}  # other numbers
        self.found: dict[str, None] = {}  # the first different words, for the error

    def decides(self, value: Any) -> bool:
        """Whether this value settles, or makes it needless to know, if numbers count from 0 or 1."""
        return self.told or self.zero_based is not None or _word(value) in self.sides

    def settle(self, values: Iterable[Any]) -> None:
        """Finds out if numbers count from 0 or 1, from the first values that tell."""
        for value in values:
            word = _word(value)
            if word and len(self.found) < _SHOWN:
                self.found[word] = None
            if word in ("0", "2"):
                self.zero_based = word == "0"
                return

    def __call__(self, value: Any) -> str:
        nothing = value is None or (isinstance(value, float) and math.isnan(value))
        if nothing and "" in self.sides:
            return self.sides[""]
        if nothing or isinstance(value, (list, dict)):
            found = f"the choice is {kind(value)}"
            raise RowError("missing_choice", found, f"Give a or b, {_SKIP}")
        word = _word(value)
        if word in self.sides:
            return self.sides[word]
        if word in ("0", "1", "2") and not self.told:
            if self.zero_based is None:
                self.settle([word])
            if self.zero_based is None or word == ("2" if self.zero_based else "0"):
                self._unclear("0, 1 and 2" if self.zero_based is not None else self._seen() or "only 1")
            self.numbers[word] += 1
            self._check_numbers()
            return "a" if word == ("0" if self.zero_based else "1") else "b"
        if to_number(word) is not None and not self.told:
            self.others[word[:20]] = None
            self._check_numbers()
        remedy = f"{_ACCEPTED}, such as --choice_values a=… b=… tie=…, or a=1,2,3 tie=4 b=5,6,7 for a scale, {_SKIP}"
        found = "the choice is empty" if not word else f"unknown choice {word[:20]!r}"
        if word and (seen := self._seen()):
            found += f" (choices found: {seen})"
        raise RowError("unknown_choice", found, remedy)

    def _check_numbers(self) -> None:
        """One more number beside 0 and 1, or 1 and 2: scores or a scale, which read as sides could be turned round."""
        sides = [*self.numbers, *(word for word in self.found if word in ("0", "1", "2"))]
        if self.others and sides:
            self._unclear(", ".join(dict.fromkeys([*sides, *self.others])))

    def _unclear(self, what: str) -> None:
        raise DataError(
            f"the choices are {what}: which number stands for which response is unclear",
            f"{_ACCEPTED}, such as --choice_values a=1 b=2 tie=0, or a=1,2,3 tie=4 b=5,6,7 for a scale",
        )

    def _seen(self) -> str:
        """The different choices that were looked at, where there were several."""
        words = [word[:20] for word in self.found]
        return ", ".join(words) + (", …" if len(words) == _SHOWN else "") if len(words) > 1 else ""


class RatingScale:
    """Reads a rating as a number: numbers as they are, labels by their place in `labels` (lowest first)."""

    def __init__(self, labels: Sequence[str] | None):
        if labels and len(labels) == 1:
            labels = labels[0].split(",")
        self.labels = {_word(label): float(place) for place, label in enumerate(labels or [])}
        if labels and (len(self.labels) != len(labels) or len(labels) < 2):
            raise ConfigError("`--rating_labels` needs two or more different labels, lowest first")

    def __call__(self, value: Any) -> float:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise RowError("missing_rating", "the rating is empty", f"Give a rating, {_SKIP}")
        if self.labels:
            if (word := _word(value)) in self.labels:
                return self.labels[word]
            remedy = f"Add it to --rating_labels (lowest first), {_SKIP}"
            raise RowError("unknown_rating", f"unknown label {word[:20]!r}", remedy)
        number = to_number(value)
        if written_list(value):
            raise RowError("bad_rating", A_LIST, f"{NO_LISTS}, {_SKIP}")
        if number is None:
            shown = repr(value.strip()[:20]) if isinstance(value, str) else kind(value)
            found = f"the rating is {shown}, not a number"
            number_said = "with a decimal point, as 1.5" if _COMMA.fullmatch(str(value)) else "as a number"
            remedy = f"Write it {number_said}, name the labels, lowest first, by --rating_labels bad,ok,good, {_SKIP}"
            raise RowError("bad_rating", found, remedy)
        if not math.isfinite(number):
            raise RowError("bad_rating", f"the rating is {kind(number)}", f"Give a finite number, {_SKIP}")
        return number


def to_number(value: Any) -> float | None:
    """A number, or a text that is one, as a float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def written_list(value: Any) -> bool:
    """Whether a text is a list of judgments in writing, such as `[1, 2, 3]` or `1;2;3` in a CSV cell."""
    if not isinstance(value, str):
        return False
    text = value.strip()
    return text[:1] + text[-1:] in ("[]", "()") or any(
        len(parts := text.split(mark)) > 1 and all(to_number(part) is not None for part in parts) for mark in ";|"
    )


def written_messages(text: str) -> bool:
    """Whether a text is a list of messages in writing, as JSON or as Python prints it (pandas, `Dataset.to_csv`)."""
    if not text.lstrip().startswith("[{"):
        return False
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    return False


def _word(value: Any) -> str:
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, (str, bool, int, float)):
        return ""
    word = str(value).strip().casefold()
    # A column that a missing value turned into decimals is written so into a CSV file.
    return word.partition(".")[0] if _WHOLE.fullmatch(word) else word
