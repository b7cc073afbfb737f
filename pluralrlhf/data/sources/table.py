"""Your own data: any table of preferences or ratings with a user's id in each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...errors import ConfigError, DataError
from .. import placebo
from ..schema import RowError, check_text, validate_pair
from . import Source
from .table_files import TableReader
from .table_map import STANDALONE, Columns, check_mapping
from .table_rows import RowReader
from .table_values import Choices, RatingScale

if TYPE_CHECKING:
    from .table_ratings import Ratings

_PEEK = 10_000  # rows looked at to find out whether choices count from 0 or 1
DEFAULT_PROMPT = "Write something that I would rate highly."
_CAP = 200  # pairs a user where every rated text can be paired with every other

Record = tuple[str, int, Any]  # file, row number, the row or the RowError in its place


@dataclass
class Table(Source):
    """Pairs, choices, ratings or rankings from JSONL, JSON, CSV, TSV or parquet, a folder of these, or a Hub dataset.

    The table says for each row who judged (`user_id`) and either which text was `chosen` and which `rejected`, or two
    responses (`response_a`, `response_b`) and the `choice`, or a `response` and its `rating` (or lists of both), or a
    `ranking`, which is a list of responses, best first. `map` names the columns that are called otherwise; a dotted path
    reaches into nested fields, and into every object of a list. Texts are strings or lists of messages.

    A judgment may also be a list (one entry a rater, by position, or beside a list of user ids), an object from rater
    to judgment, or several columns, one a rater.
    """

    name: ClassVar[str] = "table"
    summary: ClassVar[str] = (
        "your own CSV, JSONL, JSON or parquet file, a folder of them, or a Hub dataset: pairs, choices, ratings or rankings by user"
    )
    example: ClassVar[str] = "--path opinions.csv --map user_id=annotator prompt=question chosen=better rejected=worse"
    example_setup: ClassVar[str] = (
        "(echo annotator,question,better,worse; for u in $(seq 30); do for q in $(seq 12); do\n"
        '  echo "$u,Question $q?,Answer $((u % 3)),Other answer $((q % 4))"; done; done) > opinions.csv'
    )
    min_pairs_per_user: ClassVar[int | None] = None

    path: str = field(
        default="", metadata={"help": "file, folder of files of one format, or Hub dataset id (owner/name)"}
    )
    map: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "where our names are found: user_id, prompt, and chosen rejected | response_a response_b choice | response rating | ranking (a list, best first); also pair_id, margin, profile. Several columns separated by commas: for profile, or for a choice or rating with one column a rater. A dotted path reaches nested fields, in a list of objects those of each. Names that equal a column need no entry; pair_id= and the like leave such a column unused",
            "metavar": "NAME=COLUMN",
        },
    )
    items: str | None = field(
        default=None,
        metadata={
            "help": "what a target and its context must not share: `prompt`, `responses`, or a column with ids (default: prompt; responses where there is no prompt)"
        },
    )
    default_prompt: str | None = field(
        default=None,
        metadata={
            "help": f"the prompt of rows that have none (default for ratings and rankings without a prompt column: '{DEFAULT_PROMPT}')"
        },
    )
    choice_values: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "what the choice column holds, if not a/b, left/right, 0/1 (0 is a), 1/2 and the like: a=… b=… tie=…; null is an empty cell",
            "metavar": "SIDE=VALUE",
        },
    )
    rating_labels: list[str] | None = field(
        default=None, metadata={"help": "labels of the ratings, lowest first, such as bad,ok,good"}
    )
    pair_scope: Literal["within", "across"] = field(
        default="within", metadata={"help": "pair rated responses to the same prompt only, or across prompts too"}
    )
    min_gap: float = field(default=0.0, metadata={"help": "least difference of two ratings that make a pair"})
    max_pairs_per_user: int | None = field(
        default=None,
        metadata={
            "help": f"most pairs made of a user's ratings, among seen items and again among unseen ones, chosen by hash; 0 for all (default: all; {_CAP} across prompts or without prompts)"
        },
    )
    placebo: bool = field(
        default=False,
        metadata={"help": "permute judgments among the users who judged the same, so that users tell nothing"},
    )
    format: Literal["jsonl", "json", "csv", "tsv", "parquet"] | None = field(
        default=None, metadata={"help": "if the file's name does not tell"}
    )
    encoding: str = field(default="utf-8", metadata={"help": "of text files"})
    delimiter: str | None = field(default=None, metadata={"help": "between CSV cells, such as ';'"})
    hub_config: str | None = field(default=None, metadata={"help": "configuration of a Hub dataset"})
    hub_split: str = field(default="train", metadata={"help": "split of a Hub dataset"})
    hub_revision: str | None = field(default=None, metadata={"help": "commit or tag of a Hub dataset"})
    title: str | None = field(default=None, metadata={"help": "for the dataset card"})
    licence: str | None = field(
        default=None, metadata={"help": "of the data, for the dataset card, such as CC-BY-4.0"}
    )
    attribution: str | None = field(
        default=None, metadata={"help": "sentence that the licence asks for, for the dataset card"}
    )
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("`--path` is missing: name a file, a folder, or a Hub dataset (owner/name)")
        check_mapping(self.map)
        if self.min_gap < 0:
            raise ConfigError(f"`min_gap` is {self.min_gap}: a difference is not negative")
        if self.max_pairs_per_user is not None and self.max_pairs_per_user < 0:
            raise ConfigError(f"`max_pairs_per_user` is {self.max_pairs_per_user}: give a number, or 0 for all")
        if self.default_prompt is not None:
            try:
                check_text(self.default_prompt, "default_prompt")
            except RowError as error:
                raise ConfigError(f"`--default_prompt`: {error.found}") from None
        self.scale = RatingScale(self.rating_labels)
        self.reader = TableReader(
            self.path,
            format=self.format,
            encoding=self.encoding,
            delimiter=self.delimiter,
            hub_config=self.hub_config,
            hub_split=self.hub_split,
            hub_revision=self.hub_revision,
        )
        self.columns = Columns(self.map, self.items, self.default_prompt)
        self.row_reader: RowReader | None = None
        self._passes = 0
        self._ratings: Ratings | None = None

    @property
    def label(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[dict[str, Any] | Exception]:
        records = self._records()
        for record in records:
            if not isinstance(record[2], RowError):
                break
            yield record[2]
        else:
            return
        if self.columns.layout == "ratings":
            yield from self._from_ratings(chain([record], records))
        elif not self.placebo:
            yield from self._judged(chain([record], records))
        else:
            records.close()
            yield from placebo.placebo_pairs(self._again, self.seed, self.dropped)

    def users(self) -> Iterator[dict[str, Any]]:
        profiles = self.row_reader.profiles if self.row_reader else {}
        for user, profile in profiles.items():
            yield {"user_id": user, "profile": profile, "_file": self.label}

    def describe(self) -> dict[str, Any]:
        hidden = ("path", "seed", "title", "licence", "attribution")
        parameters = {key: value for key, value in asdict(self).items() if key not in hidden}
        notes = [f"Read as {self.columns.layout}."]
        if self.columns.layout == "ratings":
            notes.append("Pairs were made of ratings; equal ratings make none.")
        if self.columns.layout == "rankings":
            notes.append("Pairs were made of every two responses of a ranking.")
        if self._standalone:
            notes.append(f"The texts answer no prompt; all have the neutral one “{self._neutral}”.")
        if self.placebo:
            notes.append("**Placebo**: judgments are permuted among users; nothing about a user remains.")
        return {
            "source": self.name,
            **self.reader.version(),
            "parameters": {**parameters, "items": self._items},
            "title": self.title,
            "licence": self.licence,
            "attribution": self.attribution,
            "notes": " ".join(notes),
            "raters_by_position": sorted(self.row_reader.by_position) if self.row_reader else [],
            "choice_numbers": self.row_reader.number_meanings() if self.row_reader else {},
            "changed_profiles": len(self.row_reader.changed_profiles) if self.row_reader else 0,
            "stripped_ids": len(self.row_reader.stripped) if self.row_reader else 0,
            "close_ratings": self._ratings.close_share if self._ratings else 0.0,
        }

    def progress(self) -> float | None:
        share = self.reader.fraction()
        if share is None:
            return None
        if self.columns.layout == "ratings":  # reading, then making pairs
            return (share + (self._ratings.share_paired if self._ratings else 0.0)) / 2
        return min((max(self._passes - 1, 0) + share) / (2 if self.placebo else 1), 1.0)

    @property
    def _standalone(self) -> bool:
        """Whether the texts answer no prompt of their own."""
        missing = "prompt" not in self.columns.found
        return missing and (self.columns.layout in STANDALONE or self.default_prompt is not None)

    @property
    def _neutral(self) -> str:
        return self.default_prompt or DEFAULT_PROMPT

    @property
    def _items(self) -> str:
        return self.items or ("responses" if self._standalone else "prompt")

    def _records(self) -> Iterator[Record]:
        """Records of the table; the first good row settles which column is what."""
        table = self.reader.format in ("csv", "tsv", "parquet") and not self.reader.hub
        for file, number, row in self.reader:
            self.tick()
            if not self.columns.layout and not isinstance(row, RowError):
                try:
                    self.columns.resolve(row)
                except RowError as error:
                    # A missing column of a table is missing in every row; an object may be the only one without it.
                    if table:
                        remedy = error.remedy.partition(", or drop")[0]
                        raise DataError(error.found, remedy, file=file, row=1, column=error.column) from None
                    row = _placed(error, file, number, row)
                else:
                    self._settle()
            yield file, number, row

    def _settle(self) -> None:
        """Checks the settings against the layout, and makes the reader of its rows."""
        layout = self.columns.layout
        for name, fits in (
            ("pair_scope", layout == "ratings" or self.pair_scope == "within"),
            ("min_gap", layout == "ratings" or not self.min_gap),
            ("max_pairs_per_user", layout == "ratings" or self.max_pairs_per_user is None),
            ("rating_labels", layout == "ratings" or not self.rating_labels),
            ("choice_values", layout == "choices" or not self.choice_values),
        ):
            if not fits:
                wanted = "choices" if name == "choice_values" else "ratings"
                raise ConfigError(f"`--{name}` is for {wanted}, but this table holds {layout}: leave it out")
        if self._standalone and self.items == "prompt":
            raise ConfigError("`--items prompt` needs prompts: here all rows have the same one. Use --items responses")
        if layout == "rankings" and self._standalone:
            # A pair of a ranking has its prompt at once; one of ratings gets it when it is made.
            self.columns.default_prompt = self._neutral
        names = self.columns.found
        choices = (
            Choices(self.choice_values, (names["response_a"], names["response_b"])) if layout == "choices" else None
        )
        self.row_reader = RowReader(self.columns, self._items, self._standalone, choices, self.scale, self.dropped)
        # A dotted path may be a column's own name or lie inside its first part.
        paths = [*names.values(), self._items, *names.get("profile", "").split(","), *self.columns.raters]
        self.reader.columns = {name.strip() for path in paths for name in (path, path.partition(".")[0])}

    def _judged(self, records: Iterator[Record]) -> Iterator[dict[str, Any] | RowError]:
        """Rows of pairs and choices."""
        if self.columns.layout == "choices":
            records = self._look_ahead(records)
        for file, number, row in records:
            if isinstance(row, RowError):
                yield row
                continue
            try:
                pairs = self.row_reader.pairs(row)
            except RowError as error:
                yield _placed(error, file, number, row)
                continue
            except DataError as error:
                column = self.columns.found.get("choice")
                raise DataError(error.found, error.remedy, file=file, row=number, column=column) from None
            for pair in pairs:
                yield {**pair, "_file": file, "_row": number, "_raw": row}

    def _look_ahead(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records, after a look at as many as tell what the numbers in the choice column mean."""
        head: list[Record] = []
        choices = self.row_reader.choices
        for record in records:
            head.append(record)
            if isinstance(record[2], RowError):
                continue
            try:
                value = self.columns.need(record[2], "choice")
            except RowError:  # reported when the row is read
                continue
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            choices.settle(values)
            if len(head) == _PEEK or all(choices.decides(value) for value in values):
                break
        return chain(head, records)

    def _again(self) -> Iterator[Any]:
        """Rows from the start, checked, for the placebo's two passes."""
        self.dropped.clear()
        self.row_reader.forget()
        self._passes += 1
        for row in self._judged(self._records()):
            if isinstance(row, RowError):
                yield row
                continue
            try:
                checked = validate_pair(row, file=row["_file"], row_number=row["_row"])
            except RowError as error:
                yield _placed(error, row["_file"], row["_row"], row["_raw"], row["_columns"])
            else:
                yield {**row, **checked}

    def _from_ratings(self, records: Iterator[Record]) -> Iterator[dict[str, Any] | RowError]:
        from .table_ratings import Ratings

        self._ratings = ratings = Ratings(self._items, self.seed)
        for file, number, row in records:
            if isinstance(row, RowError):
                yield row
                continue
            try:
                for user, prompt, response, rating, items in self.row_reader.ratings(row):
                    ratings.add(user, prompt, response, rating, file=file, row=number, items=items)
            except RowError as error:
                yield _placed(error, file, number, row)
        cap = self.max_pairs_per_user
        if cap is None and (self.pair_scope == "across" or self._standalone):
            cap = _CAP
        yield from ratings.pairs(
            across=self.pair_scope == "across",
            min_gap=self.min_gap,
            cap=cap or None,
            default_prompt=self._neutral,
            split=self.split,
            permute=self.placebo,
            dropped=self.dropped,
        )


def _placed(error: RowError, file: str, number: int, raw: Any, names: dict[str, str] | None = None) -> RowError:
    placed = error.at(file, number, names=names)
    placed.raw = raw
    return placed
