"""Which pairs to make where there are more than can be used, by hash and as evenly as possible."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .splits import hash64


def by_hash(ids: Iterable[str], *salt: object) -> list[str]:
    """Ids in an order that is drawn by hash: the same whichever other ids there are, so that a new one moves few."""
    return sorted(ids, key=lambda identifier: (hash64(*salt, identifier), identifier))


def spread_pairs(first: Sequence[Any], second: Sequence[Any], limit: int) -> Iterator[tuple[Any, Any]]:
    """Yields `limit` distinct pairs of the product of two sequences, using the elements of each as evenly as possible.

    Walks the product along its diagonals: step n of a walk pairs `n mod a` with `n + shift mod b`; a walk closes after
    lcm(a, b) steps and gcd(a, b) shifted walks cover the product.
    """
    a, b = len(first), len(second)
    if not a or not b:
        return
    length = math.lcm(a, b)
    for n in range(min(limit, a * b)):
        shift, step = divmod(n, length)
        yield first[step % a], second[(step + shift) % b]
