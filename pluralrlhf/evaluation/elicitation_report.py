"""What a replay of interviews is written down as: `elicitation.json`, curves as CSV and PNG, a table as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from .drawing import COLOURS, canvas, save, write_csv
from .elicitation import compare
from .summary import versions
from .verdicts import interval

NAMES = {
    "epig": "EPIG",
    "bald": "BALD",
    "d_optimal": "D-optimal",
    "fixed": "best fixed questionnaire",
    "random": "random",
}


def write_elicitation(
    curves: Mapping[str, np.ndarray],
    users: list[str],
    folder: str | Path,
    info: Mapping[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    """Writes `elicitation.json`, `curves.csv` (a row a user, acquisition and number of answers), figure and table.

    Args:
        curves: What `replay` returns.
        users: Ids of the participants, in its order.
        folder: Made if needed.
        info: Model, data, command and settings, for `elicitation.json`.
        seed: Seed of the bootstrap over users.

    Returns:
        The content of `elicitation.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, **info, "n_users": len(users), **compare(curves, seed), "versions": versions()}
    rows = [
        [user, name, m, round(accuracy, 6), round(likelihood, 6)]
        for name, values in curves.items()
        for user, curve in zip(users, values)
        for m, (accuracy, likelihood) in enumerate(curve.tolist())
    ]
    header = ["user_id", "acquisition", "n_answers", "accuracy", "log_likelihood"]
    write_csv(folder / "per_user.csv", header, rows)
    path = _draw(content, folder / "curves.csv")
    write_json(folder / "elicitation.json", content)
    (folder / "summary.md").write_text(markdown(content), encoding="utf-8")
    content["files"] = ["elicitation.json", "per_user.csv", "curves.csv", path.name, "summary.md"]
    return content


def markdown(content: Mapping[str, Any]) -> str:
    """The table of a replay: accuracy by number of answers, area under the curve, paired differences."""
    n = len(next(iter(content["accuracy"].values()))) - 1
    marks = sorted({0, *(m for m in (1, 2, 4, 8, 16, 32) if m < n), n})
    lines = [
        f"Accuracy on the targets, mean of {content['n_users']} participants, in per cent, by number of answers.",
        "",
        "| acquisition | " + " | ".join(map(str, marks)) + " | area |",
        "|---" * (len(marks) + 2) + "|",
    ]
    for name, found in content["accuracy"].items():
        cells = [f"{100 * found[m]['value']:.1f}" for m in marks]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + f" | {interval(content['area'][name])} |")
    if content["differences"]:
        lines += ["", "| difference of areas, paired over participants | points |", "|---|---|"]
        for name, found in content["differences"].items():
            first, second = (NAMES[part] for part in name.split(" - "))
            lines.append(f"| {first} minus {second} | {interval(found, sign=True)} |")
    return "\n".join(lines) + "\n"


def _draw(content: Mapping[str, Any], path: Path) -> Path:
    rows = [
        [name, m, found["value"], *(found["ci95"] or (None, None))]
        for name, values in content["accuracy"].items()
        for m, found in enumerate(values)
    ]
    write_csv(path, ["acquisition", "n_answers", "accuracy", "low", "high"], rows)
    with canvas(5.6, 3.7) as (figure, axes):
        for number, name in enumerate(content["accuracy"]):
            these = [row for row in rows if row[0] == name]
            style = "--" if name in ("random", "fixed") else "-"
            axes.plot(
                [row[1] for row in these],
                [100 * row[2] for row in these],
                color=COLOURS[number % len(COLOURS)],
                linestyle=style,
                linewidth=2,
                label=NAMES[name],
            )
        axes.set_xlabel("questions answered")
        axes.set_ylabel("accuracy on other items, %")
        axes.legend(loc="lower right")
        return save(figure, path)
