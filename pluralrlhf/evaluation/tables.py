"""Tables of results, as rows of text: printed by rich, written as Markdown, laid out in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.schema import FEW_PAIRS
from .verdicts import EXACT_CEILING, SPLIT_TITLES, headline_split, interval, points, reference_title

Results = Sequence[Mapping[str, Any]]

_CONTROL_COLUMNS = {
    "wrong_user_accuracy": "another user's",
    "other_type_accuracy": "another type's",
    "relabelled_accuracy": "others' labels",
    "coin_flip_accuracy": "coin-flip labels",
    "flipped_accuracy": "turned labels",
    "random_state_accuracy": "random user",
    "empty_context_accuracy": "empty context",
}
_QUALITY_COLUMNS = {
    "log_loss": "log loss",
    "brier": "Brier",
    "ece": "calibration error",
    "agreed_accuracy": "agreed pairs",
    "atypical_accuracy": "atypical users",
}
# With fewer items than this, or fewer pairs than `FEW_PAIRS`, a headline is shown with its sibling on items that training saw.
_FEW_ITEMS = 10


@dataclass
class Table:
    """A table as text.

    Args:
        title: What it shows.
        columns: Headings; the first column names the row.
        rows: Cells.
        notes: Sentences below it.
        marked: Numbers of rows that are references (placebo, ceiling), not methods.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    marked: set[int] = field(default_factory=set)


@dataclass
class Section:
    """All results on one dataset: those of its methods, and of its placebo."""

    dataset: str
    results: list[Mapping[str, Any]]
    placebo: list[Mapping[str, Any]]

    @property
    def split(self) -> str:
        """The split to look at first."""
        return headline_split(dict.fromkeys(split for result in self.results for split in result["splits"])) or ""

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(split for result in self.results for split in result["splits"]))

    def sizes(self, split: str) -> list[int]:
        found = {int(k) for result in self.results for k in result["splits"].get(split, {}).get("n_context", {})}
        return sorted(found)


def sections(results: Results) -> list[Section]:
    """Results by dataset, in order; those of a placebo go with the dataset it was made from."""
    found: dict[str, Section] = {}
    for result in results:
        if not result.get("placebo_of"):
            found.setdefault(result["dataset"], Section(result["dataset"], [], [])).results.append(result)
    for result in results:
        if result.get("placebo_of") in found:
            found[result["placebo_of"]].placebo.append(result)
    return list(found.values())


def metric(result: Mapping[str, Any], split: str, k: int, name: str) -> Mapping[str, Any] | None:
    """A metric or control of a result, None where there is none."""
    found = result["splits"].get(split, {}).get("n_context", {}).get(str(k), {}).get(name)
    return found or result["controls"].get(split, {}).get(str(k), {}).get(name)


def label(result: Mapping[str, Any]) -> str:
    """Name of a result's row."""
    if result.get("placebo_of"):
        return f"placebo ({result['method']})"
    if result["method"] == result.get("ceiling"):
        return reference_title(result["method"])
    return result["method"]


def headline_table(section: Section, split: str | None = None) -> Table:
    """Accuracy at every number of context pairs, and at the largest the gains with their intervals."""
    split = split or section.split
    sizes = section.sizes(split)
    last = sizes[-1] if sizes else 0
    shown = [
        (result, number >= len(section.results) or result["method"] == result.get("ceiling"))
        for number, result in enumerate([*section.results, *section.placebo])
        if split in result["splits"]
    ]
    share = any(metric(result, split, last, "share_of_attainable") for result, _ in shown)
    versus = next((result["baseline"] for result in section.results if result.get("baseline")), None)
    columns = ["method", *(f"k = {k}" for k in sizes), "over own k = 0"]
    columns += [f"over {versus}"] if versus else []
    exact = any(result.get("ceiling") == EXACT_CEILING for result in section.results)
    columns += ["% of attainable" if exact else "% of reference"] if share else []
    rows = []
    for result, _ in shown:
        row = [label(result), *(interval(metric(result, split, k, "accuracy")) for k in sizes)]
        row.append(interval(metric(result, split, last, "gain"), sign=True) if result["uses_context"] else "–")
        if versus:
            row.append(interval(metric(result, split, last, "gain_over_btl"), sign=True))
        if share:
            found = metric(result, split, last, "share_of_attainable")
            row.append(interval(found))
        rows.append(row)
    counts = next((metric(result, split, last, "accuracy") for result, _ in shown), None)
    seeds = sorted({len(result["seeds"]) for result in section.results})
    notes = []
    if counts:
        seeds_text = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        items = f"{counted(counts['n_items'], 'item')}, " if "n_items" in counts else ""
        notes.append(
            f"{counted(counts['n_users'], 'user')}, {items}{counted(counts['n_pairs'], 'pair')}, {seeds_text}; % with 95 % "
            f"intervals; gains at k = {last}."
        )
        if counts.get("n_items", _FEW_ITEMS) < _FEW_ITEMS:
            notes.append("So few items say little about others: the intervals are of these.")
    held = max(
        (found["value"] for result, _ in shown if (found := metric(result, split, last, "mean_context_pairs"))),
        default=last,
    )
    if held < 0.9 * last:
        notes.append(f"At k = {last} a context holds {held:.1f} pairs on average: users have no more.")
    title = f"{section.dataset}: accuracy, {SPLIT_TITLES.get(split, split)}"
    return Table(title, columns, rows, notes, {number for number, (_, marked) in enumerate(shown) if marked})


