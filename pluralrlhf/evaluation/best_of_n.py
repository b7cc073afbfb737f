"""Best of n responses by a learned reward, judged by the true one: regret, and optimisation past the point of use.

For generated populations whose true reward is linear in known attributes (`styles`). What a policy trained against a
reward model would do in the limit, without training one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.history import UserHistory, mix, stable_hash
from ..errors import ConfigError
from .bootstrap import user_interval
from .controls import Context, ControlContexts
from .reference import Truth
from .scorers import RewardModelScorer

SIZES = (1, 2, 4, 8, 16, 32)


@dataclass
class Pool:
    """Responses to one prompt whose true rewards are known up to a constant of the prompt.

    Attributes:
        prompt: The prompt.
        responses: R responses.
        attributes: (R, a) attributes relative to the first response.
    """

    prompt: Any
    responses: list[Any]
    attributes: np.ndarray


def pools_of(splits, truth: Truth, split: str) -> list[Pool]:
    """The responses to each prompt of a split, with what distinguishes them.

    The truth of a pair is the difference of its responses' attributes; adding differences up along pairs that share a
    response gives every response of a connected set. The largest set of each prompt is kept, by prompt.
    """
    edges: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {}
    texts: dict[str, Any] = {}
    for row in splits[split]:
        prompt, chosen, rejected = (json.dumps(row[c], sort_keys=True) for c in ("prompt", "chosen", "rejected"))
        delta = np.asarray(truth.deltas[truth.delta[row["pair_id"]]], float)
        texts |= {prompt: row["prompt"], chosen: row["chosen"], rejected: row["rejected"]}
        graph = edges.setdefault(prompt, {})
        graph.setdefault(chosen, []).append((rejected, -delta))
        graph.setdefault(rejected, []).append((chosen, delta))
    pools = []
    for prompt in sorted(edges):
        graph, best = edges[prompt], {}
        left = sorted(graph)
        while left:
            place = {left[0]: np.zeros_like(next(iter(graph.values()))[0][1])}
            queue = [left[0]]
            while queue:
                at = queue.pop()
                for other, delta in graph[at]:
                    if other not in place:
                        place[other] = place[at] + delta
                        queue.append(other)
            left = [name for name in left if name not in place]
            best = place if len(place) > len(best) else best
        names = sorted(best)
        pools.append(Pool(texts[prompt], [texts[name] for name in names], np.stack([best[name] for name in names])))
    return pools


def true_weights(truth: Truth) -> dict[str, np.ndarray]:
    """User id to weights of the attributes."""
    info = truth.info
    if "types" in info:
        types = [np.asarray(kind["weights"], float) for kind in info["types"] if "weights" in kind]
        if len(types) != len(info["types"]):
            raise ConfigError("`data`: the types of this population have no weights on attributes. Use `styles`.")
        return {user: types[number] for user, number in info["users"].items()}
    return {user: np.asarray(weights, float) for user, weights in info["users"].items()}


def true_scorer(user: str, pool: Pool, weights: dict[str, np.ndarray]) -> np.ndarray:
    """(R,) true rewards of a pool's responses, up to a constant."""
    return pool.attributes @ weights[user]


