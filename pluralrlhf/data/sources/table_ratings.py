"""From ratings to preference pairs, user by user, in bounded memory.

Ratings are kept as numbers (some 40 bytes each); every different text is kept once, in a temporary file.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import placebo
from ..schema import messages
from ..splits import MIXED_ITEMS, USER_WITHOUT_A_PAIR, hash64
from .table_map import item_key

if TYPE_CHECKING:
    from ..splits import SplitConfig

ACROSS_PROMPT = "Answer in the way that this user would rate highest."
# Ratings of more values than this are a continuous scale, on which every two differ; this share of their spread is noise.
_FEW_VALUES, _CLOSE = 20, 0.1
_BLOCK = 4_000_000  # candidate pairs looked at in one go


class TextStore:
    """Different conversations by number, on disk; only their hashes and places are in memory."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the store
        self.number: dict[int, int] = {}
        self.keys, self.item_keys, self.places = array("Q"), array("Q"), array("Q", [0])
        self.get = lru_cache(maxsize=4096)(self._get)

    def add(self, conversation: list[dict[str, str]]) -> int:
        """The number of a conversation; two that differ in surrounding white space only are one."""
        key = hash64(*(part for message in conversation for part in (message["role"], message["content"].strip())))
        number = self.number.setdefault(key, len(self.number))
        if number == len(self.keys):
            data = json.dumps(conversation, ensure_ascii=False).encode()
            self.file.seek(self.places[-1])
            self.file.write(data)
            self.keys.append(key)
            self.item_keys.append(item_key(conversation))
            self.places.append(self.places[-1] + len(data))
        return number

    def _get(self, number: int) -> list[dict[str, str]]:
        start, end = self.places[number], self.places[number + 1]
        self.file.seek(start)
        return json.loads(self.file.read(end - start))