def detectable(section: Section, split: str | None = None) -> str | None:
    """One sentence: the smallest effect that this data could have shown."""
    split = split or section.split
    sizes = section.sizes(split)
    parts = []
    for result in section.results:
        if not result["uses_context"] or result["method"] == result.get("ceiling") or not sizes:
            continue
        said = []
        for name, text in (("gain", "over its own k = 0"), ("gain_over_btl", f"over {result.get('baseline')}")):
            found = metric(result, split, sizes[-1], name)
            if found and found.get("smallest_detectable") is not None:
                accuracy = metric(result, split, sizes[-1], "accuracy")
                possible = 1 - (accuracy["value"] - found["value"])
                least = found["smallest_detectable"]
                said.append(
                    f"{points(least)} points {text}" if least < possible else f"no gain, however large, {text}"
                )
        if said:
            parts.append(f"{result['method']} {' or '.join(said)}")
    if not parts:
        return None
    return f"Smallest gain that this data would have shown four times in five (k = {sizes[-1]}): {'; '.join(parts)}."


def controls_table(section: Section, split: str | None = None) -> Table | None:
    """Accuracy under contexts that should not help, at the largest number of context pairs."""
    split = split or section.split
    k = section.sizes(split)[-1]
    shown = [result for result in section.results if result["controls"].get(split, {}).get(str(k))]
    names = [name for name in _CONTROL_COLUMNS if any(metric(result, split, k, name) for result in shown)]
    if not shown:
        return None
    columns = ["method", "own context", *(_CONTROL_COLUMNS[name] for name in names)]
    columns += ["own − another user's", "flip rate", "order"]
    rows = []
    for result in shown:
        row = [label(result), *(interval(metric(result, split, k, name)) for name in ("accuracy", *names))]
        row.append(interval(metric(result, split, k, "gain_over_wrong_user"), sign=True))
        flip = metric(result, split, k, "flip_rate")
        row.append(points(flip["value"]) if flip and flip["value"] is not None else "–")
        row.append(small(metric(result, split, k, "permutation_max_diff")))
        rows.append(row)
    coverage = [found["value"] for result in shown if (found := metric(result, split, k, "relabelled_coverage"))]
    notes = [
        "Accuracy with the context replaced. A method that uses its user falls; one that ignores the user does not."
    ]
    notes.append(
        "Flip rate: % of choices that change when all labels are turned; below 5 its labels are not used. "
        "Order: largest change of a margin when the context is put in another order."
    )
    if "relabelled_accuracy" in names and coverage:
        notes.append(f"Others' labels exist for {points(coverage[0])} % of the context pairs.")
    notes += _of_fewer(shown[0], split, k, names)
    return Table(f"{section.dataset}: controls at k = {k}, {SPLIT_TITLES.get(split, split)}", columns, rows, notes)


