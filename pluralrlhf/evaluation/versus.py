"""Every method against one of them, pair by pair and at every k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .drawing import slug, write_csv
from .results import bootstrap_of, difference
from .split_scores import ScoreReader
from .storage import Source
from .tables import Section, Table
from .verdicts import SPLIT_TITLES, interval


def versus(section: Section, sources: Sequence[Source], reference: str, n_replicates: int = 1000) -> list[dict]:
    """Paired differences in accuracy of every method to `reference` on the headline split.

    Args:
        section: The results of one dataset.
        sources: Where its rows lie.
        reference: The method that the others are compared with.
        n_replicates: Bootstrap replicates, over users and items, the seeds of a method among them.

    Returns:
        One `{"method", "n_context", "value", "ci95", "n_users", "n_pairs"}` for each method and k that both have.

    Raises:
        ConfigError: There is no such method.
    """
    ceilings = {result.get("ceiling") for result in section.results}
    methods = [result["method"] for result in section.results if result["method"] not in ceilings]
    if reference not in methods:
        raise ConfigError(f"`versus` is {reference!r}, but {section.dataset} has {', '.join(methods)}.")
    seed, rows = section.results[0].get("evaluation_seed") or 0, []
    reader, bootstrap = ScoreReader(sources, section.split), None
    for method in methods:
        if method == reference:
            continue
        scores = reader.load([method, reference])
        if not {method, reference} <= set(scores.seeds):
            continue
        sizes = [k for k in scores.sizes(method) if scores.own(reference, k) is not None]
        bootstrap = bootstrap or bootstrap_of(scores, n_replicates, seed)
        estimate = bootstrap.estimate([difference(scores, method, method, reference, k) for k in sizes])
        rows += [{"method": method, "n_context": k, **estimate.as_dict(place)} for place, k in enumerate(sizes)]
    return rows


def versus_table(section: Section, rows: Sequence[Mapping[str, Any]], reference: str) -> Table:
    """The differences as a table, with a sentence that says which methods lie wholly above the reference, and where."""
    sizes = sorted({row["n_context"] for row in rows})
    found = {(row["method"], row["n_context"]): row for row in rows}
    above = [f"{row['method']} at k = {row['n_context']}" for row in rows if row.get("ci95") and row["ci95"][0] > 0]
    split = SPLIT_TITLES.get(section.split, section.split)
    return Table(
        f"{section.dataset}: accuracy minus that of {reference}, {split}",
        ["method", *(f"k = {k}" for k in sizes)],
        [
            [method, *(interval(found.get((method, k)), sign=True) for k in sizes)]
            for method in dict.fromkeys(row["method"] for row in rows)
        ],
        [
            "Points, paired by user and pair, with 95 % intervals.",
            f"Wholly above {reference}: {', '.join(above) or 'none'}.",
        ],
    )


def write_versus(
    section: Section, sources: Sequence[Source], reference: str, folder: str | Path, n_replicates: int = 1000
) -> Table:
    """The table of differences; its figures go to `versus_<dataset>.csv` in the folder."""
    rows = versus(section, sources, reference, n_replicates)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        [
            section.dataset,
            section.split,
            row["method"],
            reference,
            row["n_context"],
            row["value"],
            *(row["ci95"] or (None, None)),
        ]
        for row in rows
    ]
    header = ["dataset", "split", "method", "versus", "n_context", "difference", "low", "high"]
    write_csv(folder / f"versus_{slug(section.dataset)}.csv", header, cells)
    return versus_table(section, rows, reference)
