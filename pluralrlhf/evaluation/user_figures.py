"""Figures of users: how well each is served, and where their states lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..metrics import correct
from .controls import OWN
from .drawing import COLOURS, Figure, canvas, colour_of, save, slug, write_csv
from .split_scores import SplitScores
from .storage import STATES, Source
from .tables import Section


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
    path = write_csv(
        folder / f"users_{slug(section.dataset)}.csv",
        ["dataset", "split", "method", "n_context", "user_id", "accuracy", "gain"],
        rows,
    )
    gains = {m: v for m, v in per_method.items() if np.nanmax(np.abs(v[1]), initial=0) > 0}
    with canvas(5.6, 6.2 if gains else 3.4, rows=2 if gains else 1) as (figure, axes):
        axes = np.atleast_1d(axes)
        for method, (own, _, _) in per_method.items():
            values = np.sort(own[np.isfinite(own)])
            share = (np.arange(len(values)) + 0.5) / max(1, len(values)) * 100
            axes[0].plot(share, 100 * values, color=colour_of(section.results, method), linewidth=2, label=method)
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
                    color=colour_of(section.results, method),
                    alpha=0.45,
                    label=f"{method}: {np.mean(known < 0):.0%} of users lose",
                )
            axes[1].axvline(0, color="#444444", linewidth=1)
            axes[1].set(xlabel="gain over the model's own k = 0, points", ylabel="users")
            axes[1].set_title("Who gains from being known, and who loses")
            axes[1].legend(loc="best")
        png = save(figure, path)
    return Figure(
        "Spread over users",
        "Above: every user's accuracy, worst to best. Below: how the gains are spread; left of the line users lose.",
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
    path = write_csv(
        folder / f"map_{slug(section.dataset)}.csv", ["dataset", "method", "user_id", "type", "x", "y"], rows
    )
    columns = min(2, len(drawn))
    with canvas(
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
        png = save(figure, path)
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
