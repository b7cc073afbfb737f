"""Figures, each a PNG with the CSV that it was drawn from."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..metrics import correct
from .controls import OWN
from .storage import STATES, Source, SplitScores, load_scores
from .tables import Section, label, metric
from .verdicts import SPLIT_TITLES

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C564B", "#444444")
_GREY = "#8a8a8a"
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "savefig.dpi": 150,
}


@dataclass(frozen=True)
class Figure:
    """One figure on disk.

    Args:
        title: What it shows.
        caption: How to read it.
        png, csv: The files.
    """

    title: str
    caption: str
    png: Path
    csv: Path


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower() or "data"


def draw_all(section: Section, sources: Sequence[Source], folder: str | Path) -> list[Figure]:
    """Draws what there is to draw of one dataset's headline split: curves, spread, calibration, map of users."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = [accuracy_curves(section, folder)]
    methods = [result["method"] for result in section.results]
    scores = load_scores(sources, section.split, methods)
    figures.append(user_spread(section, scores, folder))
    figures.append(reliability(section, scores, folder))
    figures.append(user_map(section, sources, scores, folder))
    return [figure for figure in figures if figure is not None]


def accuracy_curves(section: Section, folder: Path) -> Figure | None:
    """Accuracy against the number of context pairs, with bands of 95 %."""
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
    path = _write_csv(
        folder / f"accuracy_{slug(section.dataset)}.csv",
        ["dataset", "split", "method", "n_context", "accuracy", "low", "high"],
        rows,
    )
    with _figure(5.6, 3.7) as (figure, axes):
        for number, result in enumerate(section.results):
            these = [row for row in rows if row[2] == result["method"]]
            if not these:
                continue
            x = [sizes.index(row[3]) for row in these]
            y = [100 * row[4] for row in these]
            reference = result["method"] == result.get("ceiling")
            colour = "#222222" if reference else _colour(section, result["method"])
            style = {"linestyle": "--", "linewidth": 1.4} if reference else {"marker": "o", "linewidth": 2}
            if not result["uses_context"]:
                style = {"linestyle": "-.", "linewidth": 1.6}
            axes.plot(x, y, color=colour, label=label(result), zorder=3 + number, **style)
            if all(row[5] is not None for row in these) and not reference:
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
        axes.legend(loc="best")
        png = _save(figure, path)
    return Figure(
        "Accuracy against the number of the user's pairs shown",
        "Bands are 95 % intervals over users and items. Only a rise from k = 0 is personalisation.",
        png,
        path,
    )


