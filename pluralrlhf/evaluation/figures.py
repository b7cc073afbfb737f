"""Figures of one dataset's results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .drawing import COLOURS, GREY, Figure, add_legend, canvas, colour_of, save, slug, write_csv
from .split_scores import SplitScores, load_scores
from .storage import Source
from .tables import Section, label, metric
from .user_figures import user_map, user_spread
from .verdicts import SPLIT_TITLES

_LEGEND_INSIDE = 6  # with more entries it would cover the curves


def draw_all(section: Section, sources: Sequence[Source], folder: str | Path) -> list[Figure]:
    """Draws what there is to draw of one dataset's headline split: curves, spread, calibration, frontier, map of users."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = [accuracy_curves(section, folder)]
    methods = [result["method"] for result in section.results]
    scores = load_scores(sources, section.split, methods)
    figures.append(user_spread(section, scores, folder))
    figures.append(reliability(section, scores, folder))
    figures.append(wrong_labels(section, folder))
    figures.append(user_map(section, sources, scores, folder))
    return [figure for figure in figures if figure is not None]


def accuracy_curves(section: Section, folder: Path) -> Figure | None:
    """Accuracy against the number of context pairs, with bands of 95 % where there is room for them."""
    split, sizes = section.split, section.sizes(section.split)
    rows = []
    for result in section.results:
        for k in sizes:
            found = metric(result, split, k, "accuracy")
            if found and found["value"] is not None:
                low, high = found["ci95"] or (None, None)
                rows.append([section.dataset, split, result["method"], k, found["value"], low, high])
    if not rows:
        return None
    path = write_csv(
        folder / f"accuracy_{slug(section.dataset)}.csv",
        ["dataset", "split", "method", "n_context", "accuracy", "low", "high"],
        rows,
    )
    crowded = len(section.results) > _LEGEND_INSIDE
    known = [row for row in rows if row[5] is not None]
    with canvas(5.6, 3.7) as (figure, axes):
        for number, result in enumerate(section.results):
            these = [row for row in rows if row[2] == result["method"]]
            if not these:
                continue
            x = [sizes.index(row[3]) for row in these]
            y = [100 * row[4] for row in these]
            reference = result["method"] == result.get("ceiling")
            colour = "#222222" if reference else colour_of(section.results, result["method"])
            # There are fewer colours than methods at times.
            marker = "os^D"[number // len(COLOURS) % 4]
            style = {"linestyle": "--", "linewidth": 1.4} if reference else {"marker": marker, "linewidth": 2}
            if not result["uses_context"]:
                style = {"linestyle": "-.", "linewidth": 1.6}
            axes.plot(x, y, color=colour, label=label(result), zorder=3 + number, **style)
            # The bands of many methods are one grey area.
            if all(row in known for row in these) and not reference and not crowded:
                axes.fill_between(
                    x,
                    [100 * row[5] for row in these],
                    [100 * row[6] for row in these],
                    color=colour,
                    alpha=0.13,
                    linewidth=0,
                )
        axes.set_xticks(range(len(sizes)), [str(k) for k in sizes])
        axes.set_xlabel("pairs of the user shown (k)")
        axes.set_ylabel("accuracy, %")
        axes.set_title(SPLIT_TITLES.get(split, split))
        if crowded:
            figure.set_size_inches(7.6, 3.9)
        add_legend(figure, axes, "best", crowded)
        png = save(figure, path)
    intervals = "Bands are 95 % intervals over users and items."
    if crowded and known:
        half = np.median([100 * (row[6] - row[5]) / 2 for row in known])
        intervals = f"95 % intervals over users and items are in the table: about {half:.1f} points to either side."
    return Figure(
        "Accuracy against the number of the user's pairs shown",
        f"{intervals} Only a rise from k = 0 is personalisation.",
        png,
        path,
    )


def reliability(section: Section, scores: SplitScores, folder: Path, n_bins: int = 10) -> Figure | None:
    """How often a method is right when it says so, for bins of its confidence."""
    rows = []
    for result in section.results:
        method = result["method"]
        sizes = scores.sizes(method)
        if not sizes or method == result.get("ceiling"):
            continue
        probability = scores.probability[method, sizes[-1]].astype(np.float64)
        confidence, hit = np.maximum(probability, 1 - probability), (np.sign(probability - 0.5) + 1) / 2
        bins = np.minimum(((confidence - 0.5) * 2 * n_bins).astype(np.float64), n_bins - 1)
        for number in range(n_bins):
            these = np.isfinite(bins) & (np.floor(bins) == number)
            if these.any():
                rows.append(
                    [
                        section.dataset,
                        section.split,
                        method,
                        sizes[-1],
                        int(these.sum()),
                        float(confidence[these].mean()),
                        float(hit[these].mean()),
                    ]
                )
    if not rows:
        return None
    path = write_csv(
        folder / f"reliability_{slug(section.dataset)}.csv",
        ["dataset", "split", "method", "n_context", "n", "confidence", "accuracy"],
        rows,
    )
    with canvas(5.6, 3.7) as (figure, axes):
        axes.plot([50, 100], [50, 100], color=GREY, linewidth=1, linestyle=":")
        for method in dict.fromkeys(row[2] for row in rows):
            these = [row for row in rows if row[2] == method]
            size = np.array([row[4] for row in these], dtype=float)
            x, y = ([100 * row[column] for row in these] for column in (5, 6))
            axes.plot(x, y, color=colour_of(section.results, method), linewidth=1.6, label=method)
            axes.scatter(x, y, s=12 + 90 * size / size.sum(), color=colour_of(section.results, method), zorder=3)
        axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(48.5, 101.5))
        axes.set_title("Says 80 %: right in 80 %?")
        axes.legend(loc="upper left")
        png = save(figure, path)
    return Figure(
        "Calibration",
        "On the dotted line confidence is deserved; below it the method is too sure. Larger points hold more pairs.",
        png,
        path,
    )


