"""Whether a simulated user stays who it is (Abdulhai et al. 2025, arXiv 2511.00222).

* *prompt-to-line*: share of the user's lines that do not contradict the profile.
* *line-to-line*: 1 - contradictions with the same speaker's earlier lines / number of such pairs.
* *Q&A*: multiple-choice questions made from the profile, answered after each of the user's lines from the lines alone.
  The answerer never sees the profile (with it in the prompt the test is vacuous), and questions that nothing said so
  far bears on are left out; after a line that only asks, nothing is scored.

A judge answers with one of `Verdict`'s members. What cannot be read as one is `INVALID`: it is counted, reported, and
never taken for consistent. Nothing a judge says is evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


class Verdict(Enum):
    """What a judge says about two texts."""

    CONSISTENT = "consistent"
    CONTRADICTION = "contradiction"
    INVALID = "invalid"


def parse_verdict(answer: str | None) -> Verdict:
    """Reads a judge's answer: exactly one of the words `consistent`, `contradiction`, alone or as its last line.

    "Not a contradiction" and answers that name both words are invalid: guessing would bias the score.
    """
    lines = [line for line in (answer or "").strip().lower().splitlines() if line.strip()]
    if not lines:
        return Verdict.INVALID
    word = re.sub(r"^(verdict|answer)\s*[:=]\s*", "", re.sub(r"[*_`\"'.\s]+", " ", lines[-1]).strip())
    for verdict in (Verdict.CONSISTENT, Verdict.CONTRADICTION):
        if word == verdict.value:
            return verdict
    return Verdict.INVALID


def parse_choice(answer: str | None, n_options: int) -> int | None:
    """Reads a multiple-choice answer such as `B`, `(b)` or `Answer: B`; None for anything else."""
    lines = [line for line in (answer or "").strip().splitlines() if line.strip()]
    if not lines:
        return None
    found = re.fullmatch(r"(?:answer\s*[:=]\s*)?[(\[]?\s*([A-Za-z])\s*[)\].:]?", lines[-1].strip(), re.IGNORECASE)
    index = ord(found.group(1).upper()) - ord("A") if found else n_options
    return index if index < n_options else None


@dataclass
class Tally:
    """Counts of verdicts; `rate` is the share of consistent ones among the valid ones, NaN without any."""

    consistent: int = 0
    contradictions: int = 0
    invalid: int = 0

    def add(self, verdict: Verdict) -> None:
        self.consistent += verdict is Verdict.CONSISTENT
        self.contradictions += verdict is Verdict.CONTRADICTION
        self.invalid += verdict is Verdict.INVALID

    @property
    def rate(self) -> float:
        valid = self.consistent + self.contradictions
        return self.consistent / valid if valid else float("nan")

    @property
    def invalid_rate(self) -> float:
        total = self.consistent + self.contradictions + self.invalid
        return self.invalid / total if total else 0.0


class Judge(Protocol):
    """Says whether a line contradicts a reference (a profile, or an earlier line by the same speaker)."""

    def verdicts(self, pairs: Sequence[tuple[Any, str]]) -> list[Verdict]:
        """One verdict for each (reference, line). A reference is a profile or a text."""
        ...


class Answerer(Protocol):
    """Answers multiple-choice questions from a speaker's lines alone."""

    def answers(self, items: Sequence[tuple[Sequence[str], Question]]) -> list[int | Verdict | None]:
        """For each (lines, question): an option's index, None if nothing said bears on it, or `Verdict.INVALID`."""
        ...


@dataclass(frozen=True)
class Question:
    """A multiple-choice question made from a profile; `answer` indexes `options` and is not shown to the answerer."""

    text: str
    options: tuple[str, ...]
    answer: int
    topic: str = ""


def user_lines(messages: Sequence[dict[str, str]]) -> list[str]:
    """The user's lines of a transcript, in order."""
    return [m["content"] for m in messages if m["role"] == "user"]


def prompt_to_line(lines: Sequence[str], profile: Any, judge: Judge) -> Tally:
    """Verdicts on each line against the profile."""
    tally = Tally()
    for verdict in judge.verdicts([(profile, line) for line in lines]):
        tally.add(verdict)
    return tally


def line_to_line(lines: Sequence[str], judge: Judge) -> Tally:
    """Verdicts on each line against each of the speaker's earlier lines."""
    tally = Tally()
    pairs = [(lines[i], lines[j]) for j in range(len(lines)) for i in range(j)]
    for verdict in judge.verdicts(pairs) if pairs else []:
        tally.add(verdict)
    return tally


