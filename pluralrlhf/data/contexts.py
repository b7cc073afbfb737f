"""What the contexts of a batch have in common, so that nothing is computed twice."""

from __future__ import annotations

import numpy as np


def distinct_contexts(
    context_rows: np.ndarray, flip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Each distinct context once: targets of one user read the same, but for the pairs that share an item with them.

    Args:
        context_rows, flip: (B, K) rows of pairs, -1 where there is none, and whether their sides change places.

    Returns:
        (C, K) rows and `flip` of the distinct contexts, and (B,) which of them each target reads.
    """
    # A turned pair is another pair.
    code = np.where(context_rows < 0, -1, context_rows * 2 + (0 if flip is None else flip))
    if len(code) <= 1 or not code.shape[1]:
        first, of_target = np.zeros(min(1, len(code)), np.int64), np.zeros(len(code), np.int64)
    else:
        _, first, of_target = np.unique(code, axis=0, return_index=True, return_inverse=True)
    return context_rows[first], None if flip is None else flip[first], of_target.reshape(-1)


def distinct_pairs(
    context_rows: np.ndarray, flip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct pair of contexts once.

    Args:
        context_rows, flip: (C, K), as of `distinct_contexts`.

    Returns:
        (C, max(K, 1)) positions in the distinct pairs, zeros where there is none, and the mask of what is there; (N,)
        the rows of the distinct pairs, and whether their sides change places.
    """
    if not context_rows.shape[1]:
        context_rows, flip = np.full((len(context_rows), 1), -1), None
    mask = context_rows >= 0
    code = context_rows * 2 + (0 if flip is None else flip.astype(np.int64))
    distinct, position = np.unique(code[mask], return_inverse=True)
    index = np.zeros(code.shape, np.int64)
    index[mask] = position
    return index, mask, distinct // 2, distinct % 2 == 1
