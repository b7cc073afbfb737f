"""A judge of consistency by rules, for worlds whose language can be read exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .consistency import Question, Verdict


class RuleJudge:
    """Judges a world's lines by what they state; a judge and an answerer in one.

    A line contradicts a profile if it states another value of an attribute, and an earlier line if the two state
    different values. A question states nothing. Words that the world does not know are not judged.

    Args:
        statements: A text -> [(attribute, value), ...], such as `ExerciseWorld.statements`.
        values: A profile -> its value of every attribute.
    """

    def __init__(
        self,
        statements: Callable[[str], list[tuple[int, int]]],
        values: Callable[[Any], Sequence[int]],
    ):
        self.statements, self.values = statements, values

    def verdicts(self, pairs: Sequence[tuple[Any, str]]) -> list[Verdict]:
        out = []
        for reference, line in pairs:
            if isinstance(reference, str):
                known = dict(self.statements(reference))
            else:
                known = dict(enumerate(self.values(reference)))
            clash = any(known.get(attribute, value) != value for attribute, value in self.statements(line))
            out.append(Verdict.CONTRADICTION if clash else Verdict.CONSISTENT)
        return out

    def answers(self, items: Sequence[tuple[Sequence[str], Question]]) -> list[int | Verdict | None]:
        out: list[int | Verdict | None] = []
        for lines, question in items:
            said = [v for line in lines for a, v in self.statements(line) if str(a) == question.topic]
            out.append(said[-1] if said else None)  # what was said last is what the speaker now holds
        return out

    def questions(self, profile: Any, options: Sequence[tuple[str, tuple[str, str]]]) -> list[Question]:
        """One question an attribute; `options` gives its name and the names of its two values."""
        values = self.values(profile)
        return [
            Question(f"Which {name} does this person choose?", names, values[a], topic=str(a))
            for a, (name, names) in enumerate(options)
        ]