@dataclass
class Answers:
    """Q&A consistency: `score` in [0, 1], the mean over lines of the share of right answers; invalid ones counted."""

    score: float
    asked: int
    invalid: int
    by_line: list[float] = field(default_factory=list)


def questions_and_answers(lines: Sequence[str], questions: Sequence[Question], answerer: Answerer) -> Answers:
    """Asks every question after every line, from the lines so far.

    Lines that only ask are skipped (`by_line` has no entry for them), so that a simulator moves its score neither way by
    replying with questions.
    """
    items = [(lines[: i + 1], q) for i in range(len(lines)) for q in questions]
    given = answerer.answers(items) if items else []
    by_line: list[float] = []
    asked = invalid = 0
    for i in range(len(lines)):
        row = given[i * len(questions) : (i + 1) * len(questions)]
        if is_question(lines[i]):
            continue
        invalid += sum(a is Verdict.INVALID for a in row)
        right = [a == q.answer for a, q in zip(row, questions) if a is not None and a is not Verdict.INVALID]
        asked += len(right)
        if right:
            by_line.append(sum(right) / len(right))
    return Answers(sum(by_line) / len(by_line) if by_line else float("nan"), asked, invalid, by_line)


def is_question(line: str) -> bool:
    """Whether a line only asks: every sentence of it ends with a question mark."""
    sentences = [s for s in re.split(r"(?<=[.?!])\s+", line.strip()) if s.strip(" .")]
    return bool(sentences) and all(s.rstrip().endswith("?") for s in sentences)


JUDGE_PROMPT = (
    "Does the second text contradict the first? The first describes or quotes a person, the second is said by the same "
    "person.\n\nFirst: {reference}\n\nSecond: {line}\n\nAnswer with one word, consistent or contradiction."
)
ANSWER_PROMPT = (
    "These lines were said by one person:\n{lines}\n\nAnswer for this person, from these lines only: {question}\n{options}\n"
    "Answer with one letter."
)


@dataclass
class TextJudge:
    """A judge and answerer that asks a language model (local or behind an endpoint).

    Args:
        complete: Texts of prompts -> texts of answers (None where the model failed), such as
            `pluralrlhf.environments.endpoint.LocalChat` or `ChatEndpoint`.
    """

    complete: Callable[[list[str]], list[str | None]]

    def verdicts(self, pairs: Sequence[tuple[Any, str]]) -> list[Verdict]:
        described = [(getattr(reference, "description", reference), line) for reference, line in pairs]
        return [
            parse_verdict(a) for a in self.complete([JUDGE_PROMPT.format(reference=r, line=x) for r, x in described])
        ]

    def answers(self, items: Sequence[tuple[Sequence[str], Question]]) -> list[int | Verdict | None]:
        prompts = []
        for lines, question in items:
            # One more option than the profile's, so that a model is not forced to guess what was never said.
            options = [*question.options, "cannot be told"]
            listed = "\n".join(f"{chr(ord('A') + i)}) {option}" for i, option in enumerate(options))
            said = "\n".join(f"- {line}" for line in lines)
            prompts.append(ANSWER_PROMPT.format(lines=said, question=question.text, options=listed))
        out: list[int | Verdict | None] = []
        for answer, (_, question) in zip(self.complete(prompts), items):
            choice = parse_choice(answer, len(question.options) + 1)
            out.append(Verdict.INVALID if choice is None else None if choice == len(question.options) else choice)
        return out


def consistency_reward(judge: Judge, metric: str = "prompt_to_line") -> Callable:
    """A TRL reward function for training a *simulator*: the share of its lines that contradict nothing.

    `completions` are messages; the simulator's own lines are its `user` turns. A conversation without a valid verdict
    gets None, which TRL leaves out.

    Args:
        judge: Says what contradicts what.
        metric: `prompt_to_line` (needs the `conversation` column, for the profile) or `line_to_line`.
    """

    def consistency(completions: Sequence[Any], conversation: Sequence[Any] = (), **kwargs: Any) -> list[float | None]:
        out: list[float | None] = []
        for i, messages in enumerate(completions):
            lines = user_lines(messages)
            if metric == "prompt_to_line":
                tally = prompt_to_line(lines, conversation[i].profile, judge)
            else:
                tally = line_to_line(lines, judge)
            out.append(tally.rate if tally.consistent + tally.contradictions else None)
        return out

    consistency.__name__ = f"consistency_{metric}"
    return consistency