class Ratings:
    """Collects ratings and turns them into pairs.

    Args:
        items: `prompt`, `responses`, or the name of a column whose values `add` is given.
        seed: Seed of the placebo and of the choice of pairs under the cap.

    Attributes:
        share_paired: The share of users whose pairs `pairs` has given.
        close_share: The share of the pairs given by `pairs` whose ratings lie less than a tenth of their user's standard
            deviation apart; 0 of a scale of few values, whose steps are meant.
    """

    def __init__(self, items: str, seed: int = 0):
        self.items, self.seed = items, seed
        self.texts = TextStore()
        self.user_number: dict[str, int] = {}
        self.file_number: dict[str, int] = {}
        self.item_number: dict[tuple[str, ...], int] = {}
        self.users, self.prompts, self.responses = array("l"), array("l"), array("l")
        self.files, self.rows, self.own_items = array("l"), array("q"), array("l")
        self.ratings = array("d")
        self.share_paired = 0.0
        self.close_share = 0.0

    def add(
        self,
        user: str,
        prompt: list[dict[str, str]] | None,
        response: list[dict[str, str]],
        rating: float,
        *,
        file: str,
        row: int,
        items: tuple[str, ...] = (),
    ) -> None:
        """One rating; `prompt` None stands for a text that answers none."""
        self.users.append(self.user_number.setdefault(user, len(self.user_number)))
        self.prompts.append(-1 if prompt is None else self.texts.add(prompt))
        self.responses.append(self.texts.add(response))
        self.ratings.append(rating)
        self.files.append(self.file_number.setdefault(file, len(self.file_number)))
        self.rows.append(row)
        self.own_items.append(self.item_number.setdefault(items, len(self.item_number)))

    def pairs(
        self,
        *,
        across: bool,
        min_gap: float,
        cap: int | None,
        default_prompt: str,
        split: SplitConfig | None,
        permute: bool,
        dropped: Counter,
    ) -> Iterator[dict[str, Any]]:
        """Pair rows of each user, in the order in which users first occur.

        Args:
            across: Pair responses to different prompts too, not only to the same one.
            min_gap: Least difference of two ratings.
            cap: Most pairs a user among seen items, and again among unseen ones, chosen by hash; None for all.
            default_prompt: The prompt of texts that answer none.
            split: How items will be divided: pairs of a seen and an unseen item are not made.
            permute: Permute ratings among those who rated the same response (see `data/placebo.py`).
            dropped: Gets what was left out; `mixed_items` of all two ratings of a user, whatever their gap.
        """
        table = self._averaged(dropped)
        if permute:
            table = self._permuted(table, dropped)
        side = self._sides(table, split)
        group = table["user"] if across else table["user"] * (len(self.texts.keys) + 2) + table["prompt"]
        paired = side >= 0
        dropped[MIXED_ITEMS] += _n_pairs(group) - _n_pairs(2 * group[paired] + side[paired])
        table = {name: values[paired] for name, values in table.items()}
        table["side"] = side[paired]
        continuous, close, given = len(np.unique(table["rating"])) > _FEW_VALUES, 0, 0
        names, files, owned = list(self.user_number), list(self.file_number), list(self.item_number)
        keys = np.array(self.texts.keys, dtype=np.uint64)
        prompt_key = np.where(table["prompt"] < 0, np.uint64(0), keys[table["prompt"]])
        entry_key = _mix(keys[table["response"]] + _mix(prompt_key))
        bounds = np.searchsorted(table["user"], np.arange(len(names) + 1))
        for number, user in enumerate(names):
            part = slice(bounds[number], bounds[number + 1])
            self.share_paired = number / len(names)
            own = {name: values[part] for name, values in table.items()}
            group = own["side"] if across else own["side"] * (len(keys) + 2) + own["prompt"]
            user_key = np.uint64(hash64(self.seed, user))
            winners, losers = candidate_pairs(
                own["rating"], group, own["side"], entry_key[part] ^ user_key, min_gap, cap, dropped
            )
            dropped[USER_WITHOUT_A_PAIR] += not len(winners)
            if continuous and len(winners):
                scale = own["rating"] / max(
                    np.abs(own["rating"]).max(), 1e-300
                )  # squares of what is huge are infinite
                close += int((scale[winners] - scale[losers] < _CLOSE * scale.std()).sum())
                given += len(winners)
                self.close_share = close / given
            for winner, loser in zip(winners.tolist(), losers.tolist()):
                entries = [{name: values[i].item() for name, values in own.items()} for i in (winner, loser)]
                row = self._row(user, *entries, default_prompt, owned)
                yield {**row, "_file": files[entries[0]["file"]], "_row": entries[0]["row"]}

    def _averaged(self, dropped: Counter) -> dict[str, np.ndarray]:
        """Columns of the ratings, ordered by user; a response that a user rated several times has the mean."""
        table = {
            "user": np.array(self.users, dtype=np.int64),
            "prompt": np.array(self.prompts, dtype=np.int64),
            "response": np.array(self.responses, dtype=np.int64),
            "file": np.array(self.files, dtype=np.int64),
            "row": np.array(self.rows, dtype=np.int64),
            "own": np.array(self.own_items, dtype=np.int64),
        }
        ratings = np.array(self.ratings)
        order = np.lexsort((np.arange(len(ratings)), table["response"], table["prompt"], table["user"]))
        new = np.ones(len(order), dtype=bool)
        for position, column in enumerate(("user", "prompt", "response")):
            change = np.diff(table[column][order]) != 0
            new[1:] = change if position == 0 else new[1:] | change
        starts = np.flatnonzero(new)
        dropped["repeated_rating_averaged"] += len(order) - len(starts)
        table = {name: values[order[starts]] for name, values in table.items()}
        counts = np.diff(np.append(starts, len(order)))
        table["rating"] = np.add.reduceat(ratings[order], starts) / counts if len(starts) else ratings
        return table

    def _permuted(self, table: dict[str, np.ndarray], dropped: Counter) -> dict[str, np.ndarray]:
        item = table["prompt"] * (len(self.texts.keys) + 1) + table["response"]
        keep = placebo.several_judges(item, table["user"])
        dropped[placebo.DROPPED] += int((~keep).sum())
        table = {name: values[keep] for name, values in table.items()}
        table["rating"] = placebo.permute_within(item[keep], table["rating"], self.seed)
        return table

    def _sides(self, table: dict[str, np.ndarray], split: SplitConfig | None) -> np.ndarray:
        """(n,) 0 for entries on seen items, 1 on unseen ones, -1 for an entry with items of both kinds."""
        if split is None:
            return np.zeros(len(table["user"]), dtype=np.int64)
        if self.items in ("prompt", "responses"):
            column = table["prompt" if self.items == "prompt" else "response"]
            numbers, inverse = np.unique(column, return_inverse=True)
            sides = [split.item_unseen(self._item(number)) for number in numbers.tolist()]
            return np.array(sides, dtype=np.int64)[inverse]
        sides = []
        for items in self.item_number:
            unseen = {split.item_unseen(item) for item in items}
            sides.append(-1 if len(unseen) == 2 else int(unseen.pop()))
        return np.array(sides, dtype=np.int64)[table["own"]]

    def _item(self, number: int) -> str:
        return f"{'p' if self.items == 'prompt' else 'r'}-{self.texts.item_keys[number]:016x}"

    def _row(self, user: str, winner: dict, loser: dict, default_prompt: str, owned: list) -> dict[str, Any]:
        chosen, rejected = self.texts.get(winner["response"]), self.texts.get(loser["response"])
        if winner["prompt"] < 0:
            prompt = messages(default_prompt, "user")
        elif winner["prompt"] == loser["prompt"]:
            prompt = self.texts.get(winner["prompt"])
        else:
            prompt = messages(ACROSS_PROMPT, "system")
            chosen = self.texts.get(winner["prompt"]) + chosen
            rejected = self.texts.get(loser["prompt"]) + rejected
        if self.items in ("prompt", "responses"):
            name = "prompt" if self.items == "prompt" else "response"
            items = [self._item(entry[name]) for entry in (winner, loser)]
        else:
            items = [item for entry in (winner, loser) for item in owned[entry["own"]]]
        texts = [entry[name] for entry in (winner, loser) for name in ("prompt", "response")]
        keys = [self.texts.keys[number] if number >= 0 else 0 for number in texts]
        return {
            "user_id": user,
            "pair_id": f"{hash64(user, *keys):016x}",
            "item_ids": list(dict.fromkeys(items)),
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
        }


