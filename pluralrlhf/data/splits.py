"""Splits by a hash of the ids: the same user and item fall on the same side whatever the order or the rest of the data.

Users are in one of three partitions: `train`, `validation` (every choice is made on these), `test` (unseen users).
Items are seen or unseen. Crossing the two gives the splits of `schema.SPLITS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError
from .schema import TRAIN, VALIDATION

MIXED_ITEMS = "mixed_items"
USER_WITHOUT_A_PAIR = "user_without_a_pair"
UNSEEN_ITEMS_OF_VALIDATION_USERS = "unseen_items_of_validation_users"


def hash64(*parts: object) -> int:
    """A stable 64-bit hash of the parts' texts (ids and texts hold no U+001F, which separates them here)."""
    data = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def unit_hash(*parts: object) -> float:
    """`hash64` as a number in [0, 1)."""
    return (hash64(*parts) >> 11) / 2**53


@dataclass(frozen=True)
class SplitConfig:
    """How users, items and pairs are divided.

    Args:
        seed: Part of every hash; another seed gives another division.
        validation_users: Share of users in `validation` (with user folds: of the users outside the test fold).
        test_users: Share of users never seen in training; not used with user folds.
        test_items: Share of items never seen in training; 0 keeps all items seen; not used with item folds.
        test_pairs: Share of the training users' pairs held out in `test_seen_users_seen_items`.
        user_fold, n_user_folds: Test users are fold `user_fold` of `n_user_folds` disjoint ones.
        item_fold, n_item_folds: The same for items.
    """

    seed: int = 0
    validation_users: float = 0.1
    test_users: float = 0.2
    test_items: float = 0.2
    test_pairs: float = 0.1
    user_fold: int = 0
    n_user_folds: int | None = None
    item_fold: int = 0
    n_item_folds: int | None = None

    def __post_init__(self) -> None:
        for name in ("validation_users", "test_users", "test_items", "test_pairs"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}: a share in [0, 1) is expected")
        if self.n_user_folds is None and self.validation_users + self.test_users >= 1:
            raise ConfigError(
                f"`validation_users` {self.validation_users} and `test_users` {self.test_users} leave nobody to train "
                "on: their sum must be below 1"
            )
        for fold, count in (("user_fold", "n_user_folds"), ("item_fold", "n_item_folds")):
            chosen, n = getattr(self, fold), getattr(self, count)
            if n is None and chosen != 0:
                raise ConfigError(f"`{fold}` is {chosen} but `{count}` is not given: say how many folds there are")
            if n is not None and n < 2:
                raise ConfigError(f"`{count}` is {n}: at least 2 folds are needed")
            if n is not None and not 0 <= chosen < n:
                raise ConfigError(f"`{fold}` is {chosen}: expected 0 to {n - 1} with `{count}` {n}")

    def user_partition(self, user_id: str) -> str:
        """`train`, `validation` or `test`."""
        u = unit_hash("user", self.seed, user_id)
        if self.n_user_folds is not None:
            if int(u * self.n_user_folds) == self.user_fold:
                return "test"
            return VALIDATION if unit_hash("validation", self.seed, user_id) < self.validation_users else TRAIN
        if u < self.test_users:
            return "test"
        return VALIDATION if u < self.test_users + self.validation_users else TRAIN

    def item_unseen(self, item_id: str) -> bool:
        """Whether an item is kept from training."""
        u = unit_hash("item", self.seed, item_id)
        if self.n_item_folds is not None:
            return int(u * self.n_item_folds) == self.item_fold
        return u < self.test_items

    def pair_held_out(self, user_id: str, item_ids: Iterable[str]) -> bool:
        """Whether a training user's pair on seen items is held out.

        Decided by user and items, not by the pair's id: a pair that occurs twice, and all pairs of a user on one
        prompt, stay together.
        """
        return unit_hash("pair", self.seed, user_id, *sorted(item_ids)) < self.test_pairs

    def assign(
        self, user_id: str, item_ids: list[str], *, partition: str | None = None, test_item: bool | None = None
    ) -> tuple[str | None, str | None]:
        """`(split, None)`, or `(None, reason)` for a pair that no split can hold.

        Args:
            partition: The user's partition, if known already.
            test_item: A population's own choice of the pair's item side; None decides by hash.
        """
        partition = partition or self.user_partition(user_id)
        sides = {self.item_unseen(item) for item in item_ids} if test_item is None else {bool(test_item)}
        if len(sides) == 2:
            return None, MIXED_ITEMS
        unseen = sides.pop()
        if partition == "test":
            return f"test_unseen_users_{'un' if unseen else ''}seen_items", None
        if partition == VALIDATION:
            return (None, UNSEEN_ITEMS_OF_VALIDATION_USERS) if unseen else (VALIDATION, None)
        if unseen:
            return "test_seen_users_unseen_items", None
        return ("test_seen_users_seen_items" if self.pair_held_out(user_id, item_ids) else TRAIN), None
