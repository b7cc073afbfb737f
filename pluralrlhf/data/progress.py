"""Progress of long reads, on stderr: a bar on a terminal, a line every few seconds elsewhere (logs, pipes)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_LINE_SECONDS = 15.0
_CHECK_EVERY = 256


class Progress:
    """Counts what is read and estimates what is left.

    Args:
        what: What is counted, in the plural.
        fraction: Gives the share of the input read so far, or None where it is unknown.
        shown: False prints nothing.
    """

    def __init__(self, what: str, fraction: Callable[[], float | None], shown: bool = True):
        self.what, self.fraction, self.shown = what, fraction, shown
        self.count = self.ticks = 0
        self.start = self.said = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=None)
        return self

    def step(self, n: int = 1) -> None:
        before, self.count = self.count, self.count + n
        if self.shown and before // _CHECK_EVERY != self.count // _CHECK_EVERY:
            self._show()

    def tick(self) -> None:
        """Something was read that is not counted."""
        self.ticks += 1
        if self.shown and self.ticks % _CHECK_EVERY == 0:
            self._show()

    def _show(self) -> None:
        now = time.monotonic()
        share = self.fraction()
        if self.bar is not None:
            self.bar.update(
                self.task,
                total=None if share is None else 1.0,
                completed=share or 0.0,
                description=f"{self.count:,} {self.what}",
            )
        elif now - self.said >= _LINE_SECONDS:
            self.said = now
            left = f", {share:.0%}, about {_seconds((now - self.start) * (1 - share) / share)} left" if share else ""
            print(f"{self.count:,} {self.what} in {_seconds(now - self.start)}{left}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.shown and exception[0] is None and time.monotonic() - self.start > 2:
            took = _seconds(time.monotonic() - self.start)
            print(f"{self.count:,} {self.what} in {took}", file=sys.stderr, flush=True)


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
