"""Styles: answers written by a grammar with seven attributes, and users who weigh the attributes differently.

An answer says how to do something in two or three steps, and has or lacks each attribute of `ATTRIBUTES`. Having an
attribute and lacking it have a lexical field each and sixteen sentences that realise it, so that a frozen sentence
encoder can find it; unseen items are other tasks, answered in other sentences (`styles.json`, all of our own). The
sentences are terse and the fields narrow on purpose: in looser wordings the encoder, not the method, is what is
measured. A user's true reward is
w . a, with a the answer's attributes (0 or 1) and w the user's weights: (1 - disagreement) * shared + disagreement * z,
z drawn from N(0, I) for each user, or for each of a few types. The preferred answer is chosen with probability
label_noise + (1 - 2 label_noise) * sigmoid(margin / temperature); temperature 0 is the sign of the margin. The posterior
of w given k choices, and so the best accuracy that any method can reach, is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np

from ...errors import ConfigError
from ..pairing import by_hash
from ..schema import messages
from ..sources.origin import parameters
from ..splits import hash64, unit_hash
from .base import Population

ATTRIBUTES = ("length", "formality", "warmth", "structure", "humour", "hedging", "examples")
# What everybody weighs alike; the rest is the user's own.
SHARED = (0.5, 0.0, 1.0, 1.0, 0.0, -1.0, 0.5)
_LIKES = {
    "length": ("long and detailed answers", "short answers"),
    "formality": ("formal language", "casual language"),
    "warmth": ("warmth", "a matter-of-fact tone"),
    "structure": ("numbered lists", "plain prose"),
    "humour": ("jokes", "seriousness"),
    "hedging": ("caution in claims", "certainty"),
    "examples": ("examples of people", "answers without examples"),
}


@dataclass
class Styles(Population):
    name: ClassVar[str] = "styles"
    summary: ClassVar[str] = (
        "generated: answers with seven attributes, users with weights on them, exact ceiling known"
    )
    example: ClassVar[str] = "--users_are types --n_types 4"

    users_are: Literal["continuous", "types"] = field(
        default="continuous", metadata={"help": "weights of each user's own, or those of one of a few types"}
    )
    n_types: int = field(default=4, metadata={"help": "number of types, two by two opposite"})
    n_users: int = field(default=1000, metadata={"help": "number of users"})
    pairs_per_user: int = field(default=64, metadata={"help": "pairs on seen prompts that a user judges"})
    unseen_pairs_per_user: int = field(default=16, metadata={"help": "pairs on unseen prompts that a user judges"})
    disagreement: float = field(
        default=0.8, metadata={"help": "0: all users have the same weights; 1: weights have nothing in common"}
    )
    label_noise: float = field(default=0.1, metadata={"help": "share of judgments that are turned around"})
    temperature: float = field(
        default=0.0, metadata={"help": "of the logistic choice between two answers; 0: the better one is chosen"}
    )
    n_prompts: int = field(default=100, metadata={"help": "number of prompts: up to 100 tasks in 4 wordings each"})
    responses_per_prompt: int = field(default=24, metadata={"help": "answers written to each prompt"})
    pairs_per_prompt: int = field(
        default=12, metadata={"help": "distinct pairs of a prompt's answers, which users share"}
    )
    placebo: bool = field(
        default=False, metadata={"help": "permute the choices among the users who judged the same pair"}
    )
    seed: int = field(default=0, metadata={"help": "of everything that is drawn"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.users_are not in ("continuous", "types"):
            raise ConfigError(f"`users_are` is {self.users_are[:20]!r}: expected `continuous` or `types`")
        most = len(_bank()["topics"]) * len(_bank()["prompts"])
        for name, least, limit in (
            ("n_users", 4, None),
            ("n_types", 2, None),
            ("pairs_per_user", 1, None),
            ("unseen_pairs_per_user", 0, None),
            ("n_prompts", 4, most),
            ("responses_per_prompt", 2, 2 ** len(ATTRIBUTES)),
            ("pairs_per_prompt", 1, None),
        ):
            value = getattr(self, name)
            if value < least or (limit is not None and value > limit):
                bounds = f"at least {least}" if limit is None else f"{least} to {limit}"
                raise ConfigError(f"`{name}` is {value}: {bounds} is expected")
        if not 0 <= self.label_noise < 0.5:
            raise ConfigError(f"`label_noise` is {self.label_noise}: a share in [0, 0.5) is expected")
        if not 0 <= self.disagreement <= 1:
            raise ConfigError(f"`disagreement` is {self.disagreement}: a share in [0, 1] is expected")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"`temperature` is {self.temperature}: 0 or a positive number is expected")

    # Source

    def users(self) -> Iterator[dict[str, Any]]:
        """What each user likes, in words as `profile`; the weights and the type as `attributes`."""
        for number in range(self.n_users):
            weights = self.weights(number)
            attributes: dict[str, Any] = {"weights": dict(zip(ATTRIBUTES, weights.round(4).tolist()))}
            if self.users_are == "types":
                attributes["type"] = str(number % self.n_types)
            yield {"user_id": _user_id(number), "profile": _profile(weights), "attributes": attributes}

    def truth(self) -> Iterator[dict[str, Any]] | None:
        """`delta` (7,): chosen minus rejected in `ATTRIBUTES`; the user's true `reward_margin`."""
        return None if self.placebo else (truth for _, truth in self._judgments())

    def truth_info(self) -> dict[str, Any]:
        if self.placebo:
            return {}
        info: dict[str, Any] = {
            "population": self.name,
            "kind": self.users_are,
            "attributes": list(ATTRIBUTES),
            "label_noise": self.label_noise,
            "temperature": self.temperature,
        }
        if self.users_are == "types":
            weights = [self.weights(number).tolist() for number in range(self.n_types)]
            info["types"] = [{"name": str(i), "weights": w} for i, w in enumerate(weights)]
            info["probabilities"] = [1 / self.n_types] * self.n_types
            info["users"] = {_user_id(number): number % self.n_types for number in range(self.n_users)}
        else:
            info["mean"] = ((1 - self.disagreement) * np.array(SHARED)).tolist()
            info["covariance"] = (self.disagreement**2 * np.eye(len(ATTRIBUTES))).tolist()
            info["users"] = {_user_id(number): self.weights(number).tolist() for number in range(self.n_users)}
        return info

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "title": "Styles: generated users with weights on attributes of answers",
            "version": "1",
            "parameters": parameters(self),
            "licence": "Apache-2.0",
            "attribution": "pluralrlhf; the texts were written for it.",
        }

    # Population

    def weights(self, user: int) -> np.ndarray:
        """(7,) true weights of the user of this number."""
        if self.users_are == "continuous":
            own = _normal("user", self.seed, user)
        else:
            # Two by two opposite, so that no type is everybody's second best.
            kind = user % self.n_types
            own = _normal("type", self.seed, kind // 2) * (-1) ** (kind % 2)
        return (1 - self.disagreement) * np.array(SHARED) + self.disagreement * own

    def _judgments(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """`(row, truth)` of each judgment."""
        sides: dict[bool, list[int]] = {False: [], True: []}
        for number in range(self.n_prompts):
            sides[self._is_unseen(number)].append(number)
        pools = {
            prompt: self._pool(prompt, unseen and bool(sides[True])) for unseen in sides for prompt in sides[unseen]
        }
        for user in range(self.n_users):
            weights = self.weights(user)
            for unseen, count in ((False, self.pairs_per_user), (True, self.unseen_pairs_per_user)):
                for prompt, pair in _deal(pools, sides[unseen], count, ("styles deal", self.seed, user)):
                    yield self._judge(user, weights, prompt, pair, unseen)

    def _judge(self, user: int, weights: np.ndarray, prompt: int, pair: tuple, unseen: bool) -> tuple[dict, dict]:
        (i, first, text), (j, second, other) = pair
        delta = np.array(first, float) - np.array(second, float)
        margin = float(weights @ delta)
        draw = unit_hash("styles choice", self.seed, user, prompt, i, j)
        if draw >= choice_probability(margin, self.label_noise, self.temperature):
            text, other, delta, margin = other, text, -delta, -margin
        row = {
            "user_id": _user_id(user),
            "pair_id": f"{_user_id(user)}:{prompt:03d}-{i:02d}-{j:02d}",
            "item_ids": [self._item(prompt)],
            "prompt": messages(self._prompt(prompt), "user"),
            "chosen": messages(text),
            "rejected": messages(other),
            "_test_item": unseen,
        }
        return row, {"pair_id": row["pair_id"], "delta": delta.tolist(), "reward_margin": margin}

    # Prompts and answers

    def _item(self, prompt: int) -> str:
        """The task's id: its wordings are one item."""
        return f"task-{prompt % len(_bank()['topics']):03d}"

    def _is_unseen(self, prompt: int) -> bool:
        return self.split is not None and self.split.item_unseen(self._item(prompt))

    def _prompt(self, prompt: int) -> str:
        topics, wordings = _bank()["topics"], _bank()["prompts"]
        task, round_ = prompt % len(topics), prompt // len(topics)
        wording = wordings[(hash64("styles wording", self.seed, task) + round_) % len(wordings)]
        return wording.format(task=topics[task]["task"])

    def _pool(self, prompt: int, unseen: bool) -> list[tuple]:
        """The pairs of answers to a prompt, each `(number, attributes, text)`, that differ in an attribute."""
        answers, used = [], set()
        draw = 0
        while len(answers) < self.responses_per_prompt:
            bits = hash64("styles attributes", self.seed, prompt, draw)
            attributes = tuple(bits >> i & 1 for i in range(len(ATTRIBUTES)))
            draw += 1
            if attributes not in used:
                used.add(attributes)
                answers.append((len(answers), attributes, self._answer(prompt, attributes, unseen)))
        pairs = {f"{a[0]}-{b[0]}": (a, b) for a, b in combinations(answers, 2)}
        return [pairs[name] for name in by_hash(pairs, "styles pair", self.seed, prompt)[: self.pairs_per_prompt]]

    def _answer(self, prompt: int, attributes: tuple[int, ...], unseen: bool) -> str:
        """Writes an answer with these attributes."""
        key = ("styles", self.seed, prompt, *attributes)
        has = dict(zip(ATTRIBUTES, attributes))
        topic = _bank()["topics"][prompt % len(_bank()["topics"])]
        register = str(has["formality"])

        def pick(name: str, count: int = 1) -> list[str]:
            options = self._phrases(name, unseen)
            return [options[int(i)] for i in by_hash(map(str, range(len(options))), *key, name)[:count]]

        before, after = [], []
        for name in ATTRIBUTES:
            # Having an attribute and lacking it both have words, so that answers are of one length in sentences.
            opening, closing = pick(f"{name}.{has[name]}", 2)
            before.append(opening)
            after.append(closing)
        if has["length"]:
            after.append(pick("background")[0].format(**topic))
        if has["structure"]:
            item, marker = pick(f"item.{register}")[0], pick("marker")[0]
            steps = [marker.format(n=n, step=item.format(step=step)) for n, step in enumerate(topic["steps"], 1)]
            body, gap = "\n".join(steps), "\n"
        else:
            first, second, _ = topic["steps"]
            body, gap = pick(f"frame.{register}")[0].format(first=first, second=second), " "
        return gap.join([" ".join(by_hash(before, *key)), body, " ".join(by_hash(after, *key))])

    def _phrases(self, name: str, unseen: bool) -> list[str]:
        """The realisations that one side of the split may use: no sentence is on both."""
        options = _bank()["phrases"][name]
        if self.split is None or not any(self._is_unseen(prompt) for prompt in range(self.n_prompts)):
            return options
        names = [f"phrase {name} {number}" for number in range(len(options))]
        held = {n for n in names if self.split.item_unseen(n)}
        # Two sentences of a name may stand in one answer, and most should be left to learn from.
        order = by_hash(names, "styles phrases", self.split.seed, self.split.item_fold)
        held = set(sorted(held, key=order.index)[: len(names) // 3])
        held |= set([n for n in order if n not in held][: max(0, 2 - len(held))])
        return [option for n, option in zip(names, options) if (n in held) == unseen]


def choice_probability(margin: float | np.ndarray, label_noise: float, temperature: float) -> Any:
    """Probability that the first of two answers is chosen: label_noise + (1 - 2 label_noise) sigmoid(margin / temperature).

    Args:
        margin: True reward of the first minus the second, any shape.
        label_noise: Probability that a choice is turned around.
        temperature: 0 for a choice of the better one (1/2 at margin 0).
    """
    if temperature == 0:
        better = (np.sign(margin) + 1) / 2
    else:
        better = 0.5 * (1 + np.tanh(np.asarray(margin) / (2 * temperature)))
    return label_noise + (1 - 2 * label_noise) * better


@cache
def _bank() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("styles.json").read_text(encoding="utf-8"))


def _deal(pools: dict, prompts: list[int], count: int, salt: tuple) -> Iterator[tuple[int, tuple]]:
    """`count` pairs spread over the prompts: one of each prompt, then a second of each, and so on."""
    order = [int(name) for name in by_hash(map(str, prompts), *salt)]
    rounds = max((len(pools[prompt]) for prompt in order), default=0)
    for number in range(rounds):
        for prompt in order:
            if count and number < len(pools[prompt]):
                count -= 1
                turn = (number + hash64(*salt, prompt)) % len(pools[prompt])
                yield prompt, pools[prompt][turn]


def _normal(*key: object) -> np.ndarray:
    """(7,) standard normal numbers drawn by hash."""
    return np.random.default_rng(hash64("styles", *key)).standard_normal(len(ATTRIBUTES))


def _user_id(number: int) -> str:
    return f"user-{number:05d}"


def _profile(weights: np.ndarray) -> str:
    """The three strongest preferences in words."""
    order = np.argsort(-np.abs(weights))[:3]
    likes = [_LIKES[ATTRIBUTES[i]][0 if weights[i] > 0 else 1] for i in order]
    return f"This person likes {likes[0]} most of all, then {likes[1]}, then {likes[2]}."
