"""One evaluation over several processes: each scores its share of the users, the first one puts the rows together."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import write_json
from .runner import context_means
from .storage import PAIRS, PAIRS_SCHEMA, PER_PAIR, PER_PAIR_SCHEMA, RUN, STATES, STATES_SCHEMA, RowWriter


def process_group() -> tuple[int, int]:
    """(rank, number of processes) under `accelerate launch` or `torchrun`; (0, 1) otherwise. Joins the group."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    return state.process_index, state.num_processes


def wait_for_everyone() -> None:
    """Returns when all processes have come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def shard_folder(folder: Path, rank: int) -> Path:
    """Where a process writes its share."""
    return folder / f"shard-{rank}"


def merge_runs(folder: Path, shards: Sequence[Path], users: Sequence[str]) -> dict[str, Any]:
    """Makes one run of the shards of it and removes them.

    Args:
        folder: The run's folder.
        shards: Folders of the shards.
        users: User ids in the order of their codes: the rows of `pairs.parquet` are then in the order in which one
            process writes them, and so are the draws of the bootstrap.

    Returns:
        What is in `run.json`.
    """
    runs = [json.loads((shard / RUN).read_text(encoding="utf-8")) for shard in shards]
    code = {user: number for number, user in enumerate(users)}
    for name, schema in ((PER_PAIR, PER_PAIR_SCHEMA), (PAIRS, PAIRS_SCHEMA), (STATES, STATES_SCHEMA)):
        files = [pq.ParquetFile(shard / name) for shard in shards]
        with RowWriter(folder / name, schema) as writer:
            # Row groups hold rows of one split, so that readers can skip the others.
            for split in runs[0]["splits"]:
                tables = (_of_split(file, number, split) for file in files for number in range(file.num_row_groups))
                if name == PAIRS:
                    whole = pa.concat_tables(tables)
                    order = np.argsort([code[user] for user in whole["user_id"].to_pylist()], kind="stable")
                    tables = iter([whole.take(order)])
                for table in tables:
                    writer.write(table.cast(schema))
                writer.flush()
        for file in files:
            file.close()
    merged = {**runs[0], "timing": {**runs[0]["timing"]}}
    sums = [run.pop("context_sums") for run in runs]
    merged.pop("context_sums")
    total = {
        split: {k: {key: sum(s[split][k][key] for s in sums) for key in first} for k, first in sizes.items()}
        for split, sizes in sums[0].items()
    }
    merged["context"] = context_means(total)
    merged["timing"]["evaluate_seconds"] = max(run["timing"]["evaluate_seconds"] for run in runs)
    merged["timing"]["scored_pairs_per_second"] = sum(run["timing"]["scored_pairs_per_second"] for run in runs)
    write_json(folder / RUN, merged)
    for shard in shards:
        shutil.rmtree(shard)
    return merged


def _of_split(file: pq.ParquetFile, number: int, split: str) -> pa.Table:
    table = file.read_row_group(number)
    return table.filter(pc.equal(table["split"], split))