def user_spread(section: Section, scores: SplitScores, folder: Path) -> Figure | None:
    """Each user's accuracy, sorted, and how much each user gains over the model's own k = 0."""
    rows, per_method = [], {}
    for result in section.results:
        method = result["method"]
        sizes = scores.sizes(method)
        if not sizes or method == result.get("ceiling"):
            continue
        own = _by_user(scores, correct(scores.margin[method, sizes[-1], OWN]).mean(axis=1))
        none = (
            _by_user(scores, correct(scores.margin[method, 0, OWN]).mean(axis=1))
            if (method, 0, OWN) in scores.margin
            else own * np.nan
        )
        per_method[method] = (own, own - none, sizes[-1])
        rows += [
            [
                section.dataset,
                section.split,
                method,
                sizes[-1],
                user,
                *(None if np.isnan(v) else round(float(v), 6) for v in values),
            ]
            for user, *values in zip(scores.user_ids, own, own - none)
        ]
    if not rows:
        return None
    path = _write_csv(
        folder / f"users_{slug(section.dataset)}.csv",
        ["dataset", "split", "method", "n_context", "user_id", "accuracy", "gain"],
        rows,
    )
    gains = {m: v for m, v in per_method.items() if np.nanmax(np.abs(v[1]), initial=0) > 0}
    with _figure(5.6, 6.2 if gains else 3.4, rows=2 if gains else 1) as (figure, axes):
        axes = np.atleast_1d(axes)
        for method, (own, _, _) in per_method.items():
            values = np.sort(own[np.isfinite(own)])
            share = (np.arange(len(values)) + 0.5) / max(1, len(values)) * 100
            axes[0].plot(share, 100 * values, color=_colour(section, method), linewidth=2, label=method)
        axes[0].set(xlabel="users, % (sorted by their accuracy)", ylabel="the user's accuracy, %", ylim=(-3, 103))
        axes[0].set_title("Who is served well, and who is not")
        axes[0].legend(loc="lower right")
        if gains:
            edges = _edges(np.concatenate([gain for _, gain, _ in gains.values()]))
            for method, (_, gain, _) in gains.items():
                known = gain[np.isfinite(gain)]
                axes[1].hist(
                    100 * known,
                    bins=edges,
                    color=_colour(section, method),
                    alpha=0.45,
                    label=f"{method}: {np.mean(known < 0):.0%} of users lose",
                )
            axes[1].axvline(0, color="#444444", linewidth=1)
            axes[1].set(xlabel="gain over the model's own k = 0, points", ylabel="users")
            axes[1].set_title("Who gains from being known, and who loses")
            axes[1].legend(loc="best")
        png = _save(figure, path)
    return Figure(
        "Spread over users",
        "Above: every user's accuracy, worst to best. Below: how the gains are spread; left of the line users lose.",
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
    path = _write_csv(
        folder / f"reliability_{slug(section.dataset)}.csv",
        ["dataset", "split", "method", "n_context", "n", "confidence", "accuracy"],
        rows,
    )
    with _figure(5.6, 3.7) as (figure, axes):
        axes.plot([50, 100], [50, 100], color=_GREY, linewidth=1, linestyle=":")
        for method in dict.fromkeys(row[2] for row in rows):
            these = [row for row in rows if row[2] == method]
            size = np.array([row[4] for row in these], dtype=float)
            x, y = ([100 * row[column] for row in these] for column in (5, 6))
            axes.plot(x, y, color=_colour(section, method), linewidth=1.6, label=method)
            axes.scatter(x, y, s=12 + 90 * size / size.sum(), color=_colour(section, method), zorder=3)
        axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(48.5, 101.5))
        axes.set_title("Says 80 %: right in 80 %?")
        axes.legend(loc="upper left")
        png = _save(figure, path)
    return Figure(
        "Calibration",
        "On the dotted line confidence is deserved; below it the method is too sure. Larger points hold more pairs.",
        png,
        path,
    )


