"""PRISM: people from 75 countries talk to several language models at once, rate each response, and go on with the best.

Every conversation is one participant's: nobody else judged the same responses. The survey is the user's profile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...errors import ConfigError
from ..placebo import DROPPED, permute_within, several_judges
from ..schema import RowError, messages
from ..splits import hash64
from .hub import HubSource, cell, wording

EMPTY = "EMPTY STRING"  # how the origin writes a missing text
_ROLES = {"user": "user", "model": "assistant"}
# Columns of the survey that say nothing about the person.
_NOT_THE_PERSON = ("user_id", "self_description", "system_string", "study_id", "generated_datetime", "consent")
_NOT_THE_PERSON_PREFIX = ("timing_", "consent_", "included_in_", "num_", "survey_only")


@dataclass
class Prism(HubSource):
    """Pairs of the response that was chosen and each other one of the same turn.

    `published`: the chosen response beats all others whatever their ratings; items are conversations. `strict`: only
    others rated at least `min_gap` lower; items are the opening prompts by their wording, so that people who opened
    alike are on the same side.
    """

    name: ClassVar[str] = "prism"
    summary: ClassVar[str] = "PRISM: which of several models' responses a participant chose, with a survey of each"
    example: ClassVar[str] = "--path prism"
    min_pairs_per_user: ClassVar[int | None] = 2
    repository: ClassVar[str] = "HannahRoseKirk/prism-alignment"
    title: ClassVar[str] = "PRISM: choices among models' responses"
    licence: ClassVar[str] = "CC-BY-4.0 for what participants wrote, CC-BY-NC-4.0 for what models wrote"
    attribution: ClassVar[str] = (
        "The PRISM Alignment Dataset, Hannah Rose Kirk et al., 'The PRISM Alignment Project: What Participatory, "
        "Representative and Individualised Human Feedback Reveals About the Subjective and Multicultural Alignment of "
        "Large Language Models', 2024."
    )

    path: str | None = field(
        default=None,
        metadata={"help": "local copy: a folder with conversations.jsonl and survey.jsonl (default: from the Hub)"},
    )
    revision: str = field(
        default="18ab5cfb37456f4ec8cbc00212ce54cf7b1239f6", metadata={"help": "commit or tag of the Hub dataset"}
    )
    construction: Literal["strict", "published"] = field(
        default="strict", metadata={"help": "strict drops what was not rated lower, and holds opening prompts apart"}
    )
    min_gap: int = field(default=1, metadata={"help": "strict: least difference of the two ratings (1 to 100)"})
    turns: Literal["all", "first"] = field(
        default="all", metadata={"help": "all turns of a conversation, or the first, where different models respond"}
    )
    placebo: bool = field(
        default=False, metadata={"help": "permute the choices among users, within pairs of the same two models"}
    )
    seed: int = field(default=0, metadata={"help": "of the placebo"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_gap < 1:
            raise ConfigError(f"`min_gap` is {self.min_gap}: 1 or more is expected (equal ratings make no pair)")

    def rows(self) -> Iterator[dict[str, Any] | RowError]:
        """Yields pair rows in the order of the conversations and turns."""
        if not self.placebo:
            for row in self._pairs():
                yield row if isinstance(row, RowError) else row[0]
            return
        judged = [row[1] for row in self._pairs() if not isinstance(row, RowError)]
        group, user = (np.array([entry[i] for entry in judged], dtype=np.uint64) for i in (0, 1))
        side = np.array([entry[2] for entry in judged], dtype=bool)
        swap = permute_within(group, side, hash64("prism placebo", self.seed)) != side
        keep = several_judges(group, user)
        number = alone = 0
        for row in self._pairs():
            if isinstance(row, RowError):
                yield row
                continue
            pair = row[0]
            if keep[number]:
                yield {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} if swap[number] else pair
            alone += not keep[number]
            number += 1
        self.dropped[DROPPED] += alone

    def _files(self) -> tuple[list[Path], list[Path]]:
        """The conversations and the survey."""
        return self.find("conversations.jsonl"), self.find("survey.jsonl")

    def users(self) -> Iterator[dict[str, Any] | RowError]:
        """A participant's description of themselves and of the model they would like, and the survey's other answers."""
        for path, number, person in self.records(self._files()[1]):
            try:
                if isinstance(person, RowError):
                    raise person
                user = cell(person, "user_id", str, path, number)
            except RowError as error:
                yield error
                continue
            texts = [person.get(column) for column in ("self_description", "system_string")]
            given = [text.strip() for text in texts if isinstance(text, str) and text.strip() not in ("", EMPTY)]
            yield {
                "user_id": user,
                "profile": "\n".join(given) or None,
                "attributes": {
                    column: value
                    for column, value in person.items()
                    if column not in _NOT_THE_PERSON and not column.startswith(_NOT_THE_PERSON_PREFIX)
                },
                "_file": str(path),
                "_row": number,
            }

    def notes(self) -> str:
        text = "What participants wrote is CC BY 4.0, what models wrote CC BY-NC 4.0 and under their providers' terms."
        if self.placebo:
            text += " **Placebo**: choices are permuted among users within pairs of the same two models."
        return text

    def _pairs(self) -> Iterator[tuple[dict[str, Any], tuple[int, int, bool]] | RowError]:
        """Rows, each with the hash of its two models, of its user, and which model won."""
        self.dropped.clear()
        # The survey is asked for before all conversations are read.
        for path, number, record in self.records(self._files()[0]):
            if isinstance(record, RowError):
                yield record
                continue
            try:
                yield from self._of_conversation(record, path, number)
            except RowError as error:
                yield error

    def _of_conversation(self, record: dict, path: Path, row: int) -> list[tuple[dict[str, Any], tuple]]:
        user, name = (cell(record, column, str, path, row) for column in ("user_id", "conversation_id"))
        turns: dict[int, dict[str, list]] = {}
        for said in cell(record, "conversation_history", list, path, row):
            if not isinstance(said, dict):
                said = {"conversation_history": said}
            turn, role = cell(said, "turn", int, path, row), cell(said, "role", str, path, row)
            cell(said, "content", str, path, row)
            if role not in _ROLES:
                found, remedy = f"unknown role {role[:20]!r}", "Roles are user and model"
                where = {"file": str(path), "row": row, "column": "conversation_history"}
                raise RowError("unknown_role", found, remedy, raw=record, **where)
            turns.setdefault(turn, {"user": [], "model": []})[role].append(said)
        prompt: list[dict[str, str]] = []
        rows: list[tuple[dict[str, Any], tuple]] = []
        for turn in sorted(turns):
            if turn > 0 and self.turns == "first":
                break
            asked, replies = turns[turn]["user"], turns[turn]["model"]
            chosen = [reply for reply in replies if cell(reply, "if_chosen", bool, path, row)]
            if len(asked) != 1 or _empty(asked[0]) or not chosen or _empty(chosen[0]):
                # What follows answers a turn that is not there.
                self.dropped["turn_without_a_prompt_or_choice"] += max(len(replies) - 1, 1)
                break
            prompt = [*prompt, *messages(asked[0]["content"], "user")]
            best = chosen[0]
            item = name if self.construction == "published" else wording("prism", prompt[0]["content"])
            for other in replies:
                if cell(other, "if_chosen", bool, path, row):
                    continue
                if _empty(other):
                    self.dropped["empty_response"] += 1
                elif other["content"].strip() == best["content"].strip():
                    self.dropped["identical_responses"] += 1
                elif reason := self._too_close(best, other, path, row):
                    self.dropped[reason] += 1
                else:
                    ids = sorted(f"{cell(reply, 'within_turn_id', int, path, row)}" for reply in (best, other))
                    pair = {
                        "user_id": user,
                        "pair_id": f"{name}:{turn}:{'+'.join(ids)}",  # sorted: the order must not tell the choice
                        "item_ids": [item],
                        "prompt": prompt,
                        "chosen": messages(best["content"]),
                        "rejected": messages(other["content"]),
                        "_file": str(path),
                        "_row": row,
                    }
                    models, first_won = _models(best, other)
                    rows.append((pair, (models, hash64(user), first_won)))
            prompt = [*prompt, *messages(best["content"])]
        return rows

    def _too_close(self, best: dict, other: dict, path: Path, row: int) -> str | None:
        if self.construction == "published":
            return None
        gap = cell(best, "score", (int, float), path, row) - cell(other, "score", (int, float), path, row)
        if gap < 0:
            return "chosen_was_rated_lower"
        return "tie" if gap == 0 else "below_min_gap" if gap < self.min_gap else None


def _empty(said: dict) -> bool:
    return said["content"].strip() in ("", EMPTY)


def _models(best: dict, other: dict) -> tuple[int, bool]:
    """A hash of the two responses' models, and whether the first in the alphabet won."""
    sides = [(str(reply.get("model_name")), str(reply.get("within_turn_id"))) for reply in (best, other)]
    return hash64("models", *sorted(model for model, _ in sides)), sides[0] < sides[1]
