"""Polarized issues: participants of a collective dialogue choose between two answers that other participants wrote.

Three topics, thirteen open questions. A vote is one of the two answers, or one of "I disagree with both", "I agree with
both", "I'm not sure", "These are similar"; only the first two kinds make pairs, the others are counted. Participants
also gave demographics and their own answers, which go into the `users` config.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ...errors import ConfigError, DataError
from ..placebo import permute_within, several_judges
from ..schema import RowError, messages
from ..splits import hash64
from . import Source
from .origin import (
    Origin,
    check_folder,
    fetch,
    find_file,
    need_file,
    parameters,
    read_csv,
    read_jsonl,
    sha256,
    text_cell,
)

# The commit that added the votes, the answers and the participants; later ones change the README and add `probs`.
ORIGIN = Origin(
    repository="akonya/polarized-issues-data",
    commit="c8beba57e6e76d5a3ed6afb141376f299024f558",
    licence="CC-BY-4.0",
    attribution="Polarized Issues Dataset, A. Konya; Remesh and the Peacetech and Polarization Lab, Notre Dame.",
)

TOPICS = {
    "campus_protests": "Campus protests",
    "foreign_intervention": "Foreign intervention",
    "right_to_assemble": "Right to assemble",
}
VOTES = {
    "Thought A": "a",
    "Thought B": "b",
    "I disagree with both": "neither",
    "I agree with both": "both",
    "I'm not sure": "unsure",
    "I’m not sure": "unsure",
    "These are similar": "similar",
}
_NO_PAIR = ("neither", "both", "unsure", "similar")
# Columns of the origin's participants file that are computed from the votes, or say nothing about the person.
_NOT_THE_PERSON = ("Sentiment", "Categories", "Muted", "Participant Id", "Sample Provider Id")


@dataclass
class PolarizedIssues(Source):
    name: ClassVar[str] = "polarized_issues"
    summary: ClassVar[str] = "Polarized issues: which of two answers of other people, on three political topics"
    example: ClassVar[str] = "--path polarized_issues"
    min_pairs_per_user: ClassVar[int | None] = 10

    path: str | None = field(
        default=None,
        metadata={
            "help": "local copy: a folder with pairs.jsonl and users.jsonl, or a clone of the origin "
            "(default: the public origin)"
        },
    )
    items: Literal["responses", "prompt"] = field(
        default="responses",
        metadata={"help": "what must not be in both target and context: the two responses, or the prompt"},
    )
    placebo: bool = field(
        default=False,
        metadata={
            "help": "permute the choices among users, within pairs (or pairs alike in their answers' win rates)"
        },
    )
    seed: int = field(default=0, metadata={"help": "of the placebo"})
    origin_url: str = field(default=ORIGIN.url, metadata={"help": "root of the public origin, or of a mirror of it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.files: dict[str, str] = {}
        if self.items not in ("responses", "prompt"):
            raise ConfigError(f"`items` is {self.items[:20]!r}: expected `responses` or `prompt`")

    def rows(self) -> Iterator[dict | RowError]:
        """Yields pair rows in the order of the votes."""
        self.dropped.clear()
        own = {
            (person["user_id"], _item(answer["question"], answer["answer"]))
            for person in self._people()
            if not isinstance(person, RowError)
            for answer in person["own_answers"]
        }
        votes: list[tuple] = []
        judged: set[tuple] = set()
        for path, number, vote in self._votes():
            if isinstance(vote, RowError):
                yield vote
                continue
            try:
                user, prompt, first, second = (
                    text_cell(vote, column, path, number).strip()
                    for column in ("user_id", "prompt", "response_a", "response_b")
                )
                choice = text_cell(vote, "vote", path, number).strip()
                if choice not in ("a", "b", *_NO_PAIR):
                    found = f"an unknown vote, not one of a, b, {', '.join(_NO_PAIR)}"
                    remedy = "Correct it, or drop such rows with --skip_invalid"
                    raise RowError("bad_vote", found, remedy, raw=vote, file=str(path), row=number, column="vote")
            except RowError as error:
                yield error
                continue
            items = (_item(prompt, first), _item(prompt, second))
            pair = (user, *sorted(items))
            if choice in _NO_PAIR:
                self.dropped[f"vote_{choice}"] += 1
            elif items[0] == items[1]:
                self.dropped["identical_responses"] += 1
            elif not own.isdisjoint((user, item) for item in items) or user in (
                vote.get("author_a"),
                vote.get("author_b"),
            ):
                self.dropped["own_answer_among_the_responses"] += 1
            elif pair in judged:
                self.dropped["repeated_judgment"] += 1
            else:
                judged.add(pair)
                votes.append((user, prompt, *((first, second) if choice == "a" else (second, first))))
        for user, prompt, chosen, rejected in placebo_choices(votes, self.seed) if self.placebo else votes:
            items = sorted((_item(prompt, chosen), _item(prompt, rejected)))  # the order must not tell the choice
            yield {
                "user_id": user,
                "pair_id": f"{user}:{'+'.join(items)}",
                "item_ids": [_item(prompt)] if self.items == "prompt" else items,
                "prompt": messages(prompt, "user"),
                "chosen": messages(chosen),
                "rejected": messages(rejected),
            }

    def users(self) -> Iterator[dict | RowError]:
        """One row a participant; one who took part in several topics has the answers of all."""
        people: dict[str, list[dict]] = defaultdict(list)
        for person in self._people():
            if isinstance(person, RowError):
                yield person
                continue
            people[person["user_id"]].append(person)
        for user, parts in people.items():
            facts = {question.strip(): fact for part in parts for question, fact in part["profile"].items()}
            answers = [answer for part in parts for answer in part["own_answers"]]
            lines = [f"{question} {fact.strip()}" for question, fact in facts.items()]
            lines += [f"{answer['question'].strip()} {answer['answer'].strip()}" for answer in answers]
            yield {
                "user_id": user,
                "profile": "\n".join(lines) or None,
                "attributes": {"topics": sorted(part["topic"] for part in parts), **facts},
                "conversations": [
                    messages(answer["question"], "assistant") + messages(answer["answer"], "user")
                    for answer in answers
                ],
            }

    def describe(self) -> dict:
        return {
            "source": self.name,
            "title": "Polarized issues: pairwise votes on answers",
            **ORIGIN.describe(),
            "sha256": dict(sorted(self.files.items())),
            "parameters": parameters(self),
        }

    # Reading: the folder of two JSON Lines files, or the origin's own layout

    def _flat_file(self, name: str) -> Path | None:
        if self.path is None:
            return None
        check_folder(self.path)
        if (found := find_file(self.path, [name])) is None:
            if (Path(self.path) / TOPICS["campus_protests"]).is_dir():
                return None
            need_file(self.path, name)
        self.files[name] = sha256(found)
        return found

    def _origin_table(self, topic: str, kind: str, first_column: str) -> Iterator[tuple[Path, int, list[str]]]:
        """Header and rows of one of a topic's files, without the lines of metadata before the header."""
        name = f"{TOPICS[topic]}/{topic}_{kind}.csv"
        path = fetch(self.origin_url, name) if self.path is None else need_file(self.path, name)
        self.files[name] = sha256(path)
        started = 0
        for line, cells in read_csv(path):
            started = started or (len(cells) if first_column in cells[:3] else 0)
            if started and len(cells) == started:
                yield path, line, cells
            elif started and any(cells):
                found = f"{len(cells)} cells under {started} columns"
                raise DataError(found, "Fetch the file again", file=str(path), row=line)
        if not started:
            raise DataError("no header", "Fetch the file again", file=str(path), column=first_column)

    def _votes(self) -> Iterator[tuple[Path, int, dict | RowError]]:
        if (flat := self._flat_file("pairs.jsonl")) is not None:
            yield from ((flat, number, vote) for number, vote in read_jsonl(flat))
            return
        for topic in TOPICS:
            answers: dict[str, dict] = {}
            header: list[str] = []
            for _, _, cells in self._origin_table(topic, "verbatim_map", "Question ID"):
                if header:
                    answer = dict(zip(header, cells))
                    answers[answer["Thought ID"]] = answer
                header = header or cells
            header = []
            for path, line, cells in self._origin_table(topic, "preference", "Question ID"):
                if not header:
                    header = cells
                    continue
                vote = dict(zip(header, cells))
                sides = [answers.get(vote["Thought A ID"]), answers.get(vote["Thought B ID"])]
                if None in sides:
                    found, remedy = "an answer that the verbatim map does not have", "Use --skip_invalid to drop it"
                    where = {"file": str(path), "row": line, "column": "Thought A ID"}
                    yield path, line, RowError("unknown_answer", found, remedy, raw=vote, **where)
                    continue
                row = {
                    "topic": topic,
                    "user_id": vote["Participant ID"],
                    "prompt": _without_branch(sides[0]["Question Text"]),
                    "response_a": sides[0]["Thought Text"],
                    "response_b": sides[1]["Thought Text"],
                    "author_a": sides[0]["Participant ID"],
                    "author_b": sides[1]["Participant ID"],
                    "vote": VOTES.get(vote["Vote"].strip(), vote["Vote"]),
                }
                yield path, line, row

    def _people(self) -> Iterator[dict | RowError]:
        if (flat := self._flat_file("users.jsonl")) is not None:
            for number, person in read_jsonl(flat):
                if not isinstance(person, RowError):
                    try:
                        text_cell(person, "user_id", flat, number)
                        _check_person(person, flat, number)
                    except RowError as error:
                        person = error
                yield person
            return
        for topic in TOPICS:
            header: list[str] = []
            for _, _, cells in self._origin_table(topic, "participants", "Participant Id"):
                if not header:
                    header = cells
                    continue
                person = {"topic": topic, "user_id": "", "profile": {}, "own_answers": []}
                for i, (column, value) in enumerate(zip(header, cells)):
                    if column == "Participant Id":
                        person["user_id"] = value
                    elif not column or column in _NOT_THE_PERSON or "%agree" in column or value.strip() in ("", "--"):
                        continue
                    elif header[i + 1 : i + 2] == ["Sentiment"] and "%agree" in "".join(header[i + 2 : i + 3]):
                        # An open question that others voted on: its answer is one of the responses judged.
                        person["own_answers"].append({"question": _without_branch(column), "answer": value})
                    else:
                        person["profile"][column] = value
                yield person


