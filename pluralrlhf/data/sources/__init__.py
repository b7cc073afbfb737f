"""The data sources, by name. A source is one file with a dataclass of its parameters.

To add one: write `sources/<name>.py` with a dataclass that subclasses `Source`, and add a line to `SOURCES`. Its fields
become the flags of `pluralrlhf data build <name>` (help text from `field(metadata={"help": ...})`).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

from ...errors import ConfigError
from ..splits import SplitConfig

# name -> "module:class", imported only when asked for.
SOURCES: dict[str, str] = {
    "table": "pluralrlhf.data.sources.table:Table",
    "polis": "pluralrlhf.data.sources.polis:Polis",
    "polarized_issues": "pluralrlhf.data.sources.polarized_issues:PolarizedIssues",
    "ukp_convincing": "pluralrlhf.data.sources.ukp_convincing:UKPConvincing",
    "prism": "pluralrlhf.data.sources.prism:Prism",
    "mt_bench_human": "pluralrlhf.data.sources.mt_bench_human:MTBenchHuman",
    "tldr": "pluralrlhf.data.sources.tldr:TLDR",
    "hh_rlhf": "pluralrlhf.data.sources.hh_rlhf:HHRLHF",
    "ultrafeedback_p": "pluralrlhf.data.sources.ultrafeedback_p:UltraFeedbackP",
    "personalllm": "pluralrlhf.data.sources.personalllm:PersonalLLM",
    "pets": "pluralrlhf.data.populations.pets:Pets",
    "styles": "pluralrlhf.data.populations.styles:Styles",
}


_WRITERS_OWN = ("split", "dropped", "tick")  # set on a source by the writer


class Source:
    """What the writer asks of a source. Subclasses are dataclasses; a `__post_init__` of theirs calls this one's.

    A `path` of theirs may begin with `~`. They have no field `split`, `dropped` or `tick`, which the writer sets
    (TypeError).

    Attributes:
        name: The name in `SOURCES`.
        summary: One line for `data list`.
        example: Flags that make `data build <name>` run, shown by `-h` (without the command and `--out`).
        example_setup: Shell lines that make what the example reads, shown before it.
        min_pairs_per_user: What happens to users with fewer pairs if the caller does not say: a number drops and
            counts them, None makes a user with a single pair (who has no history) an error.
        dropped: reason -> how many rows `rows()` left out, filled while it runs.
        split: How users and items will be divided, set by the writer before `rows()`. A source that *chooses* which
            pairs to make reads it, so as not to make pairs of a seen and an unseen item, which no split can hold.
            None where a source is read on its own.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str] = ""
    example_setup: ClassVar[str] = ""
    min_pairs_per_user: ClassVar[int | None] = 2
    dropped: Counter[str]
    split: ClassVar[SplitConfig | None] = None

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name in _WRITERS_OWN:
            if name in inspect.get_annotations(cls):
                raise TypeError(f"{cls.__name__} has a field `{name}`, which the writer sets: call it otherwise")

    def __post_init__(self) -> None:
        self.dropped = Counter()
        if path := getattr(self, "path", None):
            self.path = os.path.expanduser(path)

    @property
    def label(self) -> str:
        """What errors name where a row has no file."""
        return self.name

    def rows(self) -> Iterator[dict[str, Any] | Exception]:
        """Pair rows (see `data/schema.py`) in a fixed order, streaming; called once a build, before the rest.

        A row may carry `_file` and `_row` (1-based), which errors name, `_columns` (our column -> the file's name for
        it, for errors), `_raw` (the row as it was read), `_test_item` (bool), by which a population decides itself
        whether the pair's items are unseen ones, and `_split_key` (str), hashed in place of the user's id, so that
        users with one key fall on the same side and have the same pairs held out.
        For a bad row *yield* a `schema.RowError` in its place: the writer raises it, or counts it and goes on under
        `--skip_invalid`. For a file that cannot be read, raise a `DataError`.
        """
        raise NotImplementedError

    def users(self) -> Iterator[dict[str, Any] | Exception]:
        """Rows of the `users` config (`user_id`, `profile`, `attributes`, `conversations`), after `rows()` has ended.

        For a bad row *yield* a `schema.RowError`, as in `rows()`. Users without a pair are left out of the dataset; users whom this does not name get a row of nulls.
        """
        return iter(())

    def truth(self) -> Iterator[dict[str, Any]] | None:
        """Populations only: rows with `pair_id` and what is true of that pair, for `truth/pairs.parquet`.

        Pairs that were dropped are left out by the writer.
        """
        return None

    def truth_info(self) -> dict[str, Any]:
        """Populations only: what is true of the whole (weights by user, noise), for `truth/truth.json`."""
        return {}

    def describe(self) -> dict[str, Any]:
        """For `build.json` and the dataset card, after `rows()` has ended.

        Keys: `source`, `version` or `sha256` (file name -> hash), `parameters` (JSON values, no absolute paths),
        `licence`, `attribution`, and optionally `notes` (text for the card) and `title`, `missing_files` (names) of a
        copy, `raters_by_position` (lengths of the lists whose raters have no other name) `choice_numbers` (which
        response each number was taken for) and `changed_profiles` (how many users have several, of which the first holds).
        """
        raise NotImplementedError

    def tick(self) -> None:
        """A source that reads long before it yields a row calls this now and then, so that progress is shown.

        The writer puts its own function here.
        """

    def progress(self) -> float | None:
        """The fraction of the input that `rows()` has read so far, or None where that is unknown."""
        return None


def source_class(name: str) -> type[Source]:
    """The class of a source; an unknown name is an error that suggests close ones."""
    if name not in SOURCES:
        close = difflib.get_close_matches(name.lower().replace("-", "_"), SOURCES, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else "Choose one of"
        raise ConfigError(
            f"unknown source {name[:40]!r}. {hint} {'Sources: ' if close else ''}{', '.join(SOURCES)}"
            " (`pluralrlhf data list` describes them)"
        )
    module, _, attribute = SOURCES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
