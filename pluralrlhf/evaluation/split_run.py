"""One split of a run: every target under its own contexts and the controls, as tables of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..data.history import CONTEXT_SPLIT, UserHistory, mix, stable_hash
from .controls import CONTEXT_PAIR, OWN, RANDOM_STATE, Context, ControlContexts
from .evaluation_data import EvaluationData
from .scorers import Scorer, Scores
from .storage import PAIRS_SCHEMA, PER_PAIR_SCHEMA, STATES_SCHEMA, release_memory

_MAX_MAPPED_USERS = 2000


@dataclass
class SplitRun:
    """One split: walks through its targets user by user, so that a batch shares most of its context pairs."""

    scorers: Sequence[Scorer]
    data: EvaluationData
    contexts: ControlContexts
    sizes: list[int]
    controls: bool
    seed: int
    batch_size: int
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        history = self.data.history
        rows = shard_rows(history, self.contexts.split, self.shard)
        self.rows = rows[np.lexsort((history.pair_key[rows], history.user[rows]))]
        self._shown = np.zeros(history.n_rows, dtype=bool)
        # Per user and number of context pairs: targets, pairs shown, distinct items shown, pairs that others judged.
        self._counts = np.zeros((len(self.sizes), 4, len(history.users)))

    def tables(self) -> Iterator[tuple[np.ndarray, Iterator[pa.Table]]]:
        for start in range(0, len(self.rows), self.batch_size):
            rows = self.rows[start : start + self.batch_size]
            yield rows, self._score(rows)

    def _score(self, rows: np.ndarray) -> Iterator[pa.Table]:
        own = self.contexts.own(rows, self.sizes[-1])
        made: dict[str, tuple[Context, np.ndarray]] = {}
        if self.controls and self.sizes[-1]:
            made = {name: self.contexts.make(name, rows, own) for name in self.contexts.names if name != "permuted"}
        self._count(rows, own, made["relabelled"][0] if "relabelled" in made else None)
        if any(not scorer.uses_context for scorer in self.scorers):
            self._shown[own.index[own.index >= 0]] = True
        needed = np.concatenate([rows, own.index.reshape(-1), *(c.index.reshape(-1) for c, _ in made.values())])
        for scorer in self.scorers:
            if hasattr(scorer, "prepare"):
                scorer.prepare(needed if scorer.uses_context else rows)
            without = None if scorer.uses_context else scorer.score(rows, own.first(0))
            for k in self.sizes:
                context = own.first(k)
                scores = without or scorer.score(rows, context)
                yield self._table(scorer, k, OWN, rows, context.index, scores)
                if not self.controls or not k:
                    continue
                for name in self.contexts.names:
                    if name == "permuted":
                        shown, exists = self.contexts.make(name, rows, context)
                    else:
                        shown = made[name][0].first(k)
                        exists = made[name][1] & (name == "empty_context" or (shown.index >= 0).any(axis=1))
                    if not exists.any():
                        continue
                    scores = without or scorer.score(rows, shown, predictive=False)
                    yield self._table(scorer, k, name, rows, shown.index, scores, exists)
                draw = mix(self.data.history.pair_key[rows], stable_hash(f"{RANDOM_STATE}:{self.seed}:{k}"))
                scores = scorer.score_random_state(rows, draw)
                if scores is not None:
                    yield self._table(scorer, k, RANDOM_STATE, rows, np.zeros((len(rows), 0), np.int64), scores)

    def _table(
        self,
        scorer: Scorer,
        k: int,
        control: str,
        rows: np.ndarray,
        shown: np.ndarray,
        scores: Scores,
        exists: np.ndarray | None = None,
    ) -> pa.Table:
        margin, probability = scores
        if exists is not None and not exists.all():
            rows, shown, margin, probability = rows[exists], shown[exists], margin[exists], probability[exists]
        history, n = self.data.history, len(rows)
        lengths = (shown >= 0).sum(axis=1)
        context_ids = pa.ListArray.from_arrays(
            pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), _pair_ids(history, shown[shown >= 0])
        )
        columns = [
            pa.repeat(scorer.method, n),
            pa.repeat(pa.scalar(int(scorer.seed), pa.int64()), n),
            pa.repeat(self.contexts.split, n),
            pa.repeat(pa.scalar(k, pa.int64()), n),
            pa.repeat(control, n),
            _user_ids(history, rows),
            _pair_ids(history, rows),
            context_ids,
            pa.array(np.asarray(margin, dtype=np.float64)),
            pa.array(np.asarray(probability, dtype=np.float64)),
        ]
        return pa.table(columns, schema=PER_PAIR_SCHEMA)

    def context_pair_tables(self) -> Iterator[pa.Table]:
        """Scores without a context of all pairs that served as one, for methods that ignore it."""
        rows = np.flatnonzero(self._shown)
        nothing = Context(np.zeros((0, 0), np.int64), np.zeros((0, 0), bool))
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            empty = np.zeros((len(part), 0), np.int64)
            for scorer in self.scorers:
                if not scorer.uses_context:
                    scores = scorer.score(part, Context(empty, np.zeros(empty.shape, bool)) if len(part) else nothing)
                    yield self._table(scorer, 0, CONTEXT_PAIR, part, empty, scores)

    def state_tables(self) -> Iterator[pa.Table]:
        """States of up to 2,000 users of an unseen-user split, each from the context of one of the user's targets."""
        history, split = self.data.history, self.contexts.split
        users, first = np.unique(history.user[self.rows], return_index=True)
        if not self.sizes[-1] or CONTEXT_SPLIT.get(split, split) == "train":
            return
        chosen = np.argsort(mix(history.user_key[users], stable_hash("map")))[:_MAX_MAPPED_USERS]
        rows = self.rows[np.sort(first[chosen])]
        for scorer in self.scorers:
            # Each of these rows is another user's, and brings contexts of its own: fewer at once take the same room.
            size = max(1, self.batch_size // 32)
            for start in range(0, len(rows) if scorer.uses_context else 0, size):
                if start % (8 * size) == 0:
                    release_memory()
                part = rows[start : start + size]
                own = self.contexts.own(part, self.sizes[-1])
                if hasattr(scorer, "prepare"):
                    scorer.prepare(own.index.reshape(-1))
                state = scorer.states(own)
                if state is None:
                    break
                ids = [history.users[user] for user in history.user[part]]
                n = len(part)
                yield pa.table(
                    [
                        pa.repeat(scorer.method, n),
                        pa.repeat(pa.scalar(int(scorer.seed), pa.int64()), n),
                        pa.repeat(split, n),
                        pa.repeat(pa.scalar(self.sizes[-1], pa.int64()), n),
                        pa.array(ids, pa.string()),
                        pa.array([self.data.user_types.get(user) for user in ids], pa.string()),
                        pa.array(list(state), pa.list_(pa.float32())),
                    ],
                    schema=STATES_SCHEMA,
                )

    def _count(self, rows: np.ndarray, own: Context, relabelled: Context | None) -> None:
        history = self.data.history
        user = history.user[rows]
        for number, k in enumerate(self.sizes):
            shown = own.index[:, :k]
            items = np.where((shown >= 0)[..., None], history.items[np.maximum(shown, 0)], -1)
            items = np.sort(items.reshape(len(rows), -1), axis=1)
            distinct = (items[:, :1] >= 0).sum(axis=1) + ((items[:, 1:] >= 0) & (items[:, 1:] != items[:, :-1])).sum(
                axis=1
            )
            others = np.zeros(len(rows)) if relabelled is None else (relabelled.first(k).index >= 0).sum(axis=1)
            for place, values in enumerate((np.ones(len(rows)), (shown >= 0).sum(axis=1), distinct, others)):
                np.add.at(self._counts[number, place], user, values)

    def context_sums(self) -> dict[str, dict[str, float]]:
        """For each k, sums over users of the mean pairs and distinct items shown, and what they are to be divided by."""
        out = {}
        for number, k in enumerate(self.sizes):
            targets, pairs, items, others = self._counts[number]
            some = targets > 0
            out[str(k)] = {
                "users": float(some.sum()),
                "context_pairs": float((pairs[some] / targets[some]).sum()),
                "context_items": float((items[some] / targets[some]).sum()),
                "pairs": float(pairs.sum()),
                "others": float(others.sum()),
            }
        return out


def shard_rows(history: UserHistory, split: str, shard: tuple[int, int]) -> np.ndarray:
    """Rows of the split's users in the i-th of n shards."""
    rows, (i, n) = history.rows(split), shard
    if n == 1:
        return rows
    return rows[mix(history.user_key[history.user[rows]], stable_hash("shard")) % np.uint64(n) == i]


def _user_ids(history: UserHistory, rows: np.ndarray) -> pa.Array:
    return pa.array([history.users[user] for user in history.user[rows]], pa.string())


def _pair_ids(history: UserHistory, rows: np.ndarray) -> pa.Array:
    """Ids of these pairs. They are taken chunk by chunk: Arrow would put the ids of all pairs together first."""
    chunks = history.pair_ids.chunks
    ends = np.cumsum([len(chunk) for chunk in chunks])
    of = np.searchsorted(ends, rows, side="right")
    used = np.unique(of).tolist()
    parts = [chunks[c].take(pa.array(rows[of == c] - (ends[c] - len(chunks[c])), pa.int64())) for c in used]
    if len(parts) < 2:
        return (parts[0] if parts else history.pair_ids.slice(0, 0).combine_chunks()).cast(pa.string())
    back = np.argsort(np.argsort(of, kind="stable"), kind="stable")
    return pa.concat_arrays(parts).take(pa.array(back)).cast(pa.string())


def pair_table(history: UserHistory, split: str, rows: np.ndarray, agreed: np.ndarray | None) -> pa.Table:
    """Rows of `pairs.parquet`: items, and whether nearly all users agree."""
    items = [[history.item_ids[item] for item in row if item >= 0] for row in history.items[rows]]
    return pa.table(
        [
            pa.repeat(split, len(rows)),
            _user_ids(history, rows),
            _pair_ids(history, rows),
            pa.array(items, pa.list_(pa.string())),
            pa.nulls(len(rows), pa.bool_()) if agreed is None else pa.array(agreed[rows]),
        ],
        schema=PAIRS_SCHEMA,
    )
