"""One row of a table, its columns settled, as preference pairs or ratings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import combinations, product
from typing import Any

from ..schema import RowError, check_messages, clean_id, kind, messages
from ..splits import hash64
from .table_map import (
    MISSING,
    Columns,
    by_user,
    conversation,
    item_key,
    lookup,
    repeated_prompt,
    several,
    shared_prefix,
)
from .table_values import Choices, RatingScale, to_number

_SKIP = "or drop such rows with --skip_invalid"


@dataclass
class RowReader:
    """Turns rows into pairs or ratings.

    Args:
        columns: Where everything is found, settled.
        items: `prompt`, `responses`, or a column.
        standalone: The texts answer no prompt of their own.
        choices: Reads the choice column (layout `choices`).
        scale: Reads the rating column (layout `ratings`).
        dropped: Counts ties.
    """

    columns: Columns
    items: str
    standalone: bool
    choices: Choices | None
    scale: RatingScale
    dropped: Counter
    profiles: dict[str, str | None] = field(default_factory=dict)
    changed_profiles: set[str] = field(default_factory=set)  # users whose later rows hold another one
    stripped: set[str] = field(default_factory=set)  # ids that had white space around them
    by_position: set[int] = field(default_factory=set)  # lengths of lists whose raters are told by position only
    _seen: set[int] = field(default_factory=set)
    _repeats: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        names = dict(self.columns.found)
        if self.items not in ("prompt", "responses"):
            names["item_ids"] = self.items
        if ranking := names.get("ranking"):
            names |= {"chosen": ranking, "rejected": ranking}
        self.names = {"a": names}
        if self.columns.layout == "choices":
            a, b = names["response_a"], names["response_b"]
            self.names = {"a": {**names, "chosen": a, "rejected": b}, "b": {**names, "chosen": b, "rejected": a}}

    def forget(self) -> None:
        """Makes ready for reading the table again."""
        self.profiles.clear()
        self.changed_profiles.clear()
        self._seen.clear()
        self._repeats.clear()

    def number_meanings(self) -> dict[str, str]:
        """Each number that is a choice to the response that it was taken for, and how often; none where it was said."""
        if not (self.choices and self.choices.numbers):
            return {}
        a, b = (self.columns.found[side] for side in ("response_a", "response_b"))
        meant = {"0": a, "1": b} if self.choices.zero_based else {"1": a, "2": b}
        return {word: f"`{side}` ({self.choices.numbers[word]:,} times)" for word, side in meant.items()}

    def pairs(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The pairs of a row: one, or one a rater, of pairs and choices; every two of a ranking; none for a tie."""
        columns = self.columns
        user = columns.need(row, "user_id") if "user_id" in columns.found else MISSING
        pair_id = columns.need(row, "pair_id") if "pair_id" in columns.found else MISSING
        if columns.layout == "choices":
            texts = [self._text(row, "response_a"), self._text(row, "response_b")]
            judged = [(rater, self._choice(value)) for rater, value in self._raters(row, user, "choice")]
        else:
            texts = self._ranked(row)
            judged = [(user, "a")]
        prompt, *texts = self._prompt(row, *texts)
        pairs = []
        for (better, worse), (rater, side) in product(combinations(texts, 2), judged):
            if side == "tie":
                self.dropped["tie"] += 1
                continue
            chosen, rejected = (better, worse) if side == "a" else (worse, better)
            rater = self._id(rater)
            pair: dict[str, Any] = {"user_id": rater, "prompt": prompt, "chosen": chosen, "rejected": rejected}
            pair["item_ids"] = self._items(row, prompt, chosen, rejected)
            pair["pair_id"] = self._pair_id(pair) if pair_id is MISSING else pair_id
            if pair_id is not MISSING and len(judged) > 1:
                pair["pair_id"] = f"{pair_id}/{rater}"
            value = MISSING if "margin" in columns.unused else lookup(row, columns.found.get("margin", "margin"))
            if value is not MISSING:
                number = to_number(value) if isinstance(value, (str, Decimal)) else value
                # What is no number stays as it is, so that the error says what was found.
                pair["margin"] = value if number is None and str(value or "").strip() else number
            pair["_columns"] = self.names[side]
            self._profile(rater, row)
            pairs.append(pair)
        return pairs

    def ratings(self, row: dict[str, Any]) -> Iterator[tuple[str, Any, Any, float, tuple[str, ...]]]:
        """`(user, prompt or None, response, rating, items)` of a row: one, or one a rater and response."""
        columns = self.columns
        user = columns.need(row, "user_id") if "user_id" in columns.found else MISSING
        responses, values = columns.need(row, "response"), columns.need(row, "rating")
        if several(responses):
            if not isinstance(values, list) or len(values) != len(responses):
                found = f"a list of {len(responses)} responses without as many ratings"
                remedy = f"Give one rating (or list of ratings) a response, {_SKIP}"
                raise RowError("wrong_type", found, remedy, column=columns.found["rating"])
        else:
            responses, values = [responses], [values]
        # A list of users for each response, or the same for all.
        each_own = isinstance(user, list) and len(user) == len(responses) and all(isinstance(u, list) for u in user)
        judged = []
        for response, value, users in zip(responses, values, user if each_own else [user] * len(responses)):
            prompt, text = self._answer(row, self._as_text(response, "response"))
            items = () if self.items in ("prompt", "responses") else self._items(row, prompt, text)
            items = tuple(clean_id(item, self.items) for item in items)
            for rater, rating in self._raters(row, users, "rating", value):
                rater = clean_id(self._id(rater), columns.found.get("user_id", columns.found["rating"]))
                try:
                    judged.append((rater, prompt, text, self.scale(rating), items))
                except RowError as error:
                    raise error.at(None, None, columns.found["rating"]) from None
        for rater, *_ in judged:
            self._profile(rater, row)
        yield from judged

    def _answer(self, row: dict[str, Any], text: Any) -> tuple[Any, Any]:
        """The prompt, `None` where texts stand alone, and a rated response without it."""
        columns, prompt = self.columns, None
        if not self.standalone:
            prompt, text = self._prompt(row, text)
            prompt = check_messages(prompt, columns.found["prompt"])
        text = check_messages(text, columns.found["response"])
        if prompt is None and text[0]["role"] != "assistant":
            found = f"a conversation that begins with the {text[0]['role']}, where there is no prompt"
            remedy = f"Map what comes before the answer with --map prompt=COLUMN, {_SKIP}"
            raise RowError("missing_prompt", found, remedy, column=columns.found["response"])
        return prompt, text

    def _ranked(self, row: dict[str, Any]) -> list[Any]:
        """The responses of a row of pairs or rankings, best first."""
        if self.columns.layout == "pairs":
            return [self._text(row, "chosen"), self._text(row, "rejected")]
        ranked, column = self.columns.need(row, "ranking"), self.columns.found["ranking"]
        found = ""
        if not isinstance(ranked, list):
            found = kind(ranked)
        elif len(ranked) < 2:
            found = "a ranking of fewer than two responses"
        elif not several(ranked):
            found = f"a list that holds {kind(next(each for each in ranked if not isinstance(each, (str, list))))}"
        if found:
            remedy = f"Give a list of responses, best first (in JSON, JSONL or parquet), {_SKIP}"
            raise RowError("wrong_type", found, remedy, column=column)
        texts = [self._as_text(response, "ranking") for response in ranked]
        if any(one == other for one, other in combinations(texts, 2)):
            raise RowError(
                "same_response", "a ranking that holds one response twice", f"Name each once, {_SKIP}", column=column
            )
        return texts

    def _raters(self, row: dict[str, Any], user: Any, name: str, value: Any = MISSING) -> list[tuple[Any, Any]]:
        value = self.columns.need(row, name) if value is MISSING else value
        if user is MISSING and isinstance(value, list):
            self.by_position.add(len(value))
        try:
            return by_user(user, value)
        except RowError as error:
            raise error.at(None, None, self.columns.found[name]) from None

    def _choice(self, value: Any) -> str:
        try:
            return self.choices(value)
        except RowError as error:
            raise error.at(None, None, self.columns.found["choice"]) from None

    def _text(self, row: dict[str, Any], name: str, role: str = "assistant") -> Any:
        return self._as_text(self.columns.need(row, name), name, role)

    def _as_text(self, value: Any, name: str, role: str = "assistant") -> Any:
        try:
            return conversation(value, role)
        except RowError as error:
            raise error.at(None, None, self.columns.found[name]) from None

    def _lacks_prompt(self, row: dict[str, Any]) -> bool:
        """Whether `--default_prompt` takes the place of a prompt: there is no such column, or the row's is empty."""
        if self.columns.default_prompt is None:
            return False
        if "prompt" not in self.columns.found:
            if "prompt" not in self.columns.unused and lookup(row, "prompt") is not MISSING:
                remedy = f"Give every row a `prompt`, empty where there is none, {_SKIP}"
                raise RowError("wrong_type", "a prompt, where the first row has none", remedy, column="prompt")
            return True
        value = lookup(row, self.columns.found["prompt"])
        return value in (MISSING, None, []) or (isinstance(value, str) and not value.strip())

    def _prompt(self, row: dict[str, Any], *responses: Any) -> tuple[Any, ...]:
        """The prompt, and the responses without it where they repeat it."""
        if self._lacks_prompt(row):
            return messages(self.columns.default_prompt, "user"), *responses
        if "prompt" in self.columns.found:
            prompt = self._text(row, "prompt", "user")
            if n := repeated_prompt(prompt, responses):
                return responses[0][:n], *(response[n:] for response in responses)
            return prompt, *responses
        n = shared_prefix(*responses)
        if not n:
            found = "no prompt: the two texts share no first message"
            remedy = f"Map one with --map prompt=COLUMN, give --default_prompt, {_SKIP}"
            raise RowError("missing_prompt", found, remedy, column="prompt")
        return responses[0][:n], *(response[n:] for response in responses)

    def _items(self, row: dict[str, Any], prompt: Any, *responses: Any) -> Any:
        if self.items == "prompt":
            return [f"p-{item_key(prompt):016x}"]
        if self.items == "responses":
            return list(dict.fromkeys(f"r-{item_key(response):016x}" for response in responses))
        value = lookup(row, self.items)
        if value is MISSING:
            found = f"there is no column `{self.items[:40]}`"
            raise RowError("missing_column", found, f"Give every row one, {_SKIP}", column=self.items[:40])
        return [self._id(item) for item in (value if isinstance(value, list) else [value])]

    def _id(self, value: Any) -> Any:
        """An id without white space around it, so that one person in two spellings does not become two."""
        if isinstance(value, str) and (bare := value.strip()) != value:
            self.stripped.add(value)
            return bare
        return value

    def _pair_id(self, pair: dict[str, Any]) -> str:
        """A hash of who judged what how; a repeat of the same judgment gets a number."""
        key = hash64(pair["user_id"], *(_text_hash(pair[name]) for name in ("prompt", "chosen", "rejected")))
        if key not in self._seen:
            self._seen.add(key)
            return f"{key:016x}"
        self._repeats[key] += 1
        return f"{key:016x}-{self._repeats[key]}"

    def _profile(self, user: Any, row: dict[str, Any]) -> None:
        """Keeps the user's profile from the first row that has one."""
        path = self.columns.found.get("profile")
        if path is None or isinstance(user, (list, dict)):
            return
        try:
            user = clean_id(user, "user_id")
        except RowError:  # said where the row is checked
            return
        known = self.profiles.get(user)
        value = lookup(row, path)
        if value is MISSING and "," in path:
            parts = {name.strip(): lookup(row, name.strip()) for name in path.split(",")}
            lines = [f"{name}: {part}" for name, part in parts.items() if part not in (MISSING, None, "")]
            value = MISSING if MISSING in parts.values() else "\n".join(lines) or None
        if known:
            if value not in (MISSING, None, "") and str(value) != known:
                self.changed_profiles.add(user)
            return
        if value is MISSING:
            found = f"there is no column `{path[:40]}`"
            raise RowError("missing_column", found, f"Correct --map profile=COLUMN, {_SKIP}", column=path[:40])
        self.profiles[user] = value if value is None or isinstance(value, str) else str(value)


def _text_hash(text: Any) -> int:
    return hash64(*(part for message in text for part in (message["role"], message["content"])))
