"""Pets: users who all like one animal best, and disagree on every contested pair.

Users come in couples of opposite taste who judge exactly the same pairs, with the same label noise, and fall on the
same side of every split. A model that does not know the user is right for one of a couple wherever it is wrong for the
other: on contested pairs its accuracy is one half in every split, whatever it has learned. A model that finds out the
user's animal is right on all of them. The sentences (`pets.json`) are our own; a sentence is an item, so that unseen
items are sentences that no training pair shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any, ClassVar, Literal

from ...errors import ConfigError
from ..pairing import by_hash, spread_pairs
from ..schema import messages
from ..sources.origin import parameters
from ..splits import hash64, unit_hash
from .base import Population

ANIMALS = ("cat", "dog", "rabbit", "bird")
ATTRIBUTES = (*ANIMALS, "kindness")
# Rankings, best first. Two by two they are opposite: what one of a couple prefers, the other does not.
RANKINGS = {
    2: (("cat", "dog"), ("dog", "cat")),
    4: (
        ("cat", "dog", "rabbit", "bird"),
        ("bird", "rabbit", "dog", "cat"),
        ("dog", "bird", "cat", "rabbit"),
        ("rabbit", "cat", "bird", "dog"),
    ),
}
SHIFTED = (("rabbit", "bird"), ("bird", "rabbit"))
KINDNESS = 10.0  # of every user: a kind sentence is better than an unkind one, whatever the animals


@dataclass
class Pets(Population):
    name: ClassVar[str] = "pets"
    summary: ClassVar[str] = "generated: cat people and dog people, who disagree on every contested pair"
    example: ClassVar[str] = ""

    n_users: int = field(default=200, metadata={"help": "number of users, an even number: they come in couples"})
    n_types: Literal[2, 4] = field(
        default=2, metadata={"help": "cat and dog people, or rabbit and bird people as well"}
    )
    pairs_per_user: int = field(default=48, metadata={"help": "pairs of seen sentences that a user judges"})
    unseen_pairs_per_user: int = field(default=12, metadata={"help": "pairs of unseen sentences that a user judges"})
    n_pairs: int = field(default=300, metadata={"help": "distinct pairs of seen sentences, which users share"})
    label_noise: float = field(default=0.0, metadata={"help": "share of judgments that are turned around"})
    agreed_share: float = field(
        default=0.0, metadata={"help": "share of pairs on which all agree: a kind over an unkind sentence"}
    )
    shift: bool = field(
        default=False,
        metadata={"help": "train on cat and dog people, test on rabbit and bird people (on other pairs)"},
    )
    placebo: bool = field(
        default=False, metadata={"help": "permute the choices among the users who judged the same pair"}
    )
    seed: int = field(default=0, metadata={"help": "of everything that is drawn"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_users < 4 or self.n_users % 2:
            raise ConfigError(f"`n_users` is {self.n_users}: an even number of at least 4 is expected")
        if self.n_types not in RANKINGS:
            raise ConfigError(f"`n_types` is {self.n_types}: expected 2 or 4")
        if self.shift and self.n_types != 2:
            raise ConfigError("`shift` trains on two types and tests on two others: leave `n_types` at 2")
        for name in ("pairs_per_user", "unseen_pairs_per_user", "n_pairs"):
            if getattr(self, name) < (0 if name == "unseen_pairs_per_user" else 1):
                raise ConfigError(f"`{name}` is {getattr(self, name)}: a larger number is expected")
        if not 0 <= self.label_noise < 0.5:
            raise ConfigError(f"`label_noise` is {self.label_noise}: a share in [0, 0.5) is expected")
        if not 0 <= self.agreed_share <= 1:
            raise ConfigError(f"`agreed_share` is {self.agreed_share}: a share in [0, 1] is expected")

    def users(self) -> Iterator[dict[str, Any]]:
        """A sentence on each user's taste as `profile`; the favourite animal and the ranking as `attributes`."""
        for couple in range(self.n_users // 2):
            for user, ranking in self._members(couple):
                profile = f"This person likes {ranking[0]}s more than any other pet, and {ranking[-1]}s least."
                yield {
                    "user_id": user,
                    "profile": profile,
                    "attributes": {"type": ranking[0], "ranking": list(ranking)},
                }

    def truth(self) -> Iterator[dict[str, Any]] | None:
        """`delta` (5,): chosen minus rejected in `ATTRIBUTES`; the user's true `reward_margin`; whether `contested`."""
        return None if self.placebo else (truth for _, truth in self._judgments())

    def truth_info(self) -> dict[str, Any]:
        if self.placebo:
            return {}
        types = (*RANKINGS[self.n_types], *(SHIFTED if self.shift else ()))
        known = len(RANKINGS[self.n_types])
        prior = [1 / known] * known + [0.0] * (len(types) - known)
        info = {
            "population": self.name,
            "kind": "types",
            "attributes": list(ATTRIBUTES),
            "types": [{"name": ranking[0], "weights": _weights(ranking)} for ranking in types],
            "probabilities": prior,
            "label_noise": self.label_noise,
            "temperature": 0.0,
            "users": {
                user: types.index(ranking)
                for couple in range(self.n_users // 2)
                for user, ranking in self._members(couple)
            },
        }
        if self.shift:
            info["test_probabilities"] = prior[::-1]
        return info

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "title": "Pets: generated users of opposite taste",
            "version": "1",
            "parameters": parameters(self),
            "licence": "Apache-2.0",
            "attribution": "pluralrlhf; the sentences were written for it.",
        }

    def _shifted(self, couple: int) -> bool:
        if not self.shift:
            return False
        if self.split is None:
            return couple >= 0.8 * (self.n_users // 2)
        return self.split.user_partition(_couple_key(couple)) == "test"

    def _members(self, couple: int) -> list[tuple[str, tuple[str, ...]]]:
        """The two user ids of a couple, which do not tell the type, and their rankings."""
        types = SHIFTED if self._shifted(couple) else RANKINGS[self.n_types]
        first = 2 * (couple % (len(types) // 2))
        rankings = [types[first], types[first + 1]]
        if hash64("pets order", self.seed, couple) % 2:
            rankings.reverse()
        return [(f"user-{2 * couple + i:05d}", ranking) for i, ranking in enumerate(rankings)]

    def _pool(self, animals: tuple[str, ...], unseen: bool) -> list[tuple[tuple, tuple]]:
        """Pairs of sentences `(item id, animal, kind, text)` on one side of the split, in an order drawn by hash."""
        sentences: dict[tuple[str, int], list[tuple]] = {}
        for kind, group in ((1, "kind"), (0, "unkind")):
            for animal in animals:
                for number, text in enumerate(_bank()[group][animal]):
                    # An unkind wording is the same for all animals: one item, so that it is on one side of the split.
                    item = f"{animal}-{number:02d}" if kind else f"unkind-{number:02d}"
                    if (self.split is not None and self.split.item_unseen(item)) == unseen:
                        sentences.setdefault((animal, kind), []).append((item, animal, kind, text))
        for key, members in sentences.items():
            members.sort(key=lambda sentence: hash64("pets sentence", self.seed, *key, sentence[0]))
        contested_only = self.n_pairs - round(self.agreed_share * self.n_pairs)
        contests = list(combinations(animals, 2))
        pool: list[tuple[tuple, tuple]] = []
        for number, (a, b) in enumerate(contests):
            quota = _share(contested_only, len(contests), number)
            pool += spread_pairs(sentences.get((a, 1), []), sentences.get((b, 1), []), quota)
        for number, animal in enumerate(animals):
            quota = _share(self.n_pairs - contested_only, len(animals), number)
            pool += spread_pairs(sentences.get((animal, 1), []), sentences.get((animal, 0), []), quota)
        return pool

    def _judgments(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """`(row, truth)` of each judgment."""
        pools: dict[tuple, dict[str, tuple]] = {}
        for couple in range(self.n_users // 2):
            key = _couple_key(couple)
            members = self._members(couple)
            animals = tuple(animal for animal in ANIMALS if animal in members[0][1])
            for unseen, count in ((False, self.pairs_per_user), (True, self.unseen_pairs_per_user)):
                if (animals, unseen) not in pools:
                    pairs = self._pool(animals, unseen)
                    pools[animals, unseen] = {f"{a[0]}+{b[0]}+{b[1]}": (a, b) for a, b in pairs}
                pool = pools[animals, unseen]
                for name in by_hash(pool, "pets pair", self.seed, key)[:count]:
                    yield from self._judge(members, key, pool[name], unseen)

    def _judge(self, members: list, key: str, pair: tuple, unseen: bool) -> Iterator[tuple[dict, dict]]:
        """Both judgments of a couple on one pair; noise turns both around, so that the couple still disagrees."""
        items = sorted(sentence[0] for sentence in pair)
        # Not keyed by the couple: many users judge the same prompt with the same two sentences.
        prompt = self._prompt("+".join(items), unseen)
        noise = unit_hash("pets noise", self.seed, key, *(sentence[3] for sentence in pair)) < self.label_noise
        for user, ranking in members:
            weights = _weights(ranking)
            values = [_value(sentence, weights) for sentence in pair]
            chosen, rejected = pair if (values[0] > values[1]) != noise else pair[::-1]
            row = {
                "user_id": user,
                "pair_id": f"{user}:{items[0]}+{items[1]}+{pair[1][1]}",
                "item_ids": items,
                "prompt": prompt,
                "chosen": messages(chosen[3]),
                "rejected": messages(rejected[3]),
                "_test_item": unseen,
                "_split_key": key,
            }
            delta = [a - b for a, b in zip(_attributes(chosen), _attributes(rejected))]
            truth = {
                "pair_id": row["pair_id"],
                "delta": delta,
                "reward_margin": sum(d * w for d, w in zip(delta, weights)),
                "contested": pair[0][1] != pair[1][1],
            }
            yield row, truth

    def _prompt(self, pair: str, unseen: bool) -> list[dict[str, str]]:
        prompts = _bank()["prompts"]
        side = [i for i in range(len(prompts)) if self._unseen_prompt(i) == unseen] or list(range(len(prompts)))
        number = side[hash64("pets prompt", self.seed, pair) % len(side)]
        return messages(prompts[number], "user")

    def _unseen_prompt(self, number: int) -> bool:
        return self.split is not None and self.split.item_unseen(f"prompt-{number:02d}")


@cache
def _bank() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("pets.json").read_text(encoding="utf-8"))


def _couple_key(couple: int) -> str:
    return f"couple-{couple:05d}"


def _weights(ranking: tuple[str, ...]) -> list[float]:
    """(5,) a type's weights: each animal by its rank (animals that the type never meets weigh 0), and kindness."""
    return [float(len(ranking) - ranking.index(a)) if a in ranking else 0.0 for a in ANIMALS] + [KINDNESS]


def _attributes(sentence: tuple) -> list[float]:
    return [float(sentence[1] == animal) for animal in ANIMALS] + [float(sentence[2])]


def _value(sentence: tuple, weights: list[float]) -> float:
    return sum(a * w for a, w in zip(_attributes(sentence), weights))


def _share(total: int, parts: int, number: int) -> int:
    """How many of `total` the part of this number gets, when they are dealt out evenly."""
    return total // parts + (number < total % parts)