@torch.inference_mode()
def best_of_n(
    scorers: Sequence[RewardModelScorer],
    data: str | Path,
    splits,
    history: UserHistory,
    *,
    split: str = "test_unseen_users_unseen_items",
    n_context: int = 8,
    sizes: Sequence[int] = SIZES,
    max_users: int = 100,
    max_prompts: int = 12,
    n_draws: int = 64,
    seed: int = 0,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Best of n by each method, judged by the users' true rewards.

    For every user and prompt, n of the responses are drawn without replacement and the one that the method scores
    highest for that user is judged. True rewards are standardised over the user's pool (mean 0, deviation 1), so that 0
    is a response drawn by lot.

    Args:
        scorers: Methods, and seeds of them.
        data: Folder of a dataset with a truth.
        splits: Its splits.
        history: Of the same splits.
        split: Split of the users and prompts.
        n_context: Pairs of the user that a method sees.
        sizes: Numbers of responses; those above the pools' smallest size are left out.
        max_users, max_prompts: Most users and prompts.
        n_draws: Draws of n responses for each user and prompt.
        seed: Seed of contexts and draws.
        show: Told how far it is.

    Returns:
        `sizes`, `n_users`, `pool` (responses in the smallest pool), `best` (what knowing the truth would reach) and
        `methods`: for each `true` (standardised true reward of what was picked), `regret` (distance from the best of
        the n) and `proxy` (the method's own reward of what was picked, standardised likewise), one entry a size with
        intervals over users; and `over_optimisation`, how far `true` falls from its highest size to the largest, paired
        over users (above 0: optimising further did harm).
    """
    if not split.endswith("unseen_items"):
        raise ConfigError(f"`split` is {split!r}: best of n needs prompts that no context holds, as on unseen items.")
    truth = Truth.load(data)
    weights = true_weights(truth)
    pools = sorted(pools_of(splits, truth, split), key=lambda p: -len(p.responses))[:max_prompts]
    smallest = min(len(pool.responses) for pool in pools)
    asked, sizes = sizes, sorted({int(n) for n in sizes if 1 <= n <= smallest})
    if not sizes:
        raise ConfigError(
            f"`sizes` holds {', '.join(map(str, asked))}, but a prompt has only {smallest} responses: give 1 to {smallest}."
        )
    rows = history.rows(split)
    salt = np.uint64(stable_hash(f"best of n:{seed}"))
    rows = rows[np.argsort(mix(history.user_key[history.user[rows]], salt), kind="stable")]
    one = rows[np.sort(np.unique(history.user[rows], return_index=True)[1])][:max_users]
    users = [history.users[history.user[row]] for row in one]
    # Targets on unseen items share none with their contexts: one state serves all prompts.
    own = ControlContexts(history, split, seed=seed).own(one, n_context)
    rng = np.random.default_rng(seed)
    drawn = [
        [np.argsort(rng.random((n_draws, len(pool.responses))), axis=1)[:, : sizes[-1]] for pool in pools]
        for _ in users
    ]
    gold = [[_standard(true_scorer(user, pool, weights)) for pool in pools] for user in users]
    best = np.array(
        [[[g[d[:, :n]].max(1).mean() for n in sizes] for g, d in zip(gs, ds)] for gs, ds in zip(gold, drawn)]
    ).mean(1)
    found: dict[str, list[np.ndarray]] = {}
    for scorer in scorers:
        scorer.prepare(own.index.reshape(-1))
        state = scorer.encode(Context(own.index, own.flipped))
        values = np.zeros((len(users), len(pools), len(sizes), 2))
        for p, pool in enumerate(pools):
            rewards = scorer.model.score_matrix(state, [pool.prompt] * len(pool.responses), pool.responses)
            rewards = rewards.double().cpu().numpy()
            for u in range(len(users)):
                proxy, d = _standard(rewards[u]), drawn[u][p]
                for s, n in enumerate(sizes):
                    picked = np.take_along_axis(d[:, :n], proxy[d[:, :n]].argmax(1)[:, None], axis=1)[:, 0]
                    values[u, p, s] = gold[u][p][picked].mean(), proxy[picked].mean()
            show(f"best of n: {scorer.method}, prompt {p + 1} of {len(pools)}")
        found.setdefault(scorer.method, []).append(values.mean(1))
    methods = {}
    for method, seeds in found.items():
        values = np.mean(seeds, axis=0)
        true, top = values[..., 0], int(values[..., 0].mean(0).argmax())
        methods[method] = {
            "true": [user_interval(true[:, s], seed) for s in range(len(sizes))],
            "regret": [user_interval(best[:, s] - true[:, s], seed) for s in range(len(sizes))],
            "proxy": [user_interval(values[:, s, 1], seed) for s in range(len(sizes))],
            "over_optimisation": user_interval(true[:, top] - true[:, -1], seed),
            "best_size": sizes[top],
        }
    return {
        "sizes": sizes,
        "n_context": n_context,
        "n_users": len(users),
        "pool": smallest,
        "best": best.mean(0).tolist(),
        "methods": methods,
    }


def _standard(values: np.ndarray) -> np.ndarray:
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)
