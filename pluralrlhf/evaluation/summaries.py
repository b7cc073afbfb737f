"""What summaries say, beside how well they predict: faithfulness read by rule, controls, and copying.

Accuracy alone hides private codes: two models that train together can agree that "likes dogs" means a cat lover.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..trainers.summarizer_start import Topics
from .bootstrap import user_interval

_CLAUSE = re.compile(r"[.;,!?]|\b(?:and|but|while|whereas)\b")
_NEGATION = re.compile(r"\b(?:not|never|no|don't|doesn't|dislikes?|hates?|avoids?|least|last|worst|less)\b")
_COMPARISON = re.compile(r"\b(?:more than|better than|rather than|instead of|over|than|to)\b")
_LIKING = re.compile(r"\b(?:likes?|loves?|prefers?|best|most|favou?rites?|enjoys?|please[sd]?|wants?|more|better)\b")


def stated_order(text: str, topics: Topics) -> tuple[set[str], set[str]]:
    """Topics that a text says are preferred, and topics that it says are not.

    A comparison ("more than", "to", "over") divides a clause: what stands before it is preferred to what stands after,
    and the other way round where what stands before is negated ("less than"). Elsewhere a clause's negation or its word
    of liking decides. A text that names topics without any such word states nothing.
    """
    liked: set[str] = set()
    disliked: set[str] = set()
    last: set[str] | None = None
    for clause in _CLAUSE.split(text.lower()):
        spans = topics.spans(clause)
        if not spans:
            continue
        split = next((m for m in _COMPARISON.finditer(clause) if spans[0][1] <= m.start() < spans[-1][0]), None)
        if split is not None and (_LIKING.search(clause) or _NEGATION.search(clause)):
            turned = bool(_NEGATION.search(clause[: split.end()]))
            for start, _, topic in spans:
                (liked if (start < split.start()) != turned else disliked).add(topic)
            continue
        # "cats and birds": what has no word of its own goes with what came before.
        last = disliked if _NEGATION.search(clause) else liked if _LIKING.search(clause) else last
        if last is not None:
            last.update(topic for *_, topic in spans)
    return liked - disliked, disliked - liked


@dataclass(frozen=True)
class Faithfulness:
    """How one text stands to a user's true ranking.

    Attributes:
        states: Whether it states any order of two topics, or a like or dislike of one.
        true: Whether everything that it states holds: each liked topic is above each disliked one, and a like (dislike)
            alone is in the upper (lower) half.
        favourite: Whether the user's first topic is among the liked ones, and no lower one is.
    """

    states: bool
    true: bool
    favourite: bool


def faithfulness(text: str, ranking: Sequence[str], topics: Topics) -> Faithfulness:
    """Reads a text by rule and compares it with the true ranking, best first."""
    liked, disliked = stated_order(text, topics)
    rank = {topic: number for number, topic in enumerate(ranking)}
    liked, disliked = {t for t in liked if t in rank}, {t for t in disliked if t in rank}
    if not liked and not disliked:
        return Faithfulness(False, False, False)
    if liked and disliked:
        true = max(rank[t] for t in liked) < min(rank[t] for t in disliked)
    else:
        half = (len(ranking) - 1) / 2
        true = all(rank[t] < half for t in liked) and all(rank[t] > half for t in disliked)
    return Faithfulness(True, true, liked == {ranking[0]})


def swap_topics(text: str, topics: Topics) -> str:
    """The text with the liked and the disliked topics in each other's place: the edit that should turn rewards round."""
    liked, disliked = (sorted(side) for side in stated_order(text, topics))
    if not liked or not disliked:
        return text
    other = dict(zip(liked, disliked)) | dict(zip(disliked, liked))
    out, end = [], 0
    for start, stop, topic in topics.spans(text):
        out += [text[end:start], topics.name(other[topic]) if topic in other else text[start:stop]]
        end = stop
    return "".join([*out, text[end:]])


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """Word n-grams, in lower case and without punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlap(text: str, responses: Sequence[str], n: int = 4) -> float:
    """Share of a text's word n-grams that stand in any of the responses; 0 for a text of fewer than `n` words."""
    own = ngrams(text, n)
    if not own:
        return 0.0
    found = set().union(*(ngrams(response, n) for response in responses)) if responses else set()
    return len(own & found) / len(own)


def copying(
    texts: Sequence[str], own: Sequence[Sequence[str]], other: Sequence[Sequence[str]], n: int = 4
) -> dict[str, Any]:
    """How much summaries share with target responses that they must not know.

    Args:
        texts: One summary a user.
        own: Each user's target responses.
        other: Responses of the same kind that are not the user's targets: what chance and the language give.
        n: Words in an n-gram.

    Returns:
        `own`, `other` (mean overlaps), `excess` (their difference by user, with an interval over users), and `leak`: true
        where the excess is above 0.05 and its interval above 0.
    """
    mine = np.array([overlap(text, responses, n) for text, responses in zip(texts, own)])
    theirs = np.array([overlap(text, responses, n) for text, responses in zip(texts, other)])
    excess = user_interval(mine - theirs)
    leak = bool(excess["value"] > 0.05 and excess["ci95"] is not None and excess["ci95"][0] > 0)
    return {"n": n, "own": float(mine.mean()), "other": float(theirs.mean()), "excess": excess, "leak": leak}


def by_user(values: np.ndarray, owner: np.ndarray, n_users: int) -> np.ndarray:
    """(n_users,) mean of the values of each user."""
    return np.bincount(owner, values, n_users) / np.maximum(1, np.bincount(owner, minlength=n_users))


def others(types: Sequence[Any], seed: int = 0) -> np.ndarray:
    """For each user another one: a fixed random cycle, so that nobody keeps their own."""
    order = np.random.default_rng(seed).permutation(len(types))
    out = np.empty(len(types), np.int64)
    out[order] = np.roll(order, 1)
    return out


def rankings(users: Sequence[Mapping[str, Any]] | None) -> dict[str, list[str]]:
    """User id to true ranking of topics, for populations that know it (`attributes.ranking`)."""
    import json

    out = {}
    for user in users or ():
        attributes = json.loads(user["attributes"]) if user.get("attributes") else {}
        if isinstance(attributes, dict) and isinstance(attributes.get("ranking"), list):
            out[user["user_id"]] = attributes["ranking"]
    return out
