"""Contexts that a model which uses its user must not treat alike: another user's, with turned labels, none, and so on.

A context is what a target is shown: row numbers `index` (B, K), -1 where there is none, and `flipped` (B, K), true where
chosen and rejected change places. All are fixed by hash: they depend on the pair and the seed alone, and the first k
of a longer context are the shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..data.history import CONTEXT_SPLIT, UserHistory, mix, stable_hash
from .opinions import Opinions

OWN = "none"
"""Name of the user's own context in the `control` column: no control."""
CONTEXT_CONTROLS = ("flipped", "wrong_user", "other_type", "relabelled", "empty_context", "coin_flip", "permuted")
RANDOM_STATE = "random_state"
CONTEXT_PAIR = "context_pair"
"""Rows that score, without a context, the pairs that serve as context: they tell which users are atypical."""
CONTROLS = (*CONTEXT_CONTROLS, RANDOM_STATE)


@dataclass(frozen=True)
class Context:
    """Contexts of B targets.

    Args:
        index: (B, K) global row numbers, -1 where there is none.
        flipped: (B, K) whether chosen and rejected change places.
    """

    index: np.ndarray
    flipped: np.ndarray

    def first(self, k: int) -> Context:
        """The contexts of size k within these."""
        return Context(self.index[:, :k], self.flipped[:, :k])


class ControlContexts:
    """The user's own contexts and their controls, for the targets of one split.

    Args:
        history: All splits.
        split: Split of the targets.
        opinions: Who judged the same pairs; without it there is no `relabelled` control.
        user_types: User id to known type (populations); without it there is no `other_type` control.
        seed: Seed of every draw.
    """

    def __init__(
        self,
        history: UserHistory,
        split: str,
        *,
        opinions: Opinions | None = None,
        user_types: Mapping[str, str] | None = None,
        seed: int = 0,
    ):
        self.history, self.split, self.opinions, self.seed = history, split, opinions, seed
        pool = CONTEXT_SPLIT.get(split, split)
        pool_rows = history.rows(pool if pool in history.splits else split)
        pool_rows = pool_rows[np.argsort(history.user[pool_rows], kind="stable")]
        users, start = np.unique(history.user[pool_rows], return_index=True)
        self._pools = dict(zip(users.tolist(), np.split(pool_rows, start[1:])))
        sizes = np.diff(np.r_[start, len(pool_rows)])
        types = None
        if user_types:
            types = np.array([user_types.get(history.users[user]) or "" for user in users])
        self._wrong = self._partners(users, sizes, None)
        self._other = self._partners(users, sizes, types) if types is not None and len(set(types) - {""}) > 1 else {}

    @property
    def names(self) -> tuple[str, ...]:
        """The controls that this data allows."""
        missing = set()
        if self.opinions is None:
            missing.add("relabelled")
        if not self._other:
            missing.add("other_type")
        if not self._wrong:
            missing.add("wrong_user")
        return tuple(name for name in CONTEXT_CONTROLS if name not in missing)

    def own(self, rows: np.ndarray, k: int) -> Context:
        """The contexts that evaluation uses: up to k pairs of the target's own user."""
        index = self.history.context(rows, k, seed=self.seed)
        return Context(index, np.zeros(index.shape, dtype=bool))

    def make(self, name: str, rows: np.ndarray, own: Context) -> tuple[Context, np.ndarray]:
        """The contexts of a control.

        Args:
            name: One of `names`.
            rows: (B,) targets.
            own: Their own contexts.

        Returns:
            The contexts, and (B,) whether the control exists for the target (somebody else judged one of its context
            pairs, or there is a user of another type, say).
        """
        shown = (own.index >= 0).any(axis=1)
        if name == "flipped":
            return Context(own.index, ~own.flipped), shown
        if name == "coin_flip":
            return Context(own.index, self._bits(own.index, rows, name) % np.uint64(2) == 1), shown
        if name == "empty_context":
            return Context(np.full_like(own.index, -1), own.flipped), np.ones(len(rows), dtype=bool)
        if name == "permuted":
            return self._permuted(rows, own), shown
        if name == "relabelled":
            index = self.opinions.another_judgment(
                own.index.reshape(-1), self._bits(own.index, rows, name).reshape(-1)
            ).reshape(own.index.shape)
            return Context(index, np.zeros_like(own.flipped)), (index >= 0).any(axis=1)
        if name in ("wrong_user", "other_type"):
            index = self._of_others(rows, own.index.shape[1], self._wrong if name == "wrong_user" else self._other)
            return Context(index, np.zeros_like(own.flipped)), (index >= 0).any(axis=1)
        raise ValueError(f"no control is called {name!r}; there are {', '.join(CONTEXT_CONTROLS)}")

    def _bits(self, index: np.ndarray, rows: np.ndarray, salt: str) -> np.ndarray:
        """(B, K) random bits, the same for one user's context pair whichever target it is shown for."""
        user = mix(self.history.user_key[self.history.user[rows]], stable_hash(f"{salt}:{self.seed}"))
        return mix(self.history.pair_key[np.maximum(index, 0)], user[:, None])

    def _permuted(self, rows: np.ndarray, own: Context) -> Context:
        draw = self._bits(own.index, rows, "permuted")
        # What is missing stays at the end.
        order = np.argsort(np.where(own.index >= 0, draw >> np.uint64(1), np.uint64(2**64 - 1)), axis=1)
        return Context(*(np.take_along_axis(values, order, axis=1) for values in (own.index, own.flipped)))

    def _of_others(self, rows: np.ndarray, k: int, partner: dict[int, int]) -> np.ndarray:
        out = np.full((len(rows), k), -1, dtype=np.int64)
        user = self.history.user[rows]
        for mine in np.unique(user):
            other = partner.get(int(mine), -1)
            if other < 0 or not k:
                continue
            members = np.flatnonzero(user == mine)
            pool = self._pools[other]
            salt = mix(self.history.user_key[other], stable_hash(f"context of another user:{self.seed}"))
            pool = pool[np.argsort(mix(self.history.pair_key[pool], salt), kind="stable")]
            free = ~self.history.conflicts(rows[members], pool)
            rank = np.cumsum(free, axis=1)
            target, position = np.nonzero(free & (rank <= k))
            out[members[target], rank[target, position] - 1] = pool[position]
        return out

    def _partners(self, users: np.ndarray, sizes: np.ndarray, types: np.ndarray | None) -> dict[int, int]:
        """User to another user (of another type), by hash among those with about as many pairs to show."""
        key = mix(self.history.user_key[users], stable_hash(f"another user:{self.seed}"))
        bucket = np.log2(np.maximum(sizes, 1)).astype(np.int64)
        out = {}
        groups = {}
        for number, user in enumerate(users.tolist()):
            if types is not None and not types[number]:
                continue
            for near in (True, False):
                place = (bucket[number] if near else -1, types[number] if types is not None else None)
                if place not in groups:
                    wanted = (bucket == place[0]) if near else np.ones(len(users), dtype=bool)
                    if types is not None:
                        wanted = wanted & (types != types[number]) & (types != "")
                    groups[place] = np.flatnonzero(wanted)
                candidates = groups[place]
                at = int(key[number] % np.uint64(max(1, len(candidates))))
                if len(candidates) and candidates[at] == number:
                    at = (at + 1) % len(candidates)
                if len(candidates) and candidates[at] != number:
                    out[user] = int(users[candidates[at]])
                    break
        return out