def user_map(section: Section, sources: Sequence[Source], scores: SplitScores, folder: Path) -> Figure | None:
    """Users by the first two principal components of their states."""
    ceiling = {result["method"] for result in section.results if result["method"] == result.get("ceiling")}
    states: dict[str, dict[str, Any]] = {}
    for source in sources:
        for method, found in _read_states(source, section.split).items():
            if method not in ceiling and len(found["user"]) >= 3:
                states.setdefault(method, found)
    if not states:
        return None
    rows, drawn = [], {}
    for method, found in states.items():
        points, share = _project(found["state"])
        sizes = scores.sizes(method)
        hit = _by_user(scores, correct(scores.margin[method, sizes[-1], OWN]).mean(axis=1)) if sizes else np.zeros(0)
        by_user = dict(zip(scores.user_ids, hit))
        value = np.array([by_user.get(user, np.nan) for user in found["user"]])
        drawn[method] = (points, share, found["type"], value)
        rows += [
            [section.dataset, method, user, kind, *map(float, point)]
            for user, kind, point in zip(found["user"], found["type"], points)
        ]
    path = _write_csv(
        folder / f"map_{slug(section.dataset)}.csv", ["dataset", "method", "user_id", "type", "x", "y"], rows
    )
    columns = min(2, len(drawn))
    with _figure(
        5.6 if columns == 1 else 9.0, 4.2 * -(-len(drawn) // columns), rows=-(-len(drawn) // columns), columns=columns
    ) as (figure, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for place, (method, (points, share, types, value)) in zip(axes, drawn.items()):
            kinds = sorted({kind for kind in types if kind is not None})
            if kinds and len(kinds) <= len(COLOURS):
                for number, kind in enumerate(kinds):
                    these = np.array([found == kind for found in types])
                    place.scatter(*points[these].T, s=26, alpha=0.75, color=COLOURS[number], label=kind, linewidth=0)
                place.legend(loc="best", title="type of user")
            else:
                shown = place.scatter(*points.T, s=26, alpha=0.8, c=100 * value, cmap="viridis", linewidth=0)
                figure.colorbar(shown, ax=place, label="the user's accuracy, %", shrink=0.8)
            place.set(xlabel=f"component 1 ({share[0]:.0%} of variance)", ylabel=f"component 2 ({share[1]:.0%})")
            place.set_title(method)
        for place in axes[len(drawn) :]:
            place.remove()
        png = _save(figure, path)
    return Figure(
        "Map of users",
        "Each point is an unseen user's state after the largest context, projected on its first two principal components.",
        png,
        path,
    )


def _read_states(source: Source, split: str) -> dict[str, dict[str, Any]]:
    path = source.folder / STATES
    if not path.is_file():
        return {}
    table = pq.read_table(path).to_pylist()
    renamed, out = dict(source.rename), {}
    first_seed: dict[str, tuple] = {}
    for row in table:
        if row["split"] != split or (
            source.dataset is not None and row.get("dataset", source.dataset) != source.dataset
        ):
            continue
        method = renamed.get(row["method"], row["method"])
        run = (row.get("fold", 0), row["seed"])
        # States of different trainings share no axes.
        if first_seed.setdefault(method, run) != run:
            continue
        found = out.setdefault(method, {"user": [], "type": [], "state": []})
        for key, column in (("user", "user_id"), ("type", "type"), ("state", "state")):
            found[key].append(row[column])
    return out


def _project(states: list) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) principal components and their shares of the variance."""
    values = np.asarray(states, dtype=np.float64)
    values = values - values.mean(axis=0)
    u, s, vt = np.linalg.svd(values, full_matrices=False)
    # Signs are arbitrary: the largest loading is made positive, so that a map can be drawn again.
    signs = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])
    points = (u * s * np.where(signs == 0, 1, signs))[:, :2]
    share = s**2 / max(float((s**2).sum()), 1e-12)
    if points.shape[1] < 2:
        points, share = np.pad(points, ((0, 0), (0, 1))), np.append(share, 0.0)
    return points, share[:2]


def _by_user(scores: SplitScores, values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    n = len(scores.user_ids)
    count = np.bincount(scores.users[known], minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(scores.users[known], weights=values[known], minlength=n) / count


def _edges(gains: np.ndarray) -> np.ndarray:
    known = 100 * gains[np.isfinite(gains)]
    low, high = min(-5.0, known.min()), max(5.0, known.max())
    return np.linspace(low, high, 25)


def _colour(section: Section, method: str) -> str:
    names = [result["method"] for result in section.results if result["method"] != result.get("ceiling")]
    return COLOURS[names.index(method) % len(COLOURS)] if method in names else _GREY


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


class _figure:
    """A matplotlib figure in this project's style, without a display and without touching global settings."""

    def __init__(self, width: float, height: float, rows: int = 1, columns: int = 1):
        self.size, self.shape = (width, height), (rows, columns)

    def __enter__(self):
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as MatplotlibFigure

        self.context = matplotlib.rc_context(_STYLE)
        self.context.__enter__()
        figure = MatplotlibFigure(figsize=self.size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        FigureCanvasAgg(figure)
        return figure, figure.subplots(*self.shape)

    def __exit__(self, *exception: object) -> None:
        self.context.__exit__(*exception)


def _save(figure: Any, path: Path) -> Path:
    png = path.with_suffix(".png")
    figure.savefig(png, metadata={"Software": None})
    return png
