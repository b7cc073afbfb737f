"""How sure we may be of what is measured on pairs: a bootstrap over users and items at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import sparse, stats

from ..metrics import distinct_sorted

# Pairs with more item ids than this are rare, and the number of subsets doubles with each one.
_MAX_ITEMS_FOR_VARIANCE = 5
_WEIGHTS_IN_MEMORY = 200_000
_VALUES_IN_MEMORY = 200_000

Column = Callable[[slice], np.ndarray]
"""A column of values that is made when it is asked for: rows to (rows, S), NaN for pairs outside of it."""


@dataclass(frozen=True)
class Estimate:
    """Means over users with 95 % intervals, one entry a column of the values given.

    `low` and `high` are NaN where fewer than two users leave nothing to resample; `replicates` is (B, C).
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_users: np.ndarray
    n_pairs: np.ndarray
    replicates: np.ndarray

    def as_dict(self, column: int) -> dict:
        """`{"value", "ci95", "n_users", "n_pairs"}` of one column, with None for what does not exist."""
        # Rounding of sums is taken off, so that exactly half right reads 0.5.
        value, low, high = (round(float(x[column]), 12) + 0.0 for x in (self.value, self.low, self.high))
        return {
            "value": value if np.isfinite(value) else None,
            "ci95": [low, high] if np.isfinite(low) and np.isfinite(high) else None,
            "n_users": int(self.n_users[column]),
            "n_pairs": int(self.n_pairs[column]),
        }


@dataclass(frozen=True)
class _Pattern:
    """Pairs that columns are made of: `present` (P,), and the weight of each present pair by its cell, (n cells,)."""

    present: np.ndarray
    by_cell: np.ndarray
    n_users: int


