"""A user's pairs, and which of them a target may see: context = f(seed, epoch, pair), without state.

Every row of every split has one global number. Orders are drawn by hashing ids, so that resuming, sharding and
shuffling cannot change a context, and a smaller evaluation context is the beginning of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ..errors import DataError

# The split whose pairs of the same user are shown for a target. Unseen items never enter a context, and pairs
# held out from training are never shown to the users that the model was trained on.
CONTEXT_SPLIT = {
    "train": "train",
    "validation": "validation",
    "test_seen_users_seen_items": "train",
    "test_seen_users_unseen_items": "train",
    "test_unseen_users_seen_items": "test_unseen_users_seen_items",
    "test_unseen_users_unseen_items": "test_unseen_users_seen_items",
}

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stable_hash(text: str) -> int:
    """64-bit hash of a text that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(keys: np.ndarray, salt: np.ndarray | int) -> np.ndarray:
    """Pseudo-random uint64 of (keys, salt), elementwise with broadcasting: the finaliser of SplitMix64 (Steele 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(keys, dtype=np.uint64) ^ (np.asarray(salt, dtype=np.uint64) * _GOLDEN + _MIX_1)
        x = (x + _GOLDEN).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        return x ^ (x >> np.uint64(31))


def unit_interval(bits: np.ndarray) -> np.ndarray:
    """Maps uint64 to floats in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _column(dataset, name: str):
    """Arrow column of a `datasets.Dataset` (indices applied), a pyarrow table, or a mapping of lists."""
    if hasattr(dataset, "with_format"):
        return dataset.with_format("arrow")[name][:]
    column = dataset[name]
    return column if isinstance(column, pa.ChunkedArray | pa.Array) else pa.array(column)


def _flat(column) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def id_column(dataset: object, column: str, where: str) -> pa.Array:
    """A column of ids, or a `DataError` where it is missing or a row has none."""
    try:
        values = _flat(_column(dataset, column))
    except KeyError:
        remedy = "Build the dataset with `pluralrlhf data build`, or add the column."
        raise DataError("the column is missing", remedy, file=where, column=column) from None
    absent = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if absent.any():
        found = "NaN" if values.null_count == 0 else "null"
        row = int(np.flatnonzero(absent)[0]) + 1
        raise DataError(f"the value is {found}", "Give every row one.", file=where, row=row, column=column)
    return values


