"""Polis: participants of a public conversation agree with, disagree with or pass on short statements.

A pair is two statements of which the same participant agreed with one and disagreed with the other. A pass is no
disagreement and makes no pair. Only the votes themselves are read: the columns `group-id`, `n-votes`, `n-agree`,
`n-disagree` and `n-comments` of the votes file are computed from all votes, those to be predicted included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...errors import ConfigError, DataError
from ..pairing import by_hash, spread_pairs
from ..placebo import permute_within
from ..schema import RowError, messages
from ..splits import hash64
from . import Source
from .origin import Origin, check_folder, fetch, need_file, parameters, read_csv, sha256

ORIGIN = Origin(
    repository="compdemocracy/openData",
    commit="0bc2ce0f32c673f68da20b57bce15c457aa787b5",
    licence="CC-BY-4.0",
    attribution=(
        "Data was gathered using the Polis software (see: compdemocracy.org/polis and github.com/compdemocracy/polis) "
        "and is sub-licensed under CC BY 4.0 with Attribution to The Computational Democracy Project."
    ),
)

CONVERSATIONS = (
    "15-per-hour-seattle",
    "american-assembly.bowling-green",
    "austria-climate.2vkxcncppn.2022-07-07",
    "austria-climate.5twd2jsnkf.2022-08-08",
    "austria-climate.7z7ejpbmv5.2022-08-08",
    "bg2050-volunteers",
    "brexit-consensus",
    "canadian-electoral-reform",
    "football-concussions",
    "scoop-hivemind.affordable-housing",
    "scoop-hivemind.biodiversity",
    "scoop-hivemind.freshwater",
    "scoop-hivemind.taxes",
    "scoop-hivemind.ubi",
)

VOTES, COMMENTS = "participants-votes.csv", "comments.csv"
NO_VOTE, PASS, AGREE, DISAGREE = -128, 0, 1, -1
_CELLS = {"": NO_VOTE, "1": AGREE, "-1": DISAGREE, "0": PASS, "1.0": AGREE, "-1.0": DISAGREE, "0.0": PASS}


@dataclass
class Conversation:
    """The votes of one conversation on the statements that moderators kept.

    Attributes:
        participants: Ids, in the order of the rows of `votes`.
        statements: Ids, in the order of the columns of `votes`; one id for all statements of the same wording.
        texts: The statements' wording.
        votes: (participants, statements) int8: 1 agrees, -1 disagrees, 0 passes, -128 did not vote.
    """

    name: str
    participants: list[str]
    statements: list[str]
    texts: list[str]
    votes: np.ndarray


@dataclass
class Polis(Source):
    name: ClassVar[str] = "polis"
    summary: ClassVar[str] = "Polis conversations: a statement that a participant agrees with over one they do not"
    example: ClassVar[str] = "--path polis --conversation brexit-consensus"

    path: str | None = field(
        default=None,
        metadata={"help": "local copy: a conversation's folder, or a folder of them (default: the public origin)"},
    )
    conversation: str = field(
        default="american-assembly.bowling-green",
        metadata={"help": "name of a conversation, several separated by commas, or `all`"},
    )
    min_votes: int = field(
        default=25, metadata={"help": "least number of agree and disagree votes of a participant who is kept"}
    )
    max_pairs_per_user: int = field(
        default=200,
        metadata={"help": "most pairs of a user among seen statements, and again among unseen ones (0: all)"},
    )
    prompt: str = field(
        default="Which statement do you agree with?", metadata={"help": "the prompt of every pair, the same for all"}
    )
    placebo: bool = field(
        default=False,
        metadata={"help": "permute the votes on each statement among those who voted on it, before pairing"},
    )
    seed: int = field(default=0, metadata={"help": "of the choice of pairs under the cap, and of the placebo"})
    origin_url: str = field(default=ORIGIN.url, metadata={"help": "root of the public origin, or of a mirror of it"})

    def __post_init__(self):
        super().__post_init__()
        self.files: dict[str, str] = {}
        for name in ("min_votes", "max_pairs_per_user"):
            if getattr(self, name) < 0:
                raise ConfigError(f"`{name}` is {getattr(self, name)}: 0 or more is expected")
        if not self.prompt.strip():
            raise ConfigError("`prompt` is empty: give the question that every pair answers")

    def rows(self) -> Iterator[dict | RowError]:
        """Yields pair rows, ordered by conversation, participant and hash; first the errors of the rows as read."""
        self.dropped.clear()
        for name in self._names():
            conversation, errors = self._load(name)
            yield from errors
            keep = self._kept_participants(conversation)
            if self.placebo:
                permute_votes(conversation, keep, self.seed)
            yield from self._pairs(conversation, keep)

    def describe(self) -> dict:
        return {
            "source": self.name,
            "title": "Polis: votes on statements",
            **ORIGIN.describe(),
            "sha256": dict(sorted(self.files.items())),
            "parameters": parameters(self),
        }

    # Reading

    def _names(self) -> list[str]:
        if self.conversation.strip() != "all":
            names = [name.strip() for name in self.conversation.split(",") if name.strip()]
            if not names:
                raise ConfigError("`conversation` is empty: name one, several separated by commas, or `all`")
            return list(dict.fromkeys(names))
        if self.path is None:
            return list(CONVERSATIONS)
        check_folder(self.path)
        folders = sorted(p.name for p in Path(self.path).iterdir() if p.is_dir())
        names = [n for n in folders if any((Path(self.path) / n / f"{VOTES}{s}").is_file() for s in ("", ".gz"))]
        if not names:
            raise DataError(
                f"no folder with `{VOTES}` in it", "Point `--path` at a folder of conversations.", file=self.path
            )
        return names

    def _files(self, name: str) -> tuple[Path, Path]:
        if self.path is None:
            return fetch(self.origin_url, f"{name}/{VOTES}"), fetch(self.origin_url, f"{name}/{COMMENTS}")
        folder = Path(self.path)
        # A folder that is itself the conversation is as good as one that holds it.
        if folder.name == name or not (folder / name).is_dir():
            if folder.name != name and folder.is_dir() and not any(folder.glob(f"{VOTES}*")):
                raise DataError(
                    f"no conversation `{name}` here",
                    "Set `--conversation` to the name of a folder in it, or to `all`",
                    file=self.path,
                )
        else:
            folder = folder / name
        return need_file(folder, VOTES), need_file(folder, COMMENTS)

    def _load(self, name: str) -> tuple[Conversation, list[RowError]]:
        votes_file, comments_file = self._files(name)
        for path in (votes_file, comments_file):
            self.files[f"{name}/{path.name.removesuffix('.gz')}"] = sha256(path)
        errors: list[RowError] = []
        texts, statement_of = self._read_comments(comments_file, errors)
        return self._read_votes(name, votes_file, texts, statement_of, errors), errors

    def _read_comments(self, path: Path, errors: list) -> tuple[dict[str, str], dict[str, str]]:
        """Wording by statement id, and the id that stands for each comment id (the first one of the same wording)."""
        texts: dict[str, str] = {}
        columns: dict[str, int] = {}
        for line, cells in read_csv(path):
            if not columns:
                columns = _header(cells, ("comment-id", "moderated", "comment-body"), path)
                continue
            if not cells:
                continue
            if len(cells) <= max(columns.values()):
                raise DataError(f"{len(cells)} cells", "The row is cut off.", file=str(path), row=line)
            comment, text = cells[columns["comment-id"]].strip(), cells[columns["comment-body"]].strip()
            if cells[columns["moderated"]].strip() == "-1":
                self.dropped["statements_rejected_by_moderators"] += 1
            elif not text:
                self.dropped["statements_without_text"] += 1
            elif comment in texts:
                errors.append(
                    _row_error("repeated_statement", "a second statement of this id", path, line, cells, "comment-id")
                )
            else:
                texts[comment] = text
        first: dict[str, str] = {}
        for comment in sorted(texts, key=_numeric):
            first.setdefault(" ".join(texts[comment].casefold().split()), comment)
        statement_of = {c: first[" ".join(t.casefold().split())] for c, t in texts.items()}
        self.dropped["statements_worded_like_another"] += len(texts) - len(first)
        return {c: texts[c] for c in first.values()}, statement_of

    def _read_votes(self, name: str, path: Path, texts: dict, statement_of: dict, errors: list) -> Conversation:
        statements = sorted(texts, key=_numeric)
        position = {statement: i for i, statement in enumerate(statements)}
        header: list[str] = []
        targets: list[tuple[int, int]] = []
        participants: dict[str, np.ndarray] = {}
        for line, cells in read_csv(path):
            if not header:
                header = [cell.strip() for cell in cells]
                person = _header(cells, ("participant",), path)["participant"]
                # Of the other columns only those named by a statement's id are votes; see the module's docstring.
                targets = [(i, position[statement_of[c]]) for i, c in enumerate(header) if c in statement_of]
                continue
            if not cells:
                continue
            if len(cells) != len(header):
                found = f"{len(cells)} cells under {len(header)} columns"
                errors.append(_row_error("short_row", found, path, line, cells))
                continue
            identifier = cells[person].strip()
            if not identifier or identifier in participants:
                found = "a second row of this participant" if identifier else "no participant"
                errors.append(_row_error("repeated_participant", found, path, line, cells, "participant"))
                continue
            bad = next((i for i, _ in targets if cells[i].strip() not in _CELLS), None)
            if bad is not None:
                found = "a vote that is not 1 (agree), -1 (disagree), 0 (pass) or empty"
                errors.append(_row_error("bad_vote", found, path, line, cells, header[bad]))
                continue
            votes = np.full(len(statements), NO_VOTE, dtype=np.int8)
            for i, statement in targets:
                vote = _CELLS[cells[i].strip()]
                if vote != NO_VOTE:
                    if votes[statement] not in (NO_VOTE, vote):
                        # Two votes on the same wording that contradict each other say nothing.
                        self.dropped["contradicting_votes_on_the_same_wording"] += 1
                        vote = PASS
                    votes[statement] = vote
            participants[identifier] = votes
        if not header:
            raise DataError("the file is empty", "Fetch it again.", file=str(path))
        order = sorted(participants, key=_numeric)
        matrix = np.stack([participants[p] for p in order]) if order else np.zeros((0, len(statements)), np.int8)
        return Conversation(name, order, statements, [texts[s] for s in statements], matrix)

    # Pairing

    def _kept_participants(self, conversation: Conversation) -> np.ndarray:
        """Rows of participants with enough votes; decided on the real votes, so that a placebo keeps the same people."""
        votes = conversation.votes
        decided = ((votes == AGREE) | (votes == DISAGREE)).sum(1)
        self.dropped["passes"] += int((votes == PASS).sum())
        self.dropped["participants_with_few_votes"] += int((decided < self.min_votes).sum())
        return np.flatnonzero(decided >= self.min_votes)

    def _pairs(self, conversation: Conversation, keep: np.ndarray) -> Iterator[dict]:
        """Pairs of each kept participant; pairs of a seen and an unseen statement, which no split holds, are not made.

        The seen and the unseen side each have the cap, so that many seen pairs do not crowd out the unseen ones.
        """
        items = [f"{conversation.name}/{statement}" for statement in conversation.statements]
        unseen = np.array([self.split is not None and self.split.item_unseen(item) for item in items], dtype=bool)
        prompt = messages(self.prompt, "user")
        for row in keep:
            user = f"{conversation.name}/{conversation.participants[row]}"
            votes = conversation.votes[row]
            mixed = int((votes == AGREE).sum()) * int((votes == DISAGREE).sum())
            for side in (~unseen, unseen):
                chosen = self._order(votes == AGREE, side, items, user)
                rejected = self._order(votes == DISAGREE, side, items, user)
                possible = len(chosen) * len(rejected)
                taken = min(possible, self.max_pairs_per_user or possible)
                mixed -= possible
                self.dropped["over_max_pairs_per_user"] += possible - taken
                for winner, loser in spread_pairs(chosen, rejected, taken):
                    ordered = sorted((winner, loser))  # the order must not tell the choice
                    yield {
                        "user_id": user,
                        "pair_id": f"{user}:{'+'.join(conversation.statements[i] for i in ordered)}",
                        "item_ids": [items[i] for i in ordered],
                        "prompt": prompt,
                        "chosen": messages(conversation.texts[winner]),
                        "rejected": messages(conversation.texts[loser]),
                    }
            self.dropped["mixed_items"] += mixed

    def _order(self, voted: np.ndarray, side: np.ndarray, items: list[str], user: str) -> list[int]:
        """Statements on one side of the split that a participant voted on so, in an order drawn by hash."""
        position = {items[i]: int(i) for i in np.flatnonzero(voted & side)}
        return [position[item] for item in by_hash(position, "polis", self.seed, user)]


def permute_votes(conversation: Conversation, rows: np.ndarray, seed: int) -> None:
    """Permutes, in place, the votes on each statement among those of `rows` who voted on it, passes included.

    Who voted on what and each statement's counts stay; whatever a vote said about its participant is gone.
    """
    place, statement = np.nonzero(conversation.votes[rows] != NO_VOTE)
    people = rows[place]
    conversation.votes[people, statement] = permute_within(
        statement, conversation.votes[people, statement], hash64("polis placebo", seed, conversation.name)
    )


def _numeric(identifier: str) -> tuple[int, int, str]:
    return (0, int(identifier), "") if identifier.isdecimal() else (1, 0, identifier)


def _header(cells: list[str], needed: Sequence[str], path: Path) -> dict[str, int]:
    header = [cell.strip() for cell in cells]
    for column in needed:
        if column not in header:
            raise DataError(
                "the column is missing",
                "This is not the file that a Polis export calls by this name",
                file=str(path),
                row=1,
                column=column,
            )
    return {column: header.index(column) for column in needed}


def _row_error(
    reason: str, found: str, path: Path, line: int, cells: list[str], column: str | None = None
) -> RowError:
    remedy = "Correct the row, or drop such rows with --skip_invalid"
    return RowError(reason, found, remedy, raw=cells, file=str(path), row=line, column=column)
