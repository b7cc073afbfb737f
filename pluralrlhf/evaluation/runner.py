"""Scores every pair of every split under every context, and writes one row for each: `per_pair.parquet`.

A run is a folder of `per_pair.parquet` (the source of every figure), `pairs.parquet` (each pair's items and whether
nearly all users agree on it), `states.parquet` (user states for the map) and `run.json`. Files are written under a
temporary name, `run.json` last: a run that was killed has none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.progress import Progress
from ..files import write_json
from .controls import Context, ControlContexts
from .evaluation_data import EvaluationData
from .scorers import Scorer
from .split_run import SplitRun, pair_table, shard_rows
from .storage import (
    PAIRS,
    PAIRS_SCHEMA,
    PER_PAIR,
    PER_PAIR_SCHEMA,
    RUN,
    SCHEMA_VERSION,
    STATES,
    STATES_SCHEMA,
    RowWriter,
    release_memory,
    system_memory,
)

_RELEASE_ROWS = 1024  # rows between two calls of `release_memory`


@system_memory()
def run_scorers(
    scorers: Sequence[Scorer],
    data: EvaluationData,
    folder: str | Path,
    *,
    splits: Sequence[str],
    n_context: Sequence[int],
    controls: bool = True,
    seed: int = 0,
    batch_size: int = 512,
    progress: bool = True,
    info: Mapping[str, Any] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Scores the pairs of `splits` and writes a run.

    Args:
        scorers: Models; they see the same contexts.
        data: The dataset.
        folder: The run's folder; made if needed, its files replaced.
        splits: Splits of the targets.
        n_context: Numbers of context pairs; 0 is always among them.
        controls: Also score the controls, at every number of context pairs above 0.
        seed: Seed of contexts and controls. Contexts do not depend on the scorers.
        batch_size: Targets scored at once.
        progress: Show progress and the time left, on stderr.
        info: More keys of `run.json`.
        shard: (i, n): only users of the i-th of n shards, by a hash of their ids; a user is never divided. See
            `merge_runs`.

    Returns:
        What is in `run.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN).unlink(missing_ok=True)
    sizes = sorted({0, *map(int, n_context)})
    total = sum(len(shard_rows(data.history, split, shard)) for split in splits)
    context_sums: dict[str, dict[str, dict[str, float]]] = {}
    start = time.perf_counter()
    n_rows = 0
    done = [0]
    bar = Progress("pairs evaluated", lambda: done[0] / max(1, total), shown=progress)
    with (
        bar,
        RowWriter(folder / PER_PAIR, PER_PAIR_SCHEMA) as per_pair,
        RowWriter(folder / PAIRS, PAIRS_SCHEMA) as pairs,
        RowWriter(folder / STATES, STATES_SCHEMA) as states,
    ):
        agreed = data.opinions.agreed() if data.opinions is not None else None
        for split in splits:
            release_memory()
            contexts = ControlContexts(
                data.history, split, opinions=data.opinions, user_types=data.user_types, seed=seed
            )
            run = SplitRun(scorers, data, contexts, sizes, controls, seed, batch_size, shard)
            for rows, tables in run.tables():
                pairs.write(pair_table(data.history, split, rows, agreed))
                for table in tables:
                    per_pair.write(table)
                    n_rows += len(table)
                    if n_rows // _RELEASE_ROWS > (n_rows - len(table)) // _RELEASE_ROWS:
                        release_memory()
                done[0] += len(rows)
                bar.step(len(rows))
            for table in run.context_pair_tables():
                per_pair.write(table)
            # A row group holds rows of one split only, so that readers can skip the others.
            per_pair.flush()
            pairs.flush()
            release_memory()
            for table in run.state_tables():
                states.write(table)
            context_sums[split] = run.context_sums()
    release_memory()
    seconds = time.perf_counter() - start
    record = {
        "schema": SCHEMA_VERSION,
        **(info or {}),
        "methods": _methods(scorers),
        "splits": list(splits),
        "n_context": sizes,
        "controls": controls,
        "evaluation_seed": seed,
        "context": context_means(context_sums),
        **({"context_sums": context_sums} if shard[1] > 1 else {}),
        "timing": {
            "evaluate_seconds": seconds,
            "scored_pairs_per_second": n_rows / max(seconds, 1e-9),
            "new_user_ms": _new_user_ms(scorers, data, splits, sizes[-1], seed),
        },
    }
    write_json(folder / RUN, record)
    return record


def _methods(scorers: Sequence[Scorer]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for scorer in scorers:
        entry = out.setdefault(scorer.method, {"seeds": [], "models": [], "uses_context": scorer.uses_context})
        entry["seeds"].append(int(scorer.seed))
        entry["models"].append(getattr(scorer, "path", None))
    return out


def _new_user_ms(scorers, data: EvaluationData, splits: Sequence[str], k: int, seed: int) -> dict[str, float]:
    """Milliseconds to take in one new user with k pairs, for each method that has states."""
    if not splits or not k:
        return {}
    rows = data.history.rows(splits[-1])[:64]
    index = data.history.context(rows, k, seed=seed)
    fullest = index[[int((index >= 0).sum(axis=1).argmax())]] if len(index) else index
    out = {}
    for scorer in scorers:
        if scorer.uses_context and scorer.method not in out and hasattr(scorer, "new_user_ms"):
            out[scorer.method] = scorer.new_user_ms(Context(fullest, np.zeros(fullest.shape, bool)))
    return out


def context_means(sums: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Split and k to means over users of the pairs and the distinct items shown; of them, the share others judged."""
    return {
        split: {
            k: {
                "context_pairs": found["context_pairs"] / max(1.0, found["users"]),
                "context_items": found["context_items"] / max(1.0, found["users"]),
                "relabelled_coverage": found["others"] / found["pairs"] if found["pairs"] else 0.0,
            }
            for k, found in sizes.items()
        }
        for split, sizes in sums.items()
    }
