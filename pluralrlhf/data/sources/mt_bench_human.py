"""MT-bench human judgments: experts choose between two models' conversations on the same two questions.

A judgment of the first turn compares the two first answers; one of the second turn, the conversations so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..placebo import placebo_pairs
from ..schema import RowError
from ..splits import hash64
from .hub import HubSource, cell

_WINNERS = {"model_a": 0, "model_b": 1}
_TIES = ("tie", "tie (inconsistent)")


@dataclass
class MTBenchHuman(HubSource):
    """A pair a judgment; ties make none.

    `published`: every judgment counts, and the items are the two models' answers. `strict`: items are the questions,
    so that a judge's verdict on another pair of models, or on the other turn, tells nothing of the target.
    """

    name: ClassVar[str] = "mt_bench_human"
    summary: ClassVar[str] = "MT-bench: which of two models' conversations an expert judge prefers"
    example: ClassVar[str] = "--path mtbench_human"
    min_pairs_per_user: ClassVar[int | None] = 2
    one_file: ClassVar[bool] = True
    repository: ClassVar[str] = "lmsys/mt_bench_human_judgments"
    title: ClassVar[str] = "MT-bench human judgments"
    licence: ClassVar[str] = "CC-BY-4.0"
    attribution: ClassVar[str] = (
        "MT-bench human judgments, Lianmin Zheng et al., 'Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena', 2023."
    )

    path: str | None = field(
        default=None,
        metadata={
            "help": "local copy: a folder with data/human-*.parquet, human_judgments.json or judgments.jsonl, or such "
            "a file (default: from the Hub)"
        },
    )
    revision: str = field(
        default="main", metadata={"help": "commit or tag of the Hub dataset: pin it to build the same again"}
    )
    construction: Literal["strict", "published"] = field(
        default="strict", metadata={"help": "what a target and its context must not share: questions, or answers"}
    )
    placebo: bool = field(
        default=False, metadata={"help": "permute the choices among the judges who judged the same pair"}
    )
    seed: int = field(default=0, metadata={"help": "of the placebo"})

    def rows(self) -> Iterator[dict[str, Any] | RowError]:
        """Pair rows in the order of the judgments."""
        return placebo_pairs(self._pairs, self.seed, self.dropped) if self.placebo else self._pairs()

    def notes(self) -> str:
        text = "Second-turn judgments compare whole conversations after the first question."
        return text + (" **Placebo**: choices are permuted among the judges of the same pair." * self.placebo)

    def _pairs(self) -> Iterator[dict[str, Any] | RowError]:
        self.dropped.clear()
        judged: set[int] = set()
        files = self.find(("data/human-*.parquet", "human_judgments.json", "judgments.jsonl"))
        for path, number, record in self.records(files):
            try:
                if isinstance(record, RowError):
                    raise record
                row = self._pair(record, path, number)
            except RowError as error:
                yield error
                continue
            if row is None:
                continue
            key = hash64(row["pair_id"])
            if key in judged:
                self.dropped["repeated_judgment"] += 1
                continue
            judged.add(key)
            yield {**row, "_file": str(path), "_row": number, "_raw": record}

    def _pair(self, record: dict, path: Path, number: int) -> dict[str, Any] | None:
        # Some copies of the data call the judge `user_id`.
        judge = cell(record, "judge" if "judge" in record else "user_id", str, path, number)
        question = cell(record, "question_id", (int, str), path, number)
        models = [cell(record, column, str, path, number) for column in ("model_a", "model_b")]
        turn = cell(record, "turn", int, path, number)
        winner = cell(record, "winner", str, path, number)
        where = {"raw": record, "file": str(path), "row": number}
        if winner not in (*_WINNERS, *_TIES):
            remedy = "Winners are model_a, model_b and tie; or use --skip_invalid"
            raise RowError("bad_vote", "an unknown winner", remedy, column="winner", **where)
        if turn not in (1, 2):
            raise RowError(
                "bad_turn", f"turn {turn}", "Turns are 1 and 2; or use --skip_invalid", column="turn", **where
            )
        first, second = (_talk(record, column, turn, **where) for column in ("conversation_a", "conversation_b"))
        if winner in _TIES:
            self.dropped["tie"] += 1
            return None
        if first[::2] != second[::2]:
            self.dropped["different_questions"] += 1
            return None
        if not all(message["content"] for message in (*first, *second)):
            self.dropped["empty_response"] += 1
            return None
        if first == second:
            self.dropped["identical_responses"] += 1
            return None
        # Where the first answers are the same, only the last ones are compared.
        shared = next(i for i, (a, b) in enumerate(zip(first, second)) if a != b)
        sides = (first, second) if winner == "model_a" else (second, first)
        answers = sorted(f"{question}/{model}" for model in models)
        return {
            "user_id": judge,
            "pair_id": f"{judge}:{question}:{turn}:{'+'.join(sorted(models))}",
            "item_ids": [str(question)] if self.construction == "strict" else answers,
            "prompt": first[:shared],
            "chosen": sides[0][shared:],
            "rejected": sides[1][shared:],
        }


def _talk(record: dict, column: str, turn: int, **where: Any) -> list[dict[str, str]]:
    """The first `turn` questions and answers of a conversation; an answer may be empty, as some of the origin's are."""
    talk = record.get(column)
    talk = talk[: 2 * turn] if isinstance(talk, list) else []
    said = [message for message in talk if isinstance(message, dict) and isinstance(message.get("content"), str)]
    if [message.get("role") for message in said] != ["user", "assistant"] * turn:
        remedy = "Fetch the file again, or use --skip_invalid"
        raise RowError("wrong_type", f"no {turn} questions with answers", remedy, column=column, **where)
    return [{"role": message["role"], "content": message["content"].strip()} for message in said]
