"""What generated populations share: rows come from judgments whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..placebo import DROPPED, placebo_pairs
from ..sources import Source


class Population(Source):
    """A source of generated users. Subclasses implement `_judgments`, which yields (pair row, its truth)."""

    placebo: bool
    seed: int

    def _judgments(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        raise NotImplementedError

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields pair rows, user by user; for a placebo, with the choices permuted among those who judged a pair."""
        self.dropped.clear()
        if not self.placebo:
            yield from (row for row, _ in self._judgments())
            return
        for row in placebo_pairs(lambda: (judged for judged, _ in self._judgments()), self.seed):
            if row is None:
                self.dropped[DROPPED] += 1
            else:
                yield row