def _of_fewer(result: dict[str, Any], split: str, k: int, names: list[str]) -> list[str]:
    """Which columns of the controls are of fewer targets than the own context's, since not every target has such a context."""

    def size(found: dict[str, Any]) -> tuple[int, int]:
        return found["n_users"], found["n_pairs"]

    own, fewer = metric(result, split, k, "accuracy"), {}
    for name in names:
        if (found := metric(result, split, k, name)) and size(found) != size(own):
            fewer.setdefault(size(found), []).append(_CONTROL_COLUMNS[name])
    said = [
        f"{', '.join(columns)}: of the {counted(pairs, 'pair')} of {counted(users, 'user')} for which there is such a context"
        for (users, pairs), columns in fewer.items()
    ]
    whole = f"the other columns are of {counted(own['n_pairs'], 'pair')} of {counted(own['n_users'], 'user')}"
    return [f"{'; '.join(said)}; {whole}. A difference is over the pairs that both have."] if said else []


def quality_table(section: Section, split: str | None = None) -> Table:
    """Calibration, agreed pairs, atypical users, and what stands behind k, at the largest number of context pairs."""
    split = split or section.split
    k = section.sizes(split)[-1]
    shown = [result for result in section.results if split in result["splits"]]
    names = [name for name in _QUALITY_COLUMNS if any(metric(result, split, k, name) for result in shown)]
    columns = ["method", *(_QUALITY_COLUMNS[name] for name in names), "context pairs", "distinct items"]
    rows = []
    for result in shown:
        row = [label(result)]
        for name in names:
            found = metric(result, split, k, name)
            row.append(interval(found) if name.endswith("accuracy") else plain(found))
        row += [small(metric(result, split, k, name)) for name in ("mean_context_pairs", "mean_context_items")]
        rows.append(row)
    return Table(f"{section.dataset}: calibration and groups at k = {k}", columns, rows)


def folds_table(section: Section, split: str | None = None) -> Table | None:
    """Gain over the baseline, or over the own k = 0, in every fold."""
    split = split or section.split
    k = str(section.sizes(split)[-1])
    shown = [result for result in section.results if any(split in found for found in result["folds"].values())]
    if not shown:
        return None
    folds = sorted({fold for result in shown for fold in result["folds"]}, key=int)
    name = "gain_over_btl" if any(metric(result, split, int(k), "gain_over_btl") for result in shown) else "gain"
    rows = []
    for result in shown:
        cells = [
            result["folds"].get(fold, {}).get(split, {}).get("n_context", {}).get(k, {}).get(name) for fold in folds
        ]
        if any(cells):
            rows.append(
                [
                    label(result),
                    *(interval(cell, True) for cell in cells),
                    interval(metric(result, split, int(k), name), True),
                ]
            )
    against = f"over {shown[0]['baseline']}" if name == "gain_over_btl" else "over the own k = 0"
    columns = ["method", *(f"fold {fold}" for fold in folds), "all folds"]
    return Table(f"{section.dataset}: gain {against} at k = {k}, fold by fold", columns, rows) if rows else None


def verdicts(section: Section, split: str | None = None) -> list[tuple[str, str, str]]:
    """(method, kind, text) of every method on a split."""
    split = split or section.split
    return [
        (result["method"], result["verdicts"][split]["kind"], result["verdicts"][split]["text"])
        for result in section.results
        if split in result["verdicts"] and result["method"] != result.get("ceiling")
    ]


def headlines(section: Section) -> list[str]:
    """The split to look at first and, where it has few pairs or items, those of unseen users with more of what it lacks."""

    def size(split: str) -> tuple[float, float]:
        """Pairs and items in units of what is enough."""
        found = [metric(result, split, k, "accuracy") for result in section.results for k in section.sizes(split)]
        counts = next((counts for counts in found if counts), {"n_pairs": 0})
        return counts["n_pairs"] / FEW_PAIRS, counts.get("n_items", _FEW_ITEMS) / _FEW_ITEMS

    mine = min(size(section.split))
    unseen = [split for split in section.splits if "unseen_users" in split and split != section.split]
    return [section.split, *(split for split in unseen if mine < 1 and min(size(split)) > mine)]


def counted(number: int, noun: str) -> str:
    """`1 pair`, `2,000 pairs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def plain(found: Mapping[str, Any] | None) -> str:
    """A number that is no percentage, with its interval."""
    if not found or found["value"] is None:
        return "–"
    text = f"{found['value']:.3f}"
    return f"{text} [{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]" if found.get("ci95") else text


def small(found: Mapping[str, Any] | None) -> str:
    if not found or found["value"] is None:
        return "–"
    value = found["value"]
    return "0" if value == 0 else f"{value:.1f}" if value >= 0.1 else f"{value:.0e}"