def wrong_labels(section: Section, folder: Path) -> Figure | None:
    """What a user's labels gain over the baseline, against what coin flips in their place lose.

    Nothing is drawn without a method that reads contexts, a baseline that reads none, and the control.
    """
    rows = []
    for result in section.results:
        reference = next((r for r in section.results if r["method"] == result.get("baseline")), None)
        sizes = [k for k in section.sizes(section.split) if k]
        if not result["uses_context"] or reference is None or not sizes or result["method"] == result.get("ceiling"):
            continue
        asked = ((result, "accuracy"), (result, "coin_flip_accuracy"), (reference, "accuracy"))
        own, flips, base = ((metric(of, section.split, sizes[-1], name) or {}).get("value") for of, name in asked)
        if None not in (own, flips, base):
            rows.append([section.dataset, section.split, result["method"], sizes[-1], own, flips, base])
    if not rows:
        return None
    path = write_csv(
        folder / f"wrong_labels_{slug(section.dataset)}.csv",
        ["dataset", "split", "method", "n_context", "accuracy", "coin_flip_accuracy", "baseline_accuracy"],
        rows,
    )
    with canvas(5.6, 3.9) as (figure, axes):
        axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
        axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
        for _, _, method, _, own, flips, base in rows:
            at = 100 * (flips - base), 100 * (own - base)
            axes.scatter(*at, s=52, color=colour_of(section.results, method), label=method, zorder=3)
        axes.set(xlabel="coin-flip labels: points over the baseline", ylabel="own labels: points over the baseline")
        axes.margins(0.12)
        axes.locator_params(nbins=6)
        axes.set_title(f"What labels give, and what wrong ones cost (k = {rows[0][3]})")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        png = save(figure, path)
    return Figure(
        "Gain against the cost of wrong labels",
        "Up: what the user's labels add to the baseline, which reads none. To the right: how little is lost when coin "
        "flips stand in their place. The best method is at the top right.",
        png,
        path,
    )
