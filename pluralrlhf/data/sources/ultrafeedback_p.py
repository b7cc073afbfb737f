"""UltraFeedback-P: users who each judge by one of the four aspects that GPT-4 rated (VPL's P-2 and P-4).

The users are simulated, the responses and ratings are not. Each pair is labelled once by each persona, by a user of
that persona drawn by hash. A pair's item is its prompt: a target, and whatever else is said of its prompt, is never in
its own context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...errors import ConfigError
from ..schema import RowError, messages
from ..splits import hash64, unit_hash
from .hub import HubSource, cell, share_out, wording

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
PERSONAS = {"P-2": ASPECTS[:2], "P-4": ASPECTS}
BINARIZED = "argilla/ultrafeedback-binarized-preferences-cleaned"
_PARTS = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
_WORDS = {
    "helpfulness": "how helpful it is",
    "honesty": "how honest it is about what it knows and does not know",
    "instruction_following": "how closely it follows the instruction",
    "truthfulness": "how truthful it is",
}


@dataclass
class UltraFeedbackP(HubSource):
    """Pairs on which personas disagree.

    `contested` says which pairs are kept. `published`: those on which the personas' own labels disagree. Then who knows
    one persona's label of a pair knows more of another's than the responses tell (for P-2, all of it), and whether a
    target is predicted at all depends on its answer. `strict`: pairs of prompts on whose *other* responses two aspects
    disagree, so that no rating of a compared response has a part in it. `all`: every pair.
    """

    name: ClassVar[str] = "ultrafeedback_p"
    summary: ClassVar[str] = "UltraFeedback-P: simulated users who judge by one aspect of a response (P-2, P-4)"
    example: ClassVar[str] = "--path UltraFeedback --personas P-2 --contested published"
    min_pairs_per_user: ClassVar[int | None] = 2
    repository: ClassVar[str] = "openbmb/UltraFeedback"
    title: ClassVar[str] = "UltraFeedback-P: users who judge by one aspect"
    licence: ClassVar[str] = "MIT"
    attribution: ClassVar[str] = (
        "UltraFeedback, Ganqu Cui et al., 'UltraFeedback: Boosting Language Models with Scaled AI Feedback', ICML 2024; "
        "personas after Sriyash Poddar et al., 'Personalizing Reinforcement Learning from Human Feedback with "
        "Variational Preference Learning', NeurIPS 2024; pairs of `binarized` by Argilla."
    )

    path: str | None = field(
        default=None,
        metadata={
            "help": "local copy: a folder with the origin's JSON Lines files (flan.jsonl, ...), and for `--pairs "
            "binarized` the Argilla dataset as binarized.parquet or binarized.jsonl (default: both from the Hub)"
        },
    )
    revision: str = field(
        default="40b436560ca83a8dba36114c22ab3c66e43f6d5e", metadata={"help": "commit or tag of the Hub dataset"}
    )
    binarized_revision: str = field(default="main", metadata={"help": f"commit or tag of {BINARIZED}"})
    personas: Literal["P-2", "P-4"] = field(
        default="P-4", metadata={"help": "P-2: helpfulness and honesty; P-4: all four aspects"}
    )
    contested: Literal["strict", "published", "all"] = field(
        default="strict",
        metadata={
            "help": "published: pairs on which the personas disagree; strict: pairs of prompts on whose other responses "
            "the aspects do, which no label decides; all: every pair"
        },
    )
    ties: Literal["user", "pair", "coin"] = field(
        default="user",
        metadata={
            "help": "equal ratings: leave out this persona's label (as published), the whole pair, or flip a coin"
        },
    )
    pairs: Literal["binarized", "drawn"] = field(
        default="binarized",
        metadata={
            "help": "which two of a prompt's responses: those of the binarized dataset, chosen by mean rating (as "
            "published), or two drawn by hash"
        },
    )
    users_per_persona: int = field(default=100, metadata={"help": "users who share a persona's labels among them"})
    placebo: bool = field(default=False, metadata={"help": "permute each pair's labels among those who judged it"})
    seed: int = field(default=0, metadata={"help": "of the drawn pairs, the users, the coins and the placebo"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.users_per_persona < 1:
            raise ConfigError(f"`users_per_persona` is {self.users_per_persona}: 1 or more is expected")

    def rows(self) -> Iterator[dict[str, Any] | RowError]:
        """Yields pair rows in the order of the prompts, a row a persona."""
        self.dropped.clear()
        wanted: set[int] | None = None
        if self.pairs == "binarized":
            wanted = set()
            for path, number, record in self.records(self._binarized()):
                try:
                    if isinstance(record, RowError):
                        raise record
                    wanted.add(_binarized_pair(record, path, number))
                except RowError as error:
                    yield error
        seen: set[int] = set()
        for path, number, record in self.records(self.find(*(f"{part}.jsonl" for part in _PARTS))):
            if isinstance(record, RowError):
                yield record
                continue
            try:
                prompt = cell(record, "instruction", str, path, number)
                responses = self._responses(record, path, number)
            except RowError as error:
                yield error
                continue
            for key, first, second in self._choose(prompt, responses, wanted):
                if key in seen:
                    self.dropped["repeated_pair"] += 1
                    continue
                seen.add(key)
                others = [ratings for text, ratings in responses if text not in (first[0], second[0])]
                for row in self._labels(prompt, key, first, second, others):
                    yield {**row, "_file": str(path), "_row": number}
        if wanted is not None:
            self.dropped["binarized_pair_without_ratings"] += len(wanted - seen)

    def users(self) -> Iterator[dict[str, Any]]:
        """Each user's aspect, as a sentence and as an attribute: for oracles, which say so."""
        for aspect in PERSONAS[self.personas]:
            for number in range(self.users_per_persona):
                yield {
                    "user_id": f"{aspect}-{number:04d}",
                    "profile": f"I judge a response by {_WORDS[aspect]}.",
                    "attributes": {"aspect": aspect},
                }

    def notes(self) -> str:
        text = f"Users are simulated: {self.users_per_persona} a persona, who share its labels of all pairs. "
        text += {
            "published": "Pairs are kept where the personas' own labels disagree, so that the labels select the pairs.",
            "strict": "Pairs are kept where aspects disagree on the prompt's other responses; no label has a part in it.",
            "all": "All pairs are kept.",
        }[self.contested]
        text += {
            "user": " A persona whose two ratings are equal does not judge the pair.",
            "pair": " Pairs with equal ratings of any aspect are left out.",
            "coin": " Equal ratings are decided by a coin.",
        }[self.ties]
        return text + (" **Placebo**: each pair's labels are permuted among those who judged it." * self.placebo)

    def _binarized(self) -> list[Path]:
        if self.path is not None:
            return self.find(("binarized.parquet", "binarized.jsonl"))
        return self.find("data/train-*.parquet", repository=BINARIZED, revision=self.binarized_revision)

    def _responses(self, record: dict, path: Path, row: int) -> list[tuple[str, tuple[int, ...]]]:
        """Responses with four ratings each, in the order of `ASPECTS`; those that lack a rating are counted."""
        rated = []
        for completion in cell(record, "completions", list, path, row):
            completion = completion if isinstance(completion, dict) else {"completions": completion}
            text = cell(completion, "response", str, path, row)
            ratings = [cell(completion, f"annotations.{aspect}.Rating", str, path, row) for aspect in ASPECTS]
            if not text.strip():
                self.dropped["empty_response"] += 1
            elif not all(rating.strip() in ("1", "2", "3", "4", "5") for rating in ratings):
                bad = next((r for r in ratings if r.strip() not in ("1", "2", "3", "4", "5", "N/A")), None)
                if bad is not None:
                    found, where = f"a rating {bad[:10]!r}, not 1 to 5 or N/A", {"file": str(path), "row": row}
                    raise RowError("bad_rating", found, "Correct it, or use --skip_invalid", raw=record, **where)
                self.dropped["response_without_all_ratings"] += 1
            else:
                rated.append((text, tuple(int(rating) for rating in ratings)))
        return rated

    def _choose(self, prompt: str, responses: list, wanted: set[int] | None) -> Iterator[tuple[int, tuple, tuple]]:
        """The pairs of one prompt with their keys: the binarized dataset's, or one drawn by hash."""
        if not prompt.strip():
            self.dropped["empty_prompt"] += 1
            return
        pairs = {}
        for first, second in itertools.combinations(responses, 2):
            if first[0].strip() != second[0].strip():
                pairs.setdefault(_pair_key(prompt, first[0], second[0]), (first, second))
        if wanted is None:
            keys = sorted(pairs, key=lambda key: hash64("ultrafeedback_p", self.seed, key))[:1]
            if not keys:
                self.dropped["prompt_without_two_rated_responses"] += 1
        else:
            keys = [key for key in pairs if key in wanted]
        for key in keys:
            yield key, *pairs[key]

    def _labels(
        self, prompt: str, key: int, first: tuple, second: tuple, others: list[tuple[int, ...]]
    ) -> Iterator[dict[str, Any]]:
        """Each persona's judgment of a pair. A label is +1 for the first response, -1 for the second, 0 for a tie."""
        labels = dict(zip(ASPECTS, _preferences(first[1], second[1])))
        if self.ties == "pair" and 0 in labels.values():
            self.dropped["pair_with_a_tie"] += len(PERSONAS[self.personas])
            return
        if self.ties == "coin":
            for aspect in [aspect for aspect in ASPECTS if not labels[aspect]]:
                labels[aspect] = 1 if unit_hash("coin", self.seed, key, aspect) < 0.5 else -1
        if not self._is_contested([labels[aspect] for aspect in PERSONAS[self.personas]], others):
            self.dropped["not_contested"] += len(PERSONAS[self.personas])
            return
        judged = [aspect for aspect in PERSONAS[self.personas] if labels[aspect]]
        self.dropped["tie"] += len(PERSONAS[self.personas]) - len(judged)
        given = [labels[aspect] for aspect in judged]
        if self.placebo:
            # Any order is as likely as any other: with two judges who disagree, a forced exchange would tell as much
            # as the labels themselves.
            order = sorted(range(len(given)), key=lambda i: hash64("placebo", self.seed, key, judged[i]))
            given = [given[i] for i in order]
        for aspect, label in zip(judged, given):
            chosen, rejected = (first[0], second[0]) if label > 0 else (second[0], first[0])
            yield {
                "user_id": share_out([aspect], self.users_per_persona, "ultrafeedback_p", self.seed, key, aspect),
                "pair_id": f"{key:016x}:{aspect}",
                "item_ids": [wording("uf", prompt)],
                "prompt": messages(prompt, "user"),
                "chosen": messages(chosen),
                "rejected": messages(rejected),
            }

    def _is_contested(self, labels: list[int], others: list[tuple[int, ...]]) -> bool:
        """Whether a pair is kept, by the personas' labels (`published`) or the ratings of responses not compared."""
        if self.contested == "published":
            return {-1, 1} <= set(labels)
        return self.contested == "all" or any(
            {-1, 1} <= set(_preferences(a, b)) for a, b in itertools.combinations(others, 2)
        )


def _preferences(first: tuple[int, ...], second: tuple[int, ...]) -> list[int]:
    """By aspect: 1 where the first response is rated higher, -1 where the second is, 0 where neither is."""
    return [(a > b) - (a < b) for a, b in zip(first, second)]


def _pair_key(prompt: str, first: str, second: str) -> int:
    return hash64(prompt.strip(), *sorted((first.strip(), second.strip())))


def _binarized_pair(record: dict, path: Path, row: int) -> int:
    """The key of a row of the binarized dataset: `prompt`, and two conversations that end with the responses."""
    prompt, texts = cell(record, "prompt", str, path, row), []
    for column in ("chosen", "rejected"):
        said = cell(record, column, list, path, row)
        texts.append(cell(said[-1] if said and isinstance(said[-1], dict) else {}, "content", str, path, row))
    return _pair_key(prompt, *texts)