class UserHistory:
    """Who judged which pair, on which items, and the contexts that follow from it.

    Args:
        splits: Split name to dataset with `user_id`, `pair_id`, `item_ids` (a `datasets.DatasetDict`, or a mapping of
            pyarrow tables). Names outside the contract are their own context split.
        group_size: In training, targets of one user are dealt into groups of about this many that share one order of
            context pairs, so that a pair is encoded once for many targets.

    Attributes:
        n_rows: Number of pairs over all splits.
        user: (n_rows,) int32 user code; `users[code]` is the id.
        items: (n_rows, most items of a pair) int32 item codes, -1 where a pair has fewer; `item_ids[code]` is the id.
        pair_key: (n_rows,) uint64 hash of the pair's id.

    Raises:
        DataError: A split lacks one of the columns, or a value of them is null.
    """

    def __init__(self, splits: Mapping[str, object], group_size: int = 24):
        self.group_size = max(1, int(group_size))
        self.splits: dict[str, tuple[int, int]] = {}
        users, pairs, item_values, item_counts, start = [], [], [], [], 0
        for name, dataset in splits.items():
            columns = {c: id_column(dataset, c, f"split `{name}`") for c in ("user_id", "pair_id", "item_ids")}
            users.append(columns["user_id"].cast(pa.large_string()))
            pairs.append(columns["pair_id"].cast(pa.large_string()))
            lists = columns["item_ids"].cast(pa.large_list(pa.large_string()))
            item_values.append(lists.flatten())
            item_counts.append(np.diff(lists.offsets.to_numpy()))
            self.splits[name] = (start, start + len(users[-1]))
            start += len(users[-1])
        self.n_rows = start

        encoded = pa.chunked_array(users, type=pa.large_string()).combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        self.users: list[str] = encoded.dictionary.to_pylist()
        self.user = encoded.indices.to_numpy().astype(np.int32)
        self.user_key = np.array([stable_hash(user) for user in self.users], dtype=np.uint64)
        self.pair_ids = pa.chunked_array(pairs, type=pa.large_string())
        self.pair_key = np.fromiter(
            (stable_hash(value.as_py()) for chunk in self.pair_ids.chunks for value in chunk), np.uint64, self.n_rows
        )

        counts = np.concatenate(item_counts) if item_counts else np.zeros(0, np.int64)
        values = pa.chunked_array(item_values, type=pa.large_string()).combine_chunks().dictionary_encode()
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        self.item_ids: list[str] = values.dictionary.to_pylist()
        self.items = np.full((self.n_rows, int(counts.max(initial=1))), -1, dtype=np.int32)
        self.items[np.arange(self.items.shape[1]) < counts[:, None]] = values.indices.to_numpy()

        self._pool_of_row = np.zeros(self.n_rows, dtype=np.int16)
        names = list(self.splits)
        for name, (low, high) in self.splits.items():
            pool = CONTEXT_SPLIT.get(name, name)
            # A split given alone (someone's own evaluation set) has its own pairs for context.
            self._pool_of_row[low:high] = names.index(pool if pool in self.splits else name)
        # Rows of each split sorted by user, with each user's beginning: one slice is one user's pool.
        self._pool_rows, self._pool_start = [], []
        for low, high in self.splits.values():
            order = np.argsort(self.user[low:high], kind="stable") + low
            self._pool_rows.append(order)
            self._pool_start.append(np.searchsorted(self.user[order], np.arange(len(self.users) + 1)))

    def rows(self, split: str) -> np.ndarray:
        """Global row numbers of a split."""
        return np.arange(*self.splits[split])

    def pool(self, row: int) -> np.ndarray:
        """Rows of the same user that a context of this row is drawn from, before shared items are taken out."""
        return self._pool(int(self._pool_of_row[row]), int(self.user[row]))

    def _pool(self, pool: int, user: int) -> np.ndarray:
        start = self._pool_start[pool]
        return self._pool_rows[pool][start[user] : start[user + 1]]

    def pool_size(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B,) number of pairs in each row's pool, the row itself included where it belongs to it."""
        rows = np.asarray(rows)
        sizes = np.stack([np.diff(start) for start in self._pool_start])
        return sizes[self._pool_of_row[rows], self.user[rows]]

    def _salt(self, rows: np.ndarray, seed: int, epoch: int | None) -> np.ndarray:
        """(B,) what orders a row's context: in evaluation one salt a user; in training one a group of targets."""
        base = np.uint64(stable_hash(f"context:{seed}:{'evaluation' if epoch is None else epoch}"))
        salt = mix(self.user_key[self.user[rows]], base)
        if epoch is None:
            return salt
        n_groups = np.maximum(1, -(-self.pool_size(rows) // self.group_size)).astype(np.uint64)
        return mix(salt, mix(self.pair_key[rows], base) % n_groups + np.uint64(1))

    def draw_n_context(
        self, rows: np.ndarray, maximum: int, *, seed: int = 0, epoch: int = 0, no_context: float = 0.0
    ) -> np.ndarray:
        """(B,) number of context pairs of each training target, the same for a whole group.

        Uniform on 0..maximum, and 0 with the extra probability `no_context`: otherwise the unknown user, who is in
        every comparison, would be one training example in `maximum`.
        """
        u = unit_interval(mix(self._salt(np.asarray(rows), seed, epoch), stable_hash("n_context")))
        u = np.maximum(0.0, (u - no_context) / max(1e-12, 1 - no_context))
        return np.minimum((u * (maximum + 1)).astype(np.int64), maximum)

    def context(
        self, rows: Sequence[int] | np.ndarray, k: int | np.ndarray, *, seed: int = 0, epoch: int | None = None
    ) -> np.ndarray:
        """The context of each row.

        Args:
            rows: (B,) global row numbers of the targets.
            k: Pairs of context, one number or (B,). Fewer are returned where a user has not as many.
            seed: Seed of the order.
            epoch: Training epoch; `None` is evaluation: fixed, and nested in `k`.

        Returns:
            (B, max k) global row numbers, -1 where there is none. No pair shares an item with its target.
        """
        rows = np.asarray(rows, dtype=np.int64)
        k = np.broadcast_to(np.asarray(k, dtype=np.int64), rows.shape)
        out = np.full((len(rows), int(k.max(initial=0))), -1, dtype=np.int64)
        if not out.size:
            return out
        salt = self._salt(rows, seed, epoch)
        pool = self._pool_of_row[rows]
        order = np.lexsort((salt, self.user[rows], pool))
        block = np.stack([pool[order].astype(np.uint64), self.user[rows][order].astype(np.uint64), salt[order]])
        starts = np.flatnonzero(np.r_[True, (block[:, 1:] != block[:, :-1]).any(0)])
        for low, high in zip(starts, np.r_[starts[1:], len(order)]):
            members = order[low:high]
            candidates = self._pool(int(pool[members[0]]), int(self.user[rows[members[0]]]))
            candidates = candidates[np.argsort(mix(self.pair_key[candidates], salt[members[0]]), kind="stable")]
            self._fill(out, members, rows[members], candidates, k[members])
        return out

    def _fill(self, out, members, targets, candidates, k) -> None:
        """Writes the first k candidates of each target that share no item with it; a short head is tried first."""
        most = int(k.max(initial=0))
        head = candidates[: 2 * most + 8]
        while most and len(head):
            free = ~self.conflicts(targets, head)
            rank = np.cumsum(free, axis=1)
            if len(head) == len(candidates) or (rank[:, -1] >= k).all():
                target, position = np.nonzero(free & (rank <= k[:, None]))
                out[members[target], rank[target, position] - 1] = head[position]
                return
            head = candidates[: 4 * len(head)]

    def conflicts(self, targets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """(T, M) true where a candidate is the target itself or shares an item with it."""
        clash = self.pair_key[targets][:, None] == self.pair_key[candidates][None]
        left, right = self.items[targets], self.items[candidates]
        for i in range(left.shape[1]):
            for j in range(right.shape[1]):
                clash |= (left[:, None, i] == right[None, :, j]) & (left[:, None, i] >= 0)
        return clash

    def sample(self, rows: np.ndarray, *, users: int, pairs_per_user: int, seed: int = 0) -> np.ndarray:
        """Positions into `rows` of at most so many pairs of at most so many users, drawn at random, in their order."""
        rows = np.asarray(rows)
        drawn = np.random.default_rng(seed).permutation(np.unique(self.user[rows]))[:users]
        kept = np.flatnonzero(np.isin(self.user[rows], drawn))
        return np.sort(kept[self.epoch_order(rows[kept], seed=seed, pairs_per_user=pairs_per_user)])

    def epoch_order(self, rows: np.ndarray, *, seed: int = 0, epoch: int = 0, pairs_per_user: int | None = None):
        """Order in which an epoch visits its targets: groups shuffled, a group's targets side by side.

        Args:
            rows: (n,) global rows of the training split.
            pairs_per_user: At most so many targets a user and epoch, drawn anew each epoch; `None` takes all.

        Returns:
            Positions into `rows`; their number is the same in every epoch.
        """
        rows = np.asarray(rows)
        base = np.uint64(stable_hash(f"order:{seed}:{epoch}"))
        draw = mix(self.pair_key[rows], base)
        keep = np.arange(len(rows))
        if pairs_per_user is not None:
            order = np.lexsort((draw, self.user[rows]))
            user = self.user[rows][order]
            first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
            rank = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
            keep = np.sort(order[rank < pairs_per_user])
        group = mix(self._salt(rows[keep], seed, epoch), base)
        return keep[np.lexsort((draw[keep], group))]