def candidate_pairs(
    ratings: np.ndarray,
    group: np.ndarray,
    side: np.ndarray,
    keys: np.ndarray,
    min_gap: float,
    cap: int | None,
    dropped: Counter,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of one user's ratings within a group.

    Args:
        ratings: (n,) floats.
        group: (n,) entries are paired within the same group.
        side: (n,) the cap holds for each side on its own; groups do not span sides.
        keys: (n,) uint64, a hash of each entry that does not depend on its position.
        min_gap: Least difference; equal ratings are never paired.
        cap: Most pairs a side, those with the least hash; None for all.
        dropped: Counts ties, pairs below the gap and above the cap.

    Returns:
        (m,) positions of the higher and of the lower rated entries, ordered by hash.
    """
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for one in np.unique(side):
        best = [np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)]
        pending = 0
        found = [best]
        for i, j in _index_pairs(np.flatnonzero(side == one), group):
            gap = np.abs(ratings[i] - ratings[j])
            tie = gap < 1e-12
            enough = ~tie & (gap >= min_gap - 1e-9)
            dropped["tie"] += int(tie.sum())
            dropped["below_min_gap"] += int((~tie & ~enough).sum())
            i, j = i[enough], j[enough]
            pair = _mix(np.minimum(keys[i], keys[j]) + _mix(np.maximum(keys[i], keys[j])))
            found.append([pair, i, j])
            pending += len(i)
            if cap is not None and pending > max(cap, _BLOCK):
                found, pending = [_least(found, cap, dropped)], cap
        kept.append(_least(found, cap, dropped))
    if not kept:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, i, j = (np.concatenate(parts) for parts in zip(*kept))
    higher = ratings[i] > ratings[j]
    return np.where(higher, i, j), np.where(higher, j, i)


def _n_pairs(group: np.ndarray) -> int:
    """Pairs of entries of the same group."""
    sizes = np.unique(group, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def _index_pairs(entries: np.ndarray, group: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of entries of the same group, in blocks."""
    order = entries[np.argsort(group[entries], kind="stable")]
    bounds = np.append(np.flatnonzero(np.diff(group[order], prepend=np.nan)), len(order))
    for start, end in itertools.pairwise(bounds):
        members = order[start:end]
        step = max(1, _BLOCK // len(members))
        for first in range(0, len(members), step):
            rows = np.arange(first, min(first + step, len(members)))
            i, j = np.nonzero(rows[:, None] < np.arange(len(members))[None, :])
            if len(i):
                yield members[rows[i]], members[j]


def _least(found: list, cap: int | None, dropped: Counter) -> list[np.ndarray]:
    pair, i, j = (np.concatenate(parts) for parts in zip(*found))
    order = np.lexsort((j, i, pair))
    if cap is not None and len(order) > cap:
        dropped["above_cap"] += len(order) - cap
        order = order[:cap]
    return [pair[order], i[order], j[order]]


def _mix(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: a fast 64-bit hash of 64-bit numbers."""
    values = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
