"""UKPConvArg1: which of two arguments for the same side of a debate is more convincing, and why, in the worker's words.

A control where personalisation is expected to help little: it must not hurt. Half of the workers judged four pairs or
fewer, so `--min_pairs_per_user` matters. Ties make no pair and are counted.
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ...errors import DataError
from ..placebo import placebo_pairs
from ..schema import RowError, messages
from . import Source
from .origin import Origin, check_folder, fetch, find_file, need_file, parameters, read_jsonl, sha256, text_cell

ORIGIN = Origin(
    repository="UKPLab/acl2016-convincing-arguments",
    commit="a5e39538e0e55a2e9f417ef3c86e7e62610f464b",
    licence="CC-BY-4.0",
    attribution=(
        "UKPConvArg1, Ivan Habernal and Iryna Gurevych, 'Which argument is more convincing? Analyzing and predicting "
        "convincingness of Web arguments using bidirectional LSTM', ACL 2016; UKP Lab, TU Darmstadt."
    ),
)
FOLDER = "data/UKPConvArg1-full-XML"
TOPICS = (
    "ban-plastic-water-bottles_no-bad-for-the-economy",
    "ban-plastic-water-bottles_yes-emergencies-only",
    "christianity-or-atheism-_atheism",
    "christianity-or-atheism-_christianity",
    "evolution-vs-creation_creation",
    "evolution-vs-creation_evolution",
    "firefox-vs-internet-explorer_it-has-a-cute-logo-oh-and-extensions-err-add-ons",
    "firefox-vs-internet-explorer_there-s-more-browsers-than-the-ie-firefox-is-an-animal",
    "gay-marriage-right-or-wrong_allowing-gay-marriage-is-right",
    "gay-marriage-right-or-wrong_allowing-gay-marriage-is-wrong",
    "human-growth-and-development-should-parents-use-spanking-as-an-option-to-discipline-_no",
    "human-growth-and-development-should-parents-use-spanking-as-an-option-to-discipline-_yes",
    "if-your-spouse-committed-murder-and-he-or-she-confided-in-you-would-you-turn-them-in-_no",
    "if-your-spouse-committed-murder-and-he-or-she-confided-in-you-would-you-turn-them-in-_yes",
    "india-has-the-potential-to-lead-the-world-_no-against",
    "india-has-the-potential-to-lead-the-world-_yes-for",
    "is-it-better-to-have-a-lousy-father-or-to-be-fatherless-_fatherless",
    "is-it-better-to-have-a-lousy-father-or-to-be-fatherless-_lousy-father",
    "is-porn-wrong-_no-is-is-not",
    "is-porn-wrong-_yes-porn-is-wrong",
    "is-the-school-uniform-a-good-or-bad-idea-_bad",
    "is-the-school-uniform-a-good-or-bad-idea-_good",
    "personal-pursuit-or-advancing-the-common-good-_advancing-the-comnong-good",
    "personal-pursuit-or-advancing-the-common-good-_personal-pursuit",
    "pro-choice-vs-pro-life_pro-choice",
    "pro-choice-vs-pro-life_pro-life",
    "should-physical-education-be-mandatory-in-schools-_no-",
    "should-physical-education-be-mandatory-in-schools-_yes-",
    "tv-is-better-than-books_books",
    "tv-is-better-than-books_tv",
    "william-farquhar-ought-to-be-honoured-as-the-rightful-founder-of-singapore_no-it-is-raffles-",
    "william-farquhar-ought-to-be-honoured-as-the-rightful-founder-of-singapore_yes-of-course-",
)
MAX_REASONS = 500  # of a worker; the busiest wrote a million characters
_VALUES = {"a1": "a", "a2": "b", "equal": "tie"}


@dataclass
class UKPConvincing(Source):
    name: ClassVar[str] = "ukp_convincing"
    summary: ClassVar[str] = "UKPConvArg1: which of two arguments convinces a crowd worker more"
    example: ClassVar[str] = "--path ukpconvarg1"
    min_pairs_per_user: ClassVar[int | None] = 20

    path: str | None = field(
        default=None,
        metadata={
            "help": "local copy: a folder with annotations.jsonl and arguments.jsonl, or a clone of the origin "
            "(default: the public origin)"
        },
    )
    placebo: bool = field(
        default=False, metadata={"help": "permute the choices among the workers who judged the same pair"}
    )
    seed: int = field(default=0, metadata={"help": "of the placebo"})
    origin_url: str = field(default=ORIGIN.url, metadata={"help": "root of the public origin, or of a mirror of it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.files: dict[str, str] = {}

    def rows(self) -> Iterator[dict | RowError]:
        """Pair rows in the order of the judgments."""
        return placebo_pairs(self._pairs, self.seed, self.dropped) if self.placebo else self._pairs()

    def users(self) -> Iterator[dict]:
        """The first `MAX_REASONS` reasons that each worker gave, with the arguments they speak of, in `conversations`.

        A reason says which argument won: what reads it as context must leave out those on a target's items.
        """
        reasons: dict[str, list] = defaultdict(list)
        for _, _, judgment, _ in self._judgments():
            if not isinstance(judgment, RowError) and isinstance(judgment.get("reason"), str):
                pair = [str(judgment.get("a")), str(judgment.get("b"))]
                given = reasons[str(judgment.get("user_id"))]
                if judgment["reason"].strip() and len(given) < MAX_REASONS:
                    given.append({"item_ids": pair, "reason": judgment["reason"]})
        for user, given in reasons.items():
            if given:
                yield {"user_id": user, "conversations": given}

    def describe(self) -> dict:
        return {
            "source": self.name,
            "title": "UKPConvArg1: which argument is more convincing",
            **ORIGIN.describe(),
            "sha256": dict(sorted(self.files.items())),
            "parameters": parameters(self),
        }

    def _pairs(self) -> Iterator[dict | RowError]:
        self.dropped.clear()
        first_of: dict[tuple, str] = {}  # topic and wording -> the id that stands for all arguments of this wording
        judged: set[tuple] = set()
        for path, number, judgment, arguments in self._judgments():
            if isinstance(judgment, RowError):
                yield judgment
                continue
            where = {"raw": judgment, "file": str(path), "row": number}
            try:
                user, vote = (text_cell(judgment, column, path, number) for column in ("user_id", "vote"))
                ids = [text_cell(judgment, column, path, number) for column in ("a", "b")]
                for column, identifier in zip("ab", ids):
                    if identifier not in arguments:
                        remedy = "Complete arguments.jsonl, or drop such rows with --skip_invalid"
                        raise RowError("unknown_argument", "no argument of this id", remedy, column=column, **where)
                if vote not in ("a", "b", "tie"):
                    remedy = "Correct it, or drop such rows with --skip_invalid"
                    raise RowError("bad_vote", "a vote that is not a, b or tie", remedy, column="vote", **where)
            except RowError as error:
                yield error
                continue
            sides = [arguments[identifier] for identifier in ids]
            items = [
                first_of.setdefault((side["topic"], " ".join(side["text"].casefold().split())), identifier)
                for identifier, side in zip(ids, sides)
            ]
            pair = (user, *sorted(items))  # sorted: the order of ids must not tell the choice
            if vote == "tie":
                self.dropped["tie"] += 1
            elif items[0] == items[1]:
                self.dropped["identical_responses"] += 1
            elif pair in judged:
                self.dropped["repeated_judgment"] += 1
            else:
                judged.add(pair)
                winner = 0 if vote == "a" else 1
                title, stance = sides[0]["title"].strip(), sides[0]["stance"].strip()
                prompt = f"{title}\nWhich argument is more convincing for this side: {stance}?"
                yield {
                    "user_id": user,
                    "pair_id": f"{user}:{pair[1]}+{pair[2].rpartition('/')[2]}",
                    "item_ids": list(pair[1:]),
                    "prompt": messages(prompt, "user"),
                    "chosen": messages(sides[winner]["text"]),
                    "rejected": messages(sides[1 - winner]["text"]),
                }

    # Reading: two JSON Lines files, or the origin's XML

    def _judgments(self) -> Iterator[tuple[Path, int, dict | RowError, dict]]:
        """Judgments with the file, the row, and the arguments by id that they speak of."""
        if self.path is not None:
            check_folder(self.path)
        if self.path is None or (Path(self.path) / FOLDER).is_dir():
            for topic in TOPICS:
                name = f"{FOLDER}/{topic}.xml"
                path = fetch(self.origin_url, name) if self.path is None else need_file(self.path, name)
                self.files.setdefault(f"{topic}.xml", sha256(path))
                yield from read_xml(path, topic)
            return
        if find_file(self.path, ["annotations.jsonl"]) is None:
            need_file(self.path, "annotations.jsonl", FOLDER)
        texts, judgments = need_file(self.path, "arguments.jsonl"), need_file(self.path, "annotations.jsonl")
        for path in (texts, judgments):
            self.files.setdefault(path.name.removesuffix(".gz"), sha256(path))
        arguments: dict[str, dict] = {}
        for number, argument in read_jsonl(texts):
            try:
                if isinstance(argument, RowError):
                    raise argument
                for column in ("arg_id", "topic", "title", "stance", "text"):
                    text_cell(argument, column, texts, number)
                arguments[argument["arg_id"]] = argument
            except RowError as error:
                yield texts, number, error, arguments
        for number, judgment in read_jsonl(judgments):
            yield judgments, number, judgment, arguments


def read_xml(path: Path, topic: str) -> Iterator[tuple[Path, int, dict, dict]]:
    """Judgments of one of the origin's XML files; `row` is the number of the argument pair.

    Workers' Mechanical Turk ids point at accounts elsewhere: they are replaced by a hash.
    """
    number = 0
    try:
        for _, pair in ElementTree.iterparse(path):
            if pair.tag != "annotatedArgumentPair":
                continue
            number += 1
            title = pair.findtext("debateMetaData/title") or ""
            arguments = {}
            for side in ("arg1", "arg2"):
                identifier = f"{topic}/{pair.findtext(f'{side}/id')}"
                arguments[identifier] = {
                    "topic": topic,
                    "title": title,
                    "stance": pair.findtext(f"{side}/stance") or "",
                    "text": pair.findtext(f"{side}/text") or "",
                }
            ids = list(arguments)
            for assignment in pair.iterfind("mTurkAssignments/mTurkAssignment"):
                worker = assignment.findtext("turkID") or ""
                value = assignment.findtext("value") or ""
                judgment = {
                    "user_id": "w"
                    + hashlib.blake2b(worker.encode(), digest_size=6, person=b"ukpconvarg1").hexdigest(),
                    "a": ids[0],
                    "b": ids[-1],
                    "vote": _VALUES.get(value, value),
                    "reason": assignment.findtext("reason"),
                }
                yield path, number, judgment, arguments
            pair.clear()
    except (ElementTree.ParseError, OSError) as error:
        raise DataError(f"malformed XML ({error})", "Fetch the file again", file=str(path), row=number + 1) from None
