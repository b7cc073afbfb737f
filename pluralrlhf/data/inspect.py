"""What a dataset folder holds, and whether it can be trusted: sizes, disagreement, a global model's bound, leaks.

Texts are read once, in batches, and kept as 64-bit hashes, so that a million pairs take a few hundred megabytes.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from . import pair_files, read_build
from .arrays import BATCH, Pairs, read_pairs
from .history import CONTEXT_SPLIT
from .schema import SPLITS, TEST_SPLITS, TRAIN

QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
_FEWEST_PAIRS = 50  # of which an accuracy says anything
_RARELY_SHARED = 0.2  # below this share of judgments on shared pairs, win rates describe agreement better


def inspect_dataset(folder: str | os.PathLike, *, examples: int = 0, progress: bool = False) -> dict[str, Any]:
    """The report of `pluralrlhf data inspect` as a dictionary of JSON values.

    Args:
        folder: A dataset folder.
        examples: How many pairs to show in full; the only user text in the report.
        progress: Show progress on stderr.
    """
    build = read_build(folder)
    files = pair_files(folder)
    pairs = read_pairs(files, progress)
    return {
        "folder": str(folder),
        "source": build["source"],
        "dropped": build["dropped"],
        "skipped_invalid": build.get("skipped_invalid", {}),
        "splits": sizes(pairs),
        "pairs_per_user": pairs_per_user(pairs),
        "characters": {
            "prompt": _quantiles(pairs.chars[:, 0]),
            "longer_response": _quantiles(pairs.chars[:, 1]),
        },
        **agreement(pairs),
        "context": context_sizes(pairs),
        "leaks": leaks(pairs),
        "examples": _examples(files, examples),
    }


def sizes(pairs: Pairs) -> dict[str, dict[str, int]]:
    """Pairs, users, items and prompts of every split that is there, and of all."""
    table = {}
    for name in (*SPLITS, "all"):
        rows = pairs.where(*(SPLITS if name == "all" else (name,)))
        if rows.any():
            table[name] = {
                "pairs": int(rows.sum()),
                "users": len(np.unique(pairs.user[rows])),
                "items": len(np.unique(pairs.items[rows[pairs.item_row]])),
                "prompts": len(np.unique(pairs.prompt[rows])),
            }
    return table


def pairs_per_user(pairs: Pairs) -> dict[str, dict[str, float]]:
    """Quantiles of the number of pairs of a user, by split and over all."""
    table = {}
    for name in (*SPLITS, "all"):
        rows = pairs.where(*(SPLITS if name == "all" else (name,)))
        if rows.any():
            counts = np.bincount(pairs.user[rows])
            table[name] = _quantiles(counts[counts > 0])
    return table


def agreement(pairs: Pairs) -> dict[str, Any]:
    """How much users disagree, and how often the same answer for everybody can be right.

    Two views. *Shared pairs*: the same two responses judged by several users; the bound is the choice of the majority
    of the *other* users. *Win rates*: where pairs are rarely shared, each response's share of won comparisons in the
    judgments of the other users; the higher one is predicted. Both leave the judging user out; ties count one half;
    accuracies are means over users. `reach` is the higher of the two (win rates only, where few pairs are shared), and
    at least one half, which a guess gets; what fewer than 50 pairs show does not count, and without any it is None.
    `majority_in_sample` includes the user's own vote: no model without users can be above it on shared pairs.
    """
    low, high = np.minimum(pairs.chosen, pairs.rejected), np.maximum(pairs.chosen, pairs.rejected)
    key = _codes(pairs.prompt, low, high)
    first = (pairs.chosen == low).astype(np.float64)
    n, wins = np.bincount(key), np.bincount(key, first)
    own_n, own_wins = _by_user(key, pairs.user, first)
    shared = own_n < n[key]  # another user judged this pair too
    majority = _vote(wins[key], n[key], first)
    others = _vote(wins[key] - own_wins, n[key] - own_n, first)
    shared_keys = np.unique(key[shared])
    k, w = n[shared_keys], wins[shared_keys]
    if evenly_dealt(k, w):
        # Without the judge's own vote, the others of an even group lean against it, whatever the judge chose.
        others = np.where(np.abs(2 * wins - n)[key] <= 1, 0.5, others)

    response = _codes(np.tile(pairs.prompt, 2), np.concatenate([pairs.chosen, pairs.rejected]))
    won = np.repeat([1.0, 0.0], len(pairs))
    user2 = np.tile(pairs.user, 2)
    rn, rwins = np.bincount(response), np.bincount(response, won)
    rown_n, rown_wins = _by_user(response, user2, won)
    rate = (rwins[response] - rown_wins + 0.5) / (rn[response] - rown_n + 1.0)
    margin = rate[: len(pairs)] - rate[len(pairs) :]
    by_rate = np.where(np.abs(margin) < 1e-12, 0.5, margin > 0)
    rated = ((rn[response] - rown_n) > 0).reshape(2, -1).all(0)

    judges = np.bincount(np.unique(np.stack([response, user2]), axis=1)[0]) if len(pairs) else np.zeros(0)
    often = judges >= 5
    contested = np.abs(rwins[often] / rn[often] - 0.5) < 0.3
    share = float(shared.mean())
    bounds = {}
    for name in (*SPLITS, "all"):
        rows = pairs.where(*(SPLITS if name == "all" else (name,)))
        if rows.any():
            bounds[name] = {
                "majority_in_sample": _user_mean(majority, pairs.user, rows & shared),
                "majority_of_others": _user_mean(others, pairs.user, rows & shared),
                "win_rate_of_others": _user_mean(by_rate, pairs.user, rows & rated),
            }
    # The majority of few judges is noise: where pairs are rarely shared only the win rates tell.
    told = ("majority_of_others", "win_rate_of_others") if share >= _RARELY_SHARED else ("win_rate_of_others",)
    for row in bounds.values():
        known = [row[key]["accuracy"] for key in told if row[key]["n_pairs"] >= _FEWEST_PAIRS]
        row["reach"] = max(0.5, *known) if known else None
    return {
        "disagreement": {
            "shared_pairs": len(shared_keys),
            "judgments_on_shared_pairs": share,
            "shared_pairs_with_disagreement": float(((w > 0) & (w < k)).mean()) if len(k) else None,
            "two_users_disagree": float((2 * w * (k - w) / np.maximum(k * (k - 1), 1)).mean()) if len(k) else None,
            "responses_judged_by_5_users": int(often.sum()),
            "of_these_won_by_20_to_80_percent": float(contested.mean()) if often.any() else None,
        },
        "global_bound": {"judged_by": told, "splits": bounds},
    }


def evenly_dealt(judges: np.ndarray, wins: np.ndarray) -> bool:
    """Whether more pairs split their judges into halves than judges who come one by one could, whatever they want.

    So it is where people were chosen to be of opposite kinds in equal numbers.

    Args:
        judges, wins: (m,) how many judged each pair, and chose its first response.
    """
    n = judges.astype(np.int64)
    log_factorial = np.cumsum(np.log(np.maximum(np.arange(n.max(initial=0) + 1), 1)))
    # The chance of a margin of at most one is greatest where both responses are wanted equally.
    chance = np.exp(log_factorial[n] - log_factorial[n // 2] - log_factorial[n - n // 2] - n * np.log(2)) * (1 + n % 2)
    halves = np.abs(2 * wins - n) <= 1
    return bool(halves.sum() > chance.sum() + 3 * np.sqrt((chance * (1 - chance)).sum()))


def context_sizes(pairs: Pairs) -> dict[str, Any]:
    """By split of the targets: how many pairs of the same user, sharing no item, a context can draw on (at least)."""
    table = {}
    for name, pool_name in CONTEXT_SPLIT.items():
        rows, pool = np.flatnonzero(pairs.where(name)), pairs.where(pool_name)
        if not len(rows):
            continue
        pool_n = np.bincount(pairs.user[pool], minlength=len(pairs.users))
        ref = _codes(pairs.user[pairs.item_row], pairs.items)
        in_pool = np.bincount(ref, pool[pairs.item_row])
        sharing = np.bincount(pairs.item_row, in_pool[ref], minlength=len(pairs))
        left = np.maximum(pool_n[pairs.user[rows]] - sharing[rows], 0)
        table[name] = {"quantiles": _quantiles(left), "targets_without_context": int((left == 0).sum())}
    return table


def leaks(pairs: Pairs) -> dict[str, int]:
    """What must be zero, and (last four) what deserves a look.

    - `users_in_two_partitions`: users in more than one of training, validation and test.
    - `items_on_both_sides`: items in a split by seen items and in one by unseen items.
    - `pairs_on_both_sides`: the same prompt and responses on both item sides, by whomever judged.
    - `held_out_pairs_in_training`: pairs of `test_seen_users_seen_items` that the same user also has in `train`.
    - `targets_shown_in_context`: targets whose prompt with one of their responses can occur in their own context, in
      a pair that shares no item id with them.
    - `repeated_judgments`: judgments beyond a user's first on the same prompt and responses;
      `contradicting_judgments`: how many of these pairs the user judged both ways.
    - `responses_shown_in_context`: the same for the response alone, to whatever prompt; `responses_on_both_sides`:
      different response texts on both item sides. Both are natural for short stock answers.
    """
    partition = np.array([0, 1, 0, 0, 2, 2])[pairs.split]
    unseen = pairs.where(TEST_SPLITS[1], TEST_SPLITS[3])
    low, high = np.minimum(pairs.chosen, pairs.rejected), np.maximum(pairs.chosen, pairs.rejected)
    same = _codes(pairs.prompt, low, high)
    mine = _codes(same, pairs.user)
    first = pairs.chosen == low
    votes, wins = np.bincount(mine), np.bincount(mine, first)
    held_out = pairs.where(TEST_SPLITS[0])
    trained = np.bincount(mine, pairs.where(TRAIN)) > 0
    users = np.unique(np.stack([pairs.user, partition]), axis=1)[0]
    return {
        "users_in_two_partitions": int((np.bincount(users) > 1).sum()),
        "items_on_both_sides": _both_sides(pairs.items, unseen[pairs.item_row]),
        "pairs_on_both_sides": _both_sides(same, unseen),
        "held_out_pairs_in_training": int(trained[mine[held_out]].sum()),
        "targets_shown_in_context": _shown_in_context(pairs, with_prompt=True),
        "repeated_judgments": int((votes - 1).sum()),
        "contradicting_judgments": int(((wins > 0) & (wins < votes)).sum()),
        "responses_shown_in_context": _shown_in_context(pairs, with_prompt=False),
        "responses_on_both_sides": _both_sides(np.concatenate([pairs.chosen, pairs.rejected]), np.tile(unseen, 2)),
    }


def _shown_in_context(pairs: Pairs, with_prompt: bool) -> int:
    """Targets with a pool pair of the same user that holds one of their responses but none of their items.

    Counted as: pool pairs with the text, less those with the text and one of the target's items. A pool pair with two
    of the items is subtracted twice, so that the figure is a lower bound.
    """
    found = np.zeros(len(pairs), dtype=bool)
    owner = np.tile(np.arange(len(pairs)), 2)  # the pair of each text
    text = _codes(pairs.user[owner], np.concatenate([pairs.chosen, pairs.rejected]))
    text = _codes(text, pairs.prompt[owner]) if with_prompt else text
    # One entry for each (text, item) of a pair: the items of pair i, under both of its texts.
    item_text = np.concatenate([text[pairs.item_row], text[pairs.item_row + len(pairs)]])
    text_item = _codes(item_text, np.tile(pairs.items, 2))
    for pool_name in dict.fromkeys(CONTEXT_SPLIT.values()):
        targets = pairs.where(*(name for name, pool in CONTEXT_SPLIT.items() if pool == pool_name))
        pool = pairs.where(pool_name)
        with_text = np.bincount(text, pool[owner])
        with_item = np.bincount(text_item, np.tile(pool[pairs.item_row], 2))
        entry = np.concatenate([pairs.item_row, pairs.item_row + len(pairs)])  # the text that each item stands under
        sharing = np.bincount(entry, with_item[text_item], minlength=2 * len(pairs))
        outside = (with_text[text] - sharing > 0).reshape(2, -1).any(0)
        found |= targets & outside
    return int(found.sum())


def _both_sides(values: np.ndarray, unseen: np.ndarray) -> int:
    return len(np.intersect1d(values[unseen], values[~unseen]))


def _codes(*columns: np.ndarray) -> np.ndarray:
    """(n,) int64: equal numbers where all columns are equal."""
    codes = np.unique(columns[0], return_inverse=True)[1].astype(np.int64)
    for column in columns[1:]:
        values, inverse = np.unique(column, return_inverse=True)
        codes = np.unique(codes * len(values) + inverse, return_inverse=True)[1]
    return codes


def _by_user(code: np.ndarray, user: np.ndarray, won: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each entry, the number and wins of the same user's entries with the same code."""
    mine = _codes(code, user)
    return np.bincount(mine)[mine], np.bincount(mine, won)[mine]


