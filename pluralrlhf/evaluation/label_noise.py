"""How much wrong labels in a user's context cost: from none to a coin flip for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.history import mix, stable_hash, unit_interval
from ..metrics import correct
from .bootstrap import user_interval
from .controls import Context, ControlContexts
from .evaluation_data import EvaluationData
from .scorers import Scorer
from .summaries import by_user

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_CHUNK = 512


def label_noise_curve(
    scorers: Sequence[Scorer],
    data: EvaluationData,
    split: str,
    *,
    n_context: int = 8,
    rates: Sequence[float] = RATES,
    max_users: int = 200,
    max_pairs: int = 24,
    seed: int = 0,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Accuracy when each label of the context is wrong with some probability.

    A label that is wrong at one rate is wrong at all higher ones. At 0.5 the labels say nothing about the user, and a
    method that could notice it would fall back to its reward for everybody.

    Args:
        scorers: Methods, and seeds of them.
        data: Histories behind the contexts.
        split: Split of the targets.
        n_context: Context pairs.
        rates: Probabilities of a wrong label.
        max_users, max_pairs: Most users, and targets of each, in the order of a hash.
        seed: Seed of contexts and of what is wrong.

    Returns:
        Method to `rates`, `accuracy` (one interval over users a rate), `empty` (the same without any context) and
        `users` (rates, U), accuracies by user for paired comparisons, seeds averaged.
    """
    history = data.history
    salt = np.uint64(stable_hash(f"label noise:{seed}"))
    rows = history.rows(split)
    order = np.lexsort((mix(history.pair_key[rows], salt), mix(history.user_key[history.user[rows]], salt)))
    rows = rows[order]
    user = history.user[rows]
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    number = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(rows)]))
    rank = np.arange(len(rows)) - first[number]
    keep = (number < max_users) & (rank < max_pairs)
    rows, owner = rows[keep], number[keep]
    n_users = int(owner.max()) + 1
    own = ControlContexts(history, split, seed=seed).own(rows, n_context)
    draw = mix(history.pair_key[np.maximum(own.index, 0)], mix(history.user_key[history.user[rows]], salt)[:, None])
    uniform = unit_interval(draw)
    found: dict[str, list[np.ndarray]] = {}
    for scorer in scorers:
        scorer.prepare(np.concatenate([rows, own.index.reshape(-1)]))
        curves = []
        for rate in (None, *rates):
            index = np.full_like(own.index, -1) if rate is None else own.index
            context = Context(index, uniform < (rate or 0.0))
            margin = np.concatenate(
                [
                    scorer.score(
                        rows[start : start + _CHUNK],
                        Context(context.index[start : start + _CHUNK], context.flipped[start : start + _CHUNK]),
                        False,
                    )[0]
                    for start in range(0, len(rows), _CHUNK)
                ]
            )
            curves.append(by_user(correct(margin), owner, n_users))
            show(f"{scorer.method}: {'no context' if rate is None else f'{100 * rate:.0f} % of labels wrong'}")
        found.setdefault(scorer.method, []).append(np.stack(curves))
    out = {}
    for method, seeds in found.items():
        values = np.mean(seeds, axis=0)
        out[method] = {
            "n_context": n_context,
            "rates": list(rates),
            "accuracy": [user_interval(values[1 + i], seed) for i in range(len(rates))],
            "empty": user_interval(values[0], seed),
            "users": values[1:].tolist(),
        }
    return out


def over_baseline(curves: Mapping[str, Mapping[str, Any]], baseline: str, seed: int = 0) -> dict[str, list[dict]]:
    """Method to its difference from the baseline at each rate, paired over users."""
    reference = np.array(curves[baseline]["users"])
    return {
        method: [user_interval(row, seed) for row in np.array(found["users"]) - reference]
        for method, found in curves.items()
        if method != baseline
    }