class CrossedBootstrap:
    """Intervals for means over users of pairs that share users *and* items, with seeds nested.

    Every replicate draws users and, independently, items with replacement; a pair's weight is the product of its user's
    count and its items' counts (the pigeonhole bootstrap: Owen, 2007, "The pigeonhole bootstrap", and Owen and Eckles,
    2012, "Bootstrapping data arrays of arbitrary order"). All columns of one object see the same draws, so differences of
    columns are paired. Several seeds of one method are drawn with replacement within a replicate.

    Product weights count the noise of a single answer three times (seven times for pairs of two items), so that their
    intervals are far too wide where users answer few pairs. With `rescale` the replicates keep their shape and their
    spread is set to the crossed cluster-robust variance (Cameron, Gelbach and Miller, 2011; for pairs of items Aronow,
    Samii and Assenova, 2015), the sum of products of residuals over all pairs of rows that share a user or an item,
    with Student's quantile for as many degrees of freedom as there are users and items behind it.

    Memory is about a hundred bytes a pair, however many columns and replicates there are, and the counts of users and
    items, two bytes each a replicate. Time goes to the pairs' weights: ask for many columns at once, not one at a time.

    Args:
        users: User ids or codes, (P,).
        items: Item codes (P, m) padded with -1 (see `item_codes`), or (P,).
        groups: Fold of each row, (P,); the estimate is then the mean over folds. Users and items keep one weight across folds.
        n_replicates: Number of replicates.
        seed: Seed of the draws. They do not depend on how many columns are asked for.
        rescale: See above; False gives the plain pigeonhole bootstrap.
    """

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        *,
        groups: np.ndarray | None = None,
        n_replicates: int = 1000,
        seed: int = 0,
        rescale: bool = True,
    ):
        self.users, self.n_users = _without_holes(np.asarray(users))
        items = np.asarray(items)
        # Codes without holes, so that exactly the items present are drawn.
        codes, self.n_items = _without_holes(items[:, None] if items.ndim == 1 else items, padding=True)
        self.items = distinct_sorted(codes)
        self.n_replicates, self.seed, self.rescale = n_replicates, seed, rescale
        # A cell is what one user has in one fold: its pairs weigh the same.
        fold = np.int64(0) if groups is None else _without_holes(np.asarray(groups))[0].astype(np.int64)
        cell = fold * self.n_users + self.users
        cells = np.unique(cell)
        self._cell = np.searchsorted(cells, cell).astype(np.int32)
        self._fold_of_cell, self._user_of_cell = np.divmod(cells, max(1, self.n_users))
        self._draws: tuple[np.ndarray, np.ndarray] | None = None
        self._sharing: list[tuple[tuple[str, int], sparse.csr_matrix]] | None = None

    def pair_weights(self, present: np.ndarray) -> np.ndarray:
        """`metrics.pair_weights` of the pairs `present` (P,), and 0 for the others."""
        return self._pattern(present).by_cell[self._cell] * present

    def _pattern(self, present: np.ndarray) -> _Pattern:
        pairs = np.bincount(self._cell[present], minlength=len(self._user_of_cell))
        some = pairs > 0
        users_in_fold = np.bincount(self._fold_of_cell[some])
        n_folds = int((users_in_fold > 0).sum())
        by_cell = np.zeros(len(pairs))
        by_cell[some] = 1.0 / (n_folds * users_in_fold[self._fold_of_cell[some]] * pairs[some])
        return _Pattern(present, by_cell, len(np.unique(self._user_of_cell[some])))

    def estimate(self, values: np.ndarray | Sequence[Column]) -> Estimate:
        """Means over users, their replicates and 95 % intervals.

        Args:
            values: (P, C), or (P, C, S) with S seeds of one method; NaN marks pairs outside a column (the same ones for
                all seeds). Or C columns that are made when they are asked for, a piece at a time.
        """
        columns, n_pairs = _columns(values), len(self.users)
        n_columns = len(columns)
        n_seeds = columns[0](slice(0, 0)).shape[1] if columns else 1
        if isinstance(values, np.ndarray) and len(values) != n_pairs:
            raise ValueError(f"`values` has {len(values)} rows for {n_pairs} pairs")
        point, target = np.full((n_columns, n_seeds), np.nan), np.full(n_columns, np.nan)
        patterns: list[_Pattern] = []
        number_of: dict[bytes, int] = {}
        pattern_of = np.zeros(n_columns, dtype=np.int64)
        step = max(1, _VALUES_IN_MEMORY // max(1, n_pairs * n_seeds))
        for start in range(0, n_columns, step):
            residuals = np.zeros((n_pairs, min(step, n_columns - start)))
            for c, column in enumerate(columns[start : start + step], start):
                found = column(slice(None)).astype(np.float64)
                present = np.isfinite(found).all(axis=1)
                pattern_of[c] = number_of.setdefault(np.packbits(present).tobytes(), len(patterns))
                if pattern_of[c] == len(patterns):
                    patterns.append(self._pattern(present))
                if present.any():
                    found[~present] = 0.0
                    weight = patterns[pattern_of[c]].by_cell[self._cell] * present
                    point[c] = weight @ found
                    residuals[:, c - start] = (found.mean(axis=1) - point[c].mean()) * weight
            if self.rescale:
                n_users = np.array([patterns[p].n_users for p in pattern_of[start : start + step]])
                target[start : start + step] = self._crossed_variance(residuals, n_users)

        mean = point.mean(axis=1)
        replicates = self._replicates(columns, n_seeds, patterns, pattern_of)
        if self.rescale:
            drawn = replicates.mean(axis=2)
            drawn = np.where(np.isfinite(drawn), drawn - mean, 0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                scale = np.sqrt(target / drawn.var(axis=0))
            scale = np.where(np.isfinite(scale), scale, 1.0)
            replicates = point + (replicates - point) * scale[None, :, None]
        replicates = self._draw_seeds(replicates, point)
        counted = np.array([patterns[p].n_users for p in pattern_of], dtype=np.int64)
        low, high = np.full(n_columns, np.nan), np.full(n_columns, np.nan)
        known = (counted >= 2) & np.isfinite(replicates).any(axis=0)
        if known.any():
            low[known], high[known] = np.nanpercentile(replicates[:, known], [2.5, 97.5], axis=0)
        n_present = np.array([int(patterns[p].present.sum()) for p in pattern_of], dtype=np.int64)
        return Estimate(mean, low, high, counted, n_present, replicates)

    def _replicates(
        self, columns: Sequence[Column], n_seeds: int, patterns: Sequence[_Pattern], pattern_of: np.ndarray
    ) -> np.ndarray:
        """(B, C, S) means under the weights of each replicate.

        Pairs are gone through once: a piece of them, all columns side by side, is multiplied by its weights in all
        replicates. The weights of the columns themselves stand beside them, for the denominators.
        """
        users, items = self._counts()
        n_values = len(columns) * n_seeds
        sums = np.zeros((self.n_replicates, n_values + len(patterns)))
        block = max(1, _VALUES_IN_MEMORY // max(1, sums.shape[1]))
        step = max(1, _WEIGHTS_IN_MEMORY // max(1, self.n_replicates))
        for start in range(0, len(self.users), block):
            rows = slice(start, start + block)
            cell = self._cell[rows]
            matrix = np.empty((len(cell), sums.shape[1]))
            for p, pattern in enumerate(patterns, n_values):
                matrix[:, p] = pattern.by_cell[cell] * pattern.present[rows]
            for c, column in enumerate(columns):
                present = patterns[pattern_of[c]].present[rows, None]
                weight = matrix[:, n_values + pattern_of[c], None]
                matrix[:, c * n_seeds : (c + 1) * n_seeds] = np.where(present, column(rows), 0.0) * weight
            for low in range(0, len(cell), step):
                piece = slice(start + low, min(start + low + step, start + len(cell)))
                weights = users[self.users[piece]].astype(np.float64)
                for codes in self.items[piece].T:
                    weights *= items[codes]
                sums += weights.T @ matrix[low : low + step]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums[:, :n_values].reshape(-1, len(columns), n_seeds) / sums[:, n_values + pattern_of, None]
        return means

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each user (n users, B) and each item (n items + 1, B) is drawn; the last row is the padding's 1."""
        if self._draws is None:
            users, items = (
                _counts(np.random.default_rng([self.seed, stream]), n, self.n_replicates)
                for stream, n in enumerate((self.n_users, self.n_items))
            )
            self._draws = users, np.vstack([items, np.ones((1, self.n_replicates), items.dtype)])
        return self._draws

    def _draw_seeds(self, replicates: np.ndarray, point: np.ndarray) -> np.ndarray:
        """(B, C, S) -> (B, C). Drawn seeds spread (S - 1) / S too little: their deviations are widened by its inverse root."""
        n_seeds = replicates.shape[2]
        if n_seeds == 1:
            return replicates[..., 0]
        mean = point.mean(axis=1, keepdims=True)
        widened = replicates + (np.sqrt(n_seeds / (n_seeds - 1)) - 1) * (point - mean)
        drawn = _counts(np.random.default_rng([self.seed, 2]), n_seeds, len(replicates)).T / n_seeds
        return np.einsum("bcs,bs->bc", widened, drawn)

    def _crossed_variance(self, residuals: np.ndarray, n_users: np.ndarray) -> np.ndarray:
        """Variances (C,) whose normal 95 % interval is the Student interval of the crossed variance of the sums of `residuals` (P, C)."""
        if self._sharing is None:
            self._sharing = self._sharing_matrices()
        if not self._sharing:
            return np.full(residuals.shape[1], np.nan)
        by_user = by_item = both = 0.0
        for (kind, sign), matrix in self._sharing:
            sums = matrix @ residuals
            share = sign * np.einsum("gc,gc->c", sums, sums)
            if kind == "user":
                by_user = by_user + share
            elif kind == "item":
                by_item = by_item + share
            else:
                both = both + share
        users, items = np.maximum(n_users, 2), max(self.n_items, 2)
        by_user = by_user * users / (users - 1)
        by_item = np.maximum(by_item, 0.0) * items / (items - 1)
        # Inclusion and exclusion can fall below either part when users or items are few; neither part alone can be too much.
        variance = np.maximum(by_user + by_item - both, np.maximum(by_user, by_item))
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = (by_user + by_item) ** 2 / (by_user**2 / (users - 1) + by_item**2 / (items - 1))
        freedom = np.where(np.isfinite(freedom), np.maximum(freedom, 1.0), 1.0)
        return variance * (stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)) ** 2

    def _sharing_matrices(self) -> list[tuple[tuple[str, int], sparse.csr_matrix]]:
        """Sums over rows that share the user, or a set of items, or both; with the sign of inclusion and exclusion."""
        n_pairs, width = self.items.shape
        if width > _MAX_ITEMS_FOR_VARIANCE:
            return []
        rows = np.arange(n_pairs, dtype=np.int32)
        matrices = [(("user", 1), _group_sums([self.users], rows, n_pairs))]
        for size in range(1, width + 1):
            subsets = [list(positions) for positions in combinations(range(width), size)]
            whole = [(self.items[:, subset] >= 0).all(axis=1) for subset in subsets]
            source = np.concatenate([rows[these] for these in whole])
            if not len(source):
                continue
            key = [
                np.concatenate([self.items[these, subset[place]] for subset, these in zip(subsets, whole)])
                for place in range(size)
            ]
            sign = 1 if size % 2 else -1
            matrices.append((("item", sign), _group_sums(key, source, n_pairs)))
            matrices.append((("both", sign), _group_sums([self.users[source], *key], source, n_pairs)))
        # Every entry is 1: all matrices share one array of them.
        ones = np.ones(max(matrix.nnz for _, matrix in matrices))
        for _, matrix in matrices:
            matrix.data = ones[: matrix.nnz]
        return matrices


def _columns(values: np.ndarray | Sequence[Column]) -> list[Column]:
    if not isinstance(values, np.ndarray):
        return list(values)
    values = values[..., None] if values.ndim == 2 else values
    return [lambda rows, c=c: values[rows, c] for c in range(values.shape[1])]


def _without_holes(values: np.ndarray, padding: bool = False) -> tuple[np.ndarray, int]:
    """int32 codes 0 to n - 1 in the order of the values, and n; with `padding` negative values are -1 and count for none."""
    present = np.unique(values[values >= 0]) if padding else np.unique(values)
    codes = np.searchsorted(present, values).astype(np.int32)
    if padding:
        codes[values < 0] = -1
    return codes, len(present)


def _counts(rng: np.random.Generator, n: int, b: int) -> np.ndarray:
    """How often each of n is drawn in n draws with replacement, (n, b) uint16; the same for the first of a larger b."""
    out = np.zeros((n, b), dtype=np.uint16 if n < 2**16 else np.uint32)
    step = max(1, _WEIGHTS_IN_MEMORY // max(1, n))
    for start in range(0, b if n else 0, step):
        size = min(step, b - start)
        drawn = rng.integers(0, n, size=(size, n)) + np.arange(size)[:, None] * n
        out[:, start : start + size] = np.bincount(drawn.reshape(-1), minlength=size * n).reshape(size, n).T
    return out


def _group_sums(keys: Sequence[np.ndarray], rows: np.ndarray, n_rows: int) -> sparse.csr_matrix:
    """A matrix (number of distinct keys, n_rows) that adds up the rows with the same key, given as columns."""
    code, bound = np.zeros(len(rows), dtype=np.int64), 1
    for column in keys:
        size = int(column.max(initial=0)) + 1
        if bound * size >= 2**62:
            code = np.unique(code, return_inverse=True)[1].reshape(-1)
            bound = int(code.max(initial=0)) + 1
        code, bound = code * size + column, bound * size
    order = np.argsort(code, kind="stable")
    code = code[order]
    starts = np.flatnonzero(np.r_[np.ones(min(1, len(code)), dtype=bool), code[1:] != code[:-1]])
    ends = np.r_[starts, len(code)].astype(np.int32)
    return sparse.csr_matrix((np.ones(len(rows)), rows[order], ends), shape=(len(starts), n_rows))


def user_interval(values: np.ndarray, seed: int = 0, n_resamples: int = 2000) -> dict[str, Any]:
    """`{"value", "ci95", "n_users"}` of one value a user, users resampled; NaN values are left out."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return {"value": None, "ci95": None, "n_users": 0}
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (n_resamples, len(values)))].mean(axis=1)
    interval = [float(x) for x in np.percentile(means, [2.5, 97.5])] if len(values) > 1 else None
    return {"value": float(values.mean()), "ci95": interval, "n_users": len(values)}