def _vote(wins: np.ndarray, n: np.ndarray, first: np.ndarray) -> np.ndarray:
    """1 where the majority chose as this entry did, 1/2 for a tie, 0 otherwise."""
    lead = 2 * wins - n
    return np.where(np.abs(lead) < 1e-9, 0.5, (lead > 0) == (first > 0.5))


def _user_mean(correct: np.ndarray, user: np.ndarray, rows: np.ndarray) -> dict[str, float | int | None]:
    n = np.bincount(user[rows])
    if not n.sum():
        return {"accuracy": None, "n_users": 0, "n_pairs": 0}
    right = np.bincount(user[rows], correct[rows])
    return {
        "accuracy": float((right[n > 0] / n[n > 0]).mean()),
        "n_users": int((n > 0).sum()),
        "n_pairs": int(n.sum()),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values, QUANTILES, method="lower")
    table = {f"p{round(100 * q)}": float(v) for q, v in zip(QUANTILES, found)}
    return {"mean": float(values.mean()), **table}


def _examples(files: dict[str, list[str]], n: int) -> list[dict[str, Any]]:
    """Pairs evenly spaced over the first file, in full."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if n <= 0:
        return []
    split, paths = next(iter(files.items()))
    with pq.ParquetFile(paths[0]) as file:
        total = file.metadata.num_rows
        wanted = sorted({int(i * total / n) for i in range(min(n, total))})
        found, at = [], 0
        for batch in file.iter_batches(BATCH):
            inside = [row - at for row in wanted if at <= row < at + len(batch)]
            found += [{"split": split, **row} for row in batch.take(pa.array(inside, pa.int64())).to_pylist()]
            at += len(batch)
    return found