def placebo_choices(votes: list[tuple], seed: int) -> list[tuple]:
    """Votes `(user, prompt, chosen, rejected)` with choices permuted among users, so that nothing about them remains.

    What is permuted is whether the answer with the higher win rate was chosen: among those who judged the same pair,
    and for the pairs that a single user judged, which are most, among 20 pairs of the same question whose difference in
    win rate is closest. Answers keep their standing; who judged what stays.
    """
    wins: dict[tuple, list[int]] = defaultdict(lambda: [1, 2])
    for _, prompt, chosen, rejected in votes:
        for response, won in ((chosen, 1), (rejected, 0)):
            record = wins[prompt, response]
            record[0] += won
            record[1] += 1
    rate = {answer: won / count for answer, (won, count) in wins.items()}

    def ordered(vote: tuple) -> tuple[str, str]:
        """The two answers, that of the higher win rate first."""
        return tuple(sorted(vote[2:], key=lambda text: (-rate[vote[1], text], text)))

    sides = [ordered(vote) for vote in votes]
    gap = np.array([rate[vote[1], a] - rate[vote[1], b] for vote, (a, b) in zip(votes, sides)])
    question = np.array([hash64(vote[1]) for vote in votes], dtype=np.uint64)
    group = np.array([hash64(vote[1], *side) for vote, side in zip(votes, sides)], dtype=np.uint64)
    alone = np.flatnonzero(~several_judges(group, np.array([hash64(vote[0]) for vote in votes], dtype=np.uint64)))
    alone = alone[np.lexsort((gap[alone], question[alone]))]
    for key in np.unique(question[alone]):
        members = alone[question[alone] == key]
        for number, stratum in enumerate(np.array_split(members, max(1, len(members) // 20))):
            group[stratum] = hash64("stratum", int(key), number)
    better_won = np.array([vote[2] == side[0] for vote, side in zip(votes, sides)], dtype=bool)
    better_won = permute_within(group, better_won, hash64("polarized_issues placebo", seed))
    return [(*vote[:2], *(side if won else side[::-1])) for vote, side, won in zip(votes, sides, better_won)]


def _item(*parts: str) -> str:
    """Id of a prompt, or of a response to it: of the wording, since answers have no id in every layout."""
    return f"{hash64('polarized_issues', *(' '.join(part.casefold().split()) for part in parts)):016x}"


def _without_branch(question: str) -> str:
    head, _, tail = question.partition(" - ")
    return tail if head in ("Branch A", "Branch B") else question


def _check_person(person: dict, path: Path, row: int) -> None:
    """The shape of a line of users.jsonl; a wrong one is the `RowError` to yield."""
    profile, answers = person.get("profile"), person.get("own_answers")
    well_formed = isinstance(person.get("topic"), str) and isinstance(profile, dict) and isinstance(answers, list)
    well_formed = well_formed and all(isinstance(fact, str) for fact in profile.values())
    well_formed = well_formed and all(
        isinstance(answer, dict) and isinstance(answer.get("question"), str) and isinstance(answer.get("answer"), str)
        for answer in answers
    )
    if not well_formed:
        found = "no `topic`, `profile` (question to answer) and `own_answers` (list of question and answer)"
        raise RowError("wrong_type", found, "Correct the line", raw=person, file=str(path), row=row)
