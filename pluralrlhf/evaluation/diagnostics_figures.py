"""Figures of an evaluation's diagnostics, each a PNG with its CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import COLOURS, GREY, Figure, add_legend, canvas, save, write_csv

_LEGEND_INSIDE = 4  # with more entries it would cover the points


def draw(content: Mapping[str, Any], folder: Path) -> list[Figure]:
    """What there is to draw: vote shares, groups, wrong labels, best of n."""
    figures = [_shares(content, folder), _groups(content, folder)]
    if "label_noise" in content:
        figures.append(_noise(content["label_noise"], folder, content["baseline"]))
    if "best_of_n" in content:
        figures.append(_best_of_n(content["best_of_n"], folder))
    return [figure for figure in figures if figure is not None]


def _shares(content: Mapping[str, Any], folder: Path, n_bins: int = 8) -> Figure | None:
    rows = [
        [method, kind, *point]
        for method, found in content["methods"].items()
        for kind in ("pairs", "responses")
        for point in found["shares"][kind].get("points", ())
    ]
    kind = "pairs" if any(row[1] == "pairs" for row in rows) else "responses"
    shown = [row for row in rows if row[1] == kind]
    if len(shown) < 3:
        return None
    crowded = len(content["methods"]) > _LEGEND_INSIDE
    path = write_csv(folder / "vote_shares.csv", ["method", "of", "n_users", "real", "predicted"], rows)
    with canvas(7.2 if crowded else 5.6, 3.7) as (figure, axes):
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=":")
        for number, method in enumerate(content["methods"]):
            real, predicted = np.array([row[3:5] for row in shown if row[0] == method], dtype=float).T
            colour = COLOURS[number % len(COLOURS)]
            axes.scatter(100 * real, 100 * predicted, s=5, alpha=0.15, color=colour, linewidth=0)
            order = np.argsort(real, kind="stable")
            parts = [part for part in np.array_split(order, n_bins) if len(part)]
            axes.plot(
                [100 * real[part].mean() for part in parts],
                [100 * predicted[part].mean() for part in parts],
                color=colour,
                linewidth=2,
                linestyle=("-", "--", ":")[number // len(COLOURS) % 3],  # where colours come again
                label=method,
            )
        of = "votes for one of a pair" if kind == "pairs" else "comparisons that a response won"
        axes.set(xlabel=f"{of}, %", ylabel="predicted, %")
        add_legend(figure, axes, "upper left", crowded)
        png = save(figure, path)
    return Figure(
        "Vote shares",
        "Each point is a pair of responses (or a response), by the share of users who preferred it and the share predicted "
        "for the same users; lines are means of eighths. A flat line gives everybody the same odds.",
        png,
        path,
    )


def _groups(content: Mapping[str, Any], folder: Path) -> Figure | None:
    rows = [
        [method, name, kind, group["accuracy"]["value"], *(group["accuracy"]["ci95"] or (None, None)),
         group["accuracy"]["n_users"], (group.get("gain") or {}).get("value"), found["gap"], found["gap_by_chance"]]
        for method, every in content["methods"].items()
        for name, found in every["gaps"].items()
        for kind, group in found["groups"].items()
    ]  # fmt: skip
    if not rows:
        return None
    header = ["method", "attribute", "group", "accuracy", "low", "high", "n_users", "gain", "gap", "gap_by_chance"]
    path = write_csv(folder / "groups.csv", header, rows)
    methods = list(dict.fromkeys(row[0] for row in rows))
    places = list(dict.fromkeys((row[1], row[2]) for row in rows))[:24]
    legend_rows = -(-len(methods) // 4)
    row_height = max(0.24, 0.045 * len(methods))
    with canvas(6.4, 1.0 + 0.2 * legend_rows + row_height * len(places)) as (figure, axes):
        for number, method in enumerate(methods):
            these = [row for row in rows if row[0] == method and (row[1], row[2]) in places]
            y = [places.index((row[1], row[2])) + 0.8 * ((number + 0.5) / len(methods) - 0.5) for row in these]
            x, colour = [100 * row[3] for row in these], COLOURS[number % len(COLOURS)]
            marker = "oDs"[number // len(COLOURS) % 3]  # where colours come again
            axes.scatter(x, y, s=16, color=colour, marker=marker, label=method, zorder=3)
            for value, row in zip(y, these):
                if row[4] is not None:
                    axes.plot([100 * row[4], 100 * row[5]], [value, value], color=colour, linewidth=1, alpha=0.6)
        axes.set_yticks(range(len(places)), [_short(name, kind) for name, kind in places], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("accuracy, %")
        figure.legend(loc="outside upper left", ncols=4, fontsize=8)
        png = save(figure, path)
    return Figure(
        "Groups of users",
        "Accuracy by group, with 95 % intervals over users. The CSV has each attribute's widest gap and how wide a gap "
        "groups drawn by lot would have.",
        png,
        path,
    )


def _short(name: str, kind: str) -> str:
    """`attribute: value` within 44 characters, of a value at most 24."""
    kind = kind if len(kind) <= 24 else f"{kind[:23]}…"
    room = 42 - len(kind)
    return f"{name if len(name) <= room else name[: room - 1] + '…'}: {kind}"


def _noise(content: Mapping[str, Any], folder: Path, baseline: str | None) -> Figure:
    rows = [
        [method, rate, value["value"], *(value["ci95"] or (None, None)), found["empty"]["value"]]
        for method, found in content["methods"].items()
        for rate, value in zip(found["rates"], found["accuracy"])
    ]
    header = ["method", "wrong_labels", "accuracy", "low", "high", "accuracy_without_context"]
    path = write_csv(folder / "label_noise.csv", header, rows)
    k = next(iter(content["methods"].values()))["n_context"]
    with canvas(5.6, 3.7) as (figure, axes):
        for number, method in enumerate(content["methods"]):
            these = [row for row in rows if row[0] == method]
            axes.plot(
                [100 * row[1] for row in these],
                [100 * row[2] for row in these],
                color=COLOURS[number % len(COLOURS)],
                marker=None if method == baseline else "o",
                linestyle="-." if method == baseline else "-",
                linewidth=2,
                label=method,
            )
        axes.set(xlabel="wrong labels among those shown, %", ylabel="accuracy, %")
        axes.set_title(f"{k} pairs of the user, some of them wrong")
        axes.legend(loc="upper right")
        png = save(figure, path)
    return Figure(
        "Wrong labels",
        "At 50 % the labels are coin flips: a method that noticed would be no worse than without users.",
        png,
        path,
    )


def _best_of_n(content: Mapping[str, Any], folder: Path) -> Figure:
    rows = []
    for method, found in content["methods"].items():
        for s, n in enumerate(content["sizes"]):
            true = found["true"][s]
            row = [method, n, true["value"], *(true["ci95"] or (None, None)), found["regret"][s]["value"]]
            rows.append([*row, found["proxy"][s]["value"], content["best"][s]])
    header = ["method", "n", "true", "low", "high", "regret", "proxy", "best_possible"]
    path = write_csv(folder / "best_of_n.csv", header, rows)
    place = range(len(content["sizes"]))
    with canvas(5.6, 3.7) as (figure, axes):
        axes.plot(place, content["best"], color="#222222", linestyle="--", linewidth=1.4, label="true reward known")
        for number, method in enumerate(content["methods"]):
            these = [row for row in rows if row[0] == method]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(place, [row[2] for row in these], color=colour, marker="o", linewidth=2, label=method)
            axes.plot(place, [row[6] for row in these], color=colour, linestyle=":", linewidth=1.2)
        axes.set_xticks(place, [str(n) for n in content["sizes"]])
        axes.set(xlabel="n", ylabel="standardised reward of the best of n")
        axes.legend(loc="upper left")
        png = save(figure, path)
    return Figure(
        "Best of n",
        "Solid: true reward, for that user, of the response that the method picks out of n; dotted: what the method "
        "itself thinks of it. Where they part, more optimisation buys nothing.",
        png,
        path,
    )
