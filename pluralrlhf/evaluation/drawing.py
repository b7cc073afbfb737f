"""How figures look and where they go: each is a PNG with the CSV that it was drawn from."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C564B", "#444444")
GREY = "#8a8a8a"
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


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    """Writes the figures behind a figure."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def colour_of(results: Sequence[Mapping[str, Any]], method: str) -> str:
    """The colour of a method in all figures of these results; references are grey."""
    names = [result["method"] for result in results if result["method"] != result.get("ceiling")]
    return COLOURS[names.index(method) % len(COLOURS)] if method in names else GREY


class canvas:
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


def add_legend(figure: Any, axes: Any, loc: str, crowded: bool) -> None:
    """A legend at a place inside the axes or, where there are too many lines for it, beside them."""
    if crowded:
        figure.legend(loc="outside right upper")
    else:
        axes.legend(loc=loc)


def save(figure: Any, path: Path) -> Path:
    """Writes a figure beside its CSV."""
    png = path.with_suffix(".png")
    figure.savefig(png, metadata={"Software": None})
    return png
