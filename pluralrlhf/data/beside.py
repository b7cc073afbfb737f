"""What a build writes beside its pairs: the users, and what is known of a generated population."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_json
from .schema import RowError, validate_user
from .shards import ShardWriter
from .splits import hash64

if TYPE_CHECKING:
    from .sources import Source


def write_users(
    work: Path, source: Source, kept: set[str], skip: Callable[[RowError, dict[str, Any] | None], None] | None
) -> int:
    """The `users` config: the source's users in its order, then those whom it does not describe.

    Args:
        work: The folder of the build.
        source: Whose users they are; its rows have been read.
        kept: Users with pairs; no others are written.
        skip: Takes the error of an invalid user and the row as it was read; None raises the error.

    Returns:
        How many users the source describes who have no pair.
    """
    from .schema import USERS_SCHEMA

    (work / "users").mkdir()
    writer = ShardWriter(work / "users" / ".users", USERS_SCHEMA, shard_rows=math.inf)
    missing = set(kept)
    without_pairs = 0
    for number, row in enumerate(source.users(), 1):
        try:
            if isinstance(row, Exception):
                raise row
            clean = validate_user(row, file=row.get("_file", source.label), row_number=row.get("_row", number))
        except RowError as error:
            if skip is None:
                raise error from None
            skip(error, None if isinstance(row, Exception) else row)
            continue
        if clean["user_id"] in missing:
            missing.remove(clean["user_id"])
            writer.add(clean)
        elif clean["user_id"] not in kept:
            without_pairs += 1
    for user in sorted(missing):
        writer.add(validate_user({"user_id": user}))
    (shard,) = writer.close()
    shard.rename(work / "users" / "users-00000-of-00001.parquet")
    return without_pairs


def write_truth(work: Path, source: Source) -> None:
    """What is known of a generated population, beside the dataset and outside its configs."""
    import pyarrow.parquet as pq

    rows = source.truth()
    if rows is None:
        return
    kept: set[int] = set()
    for shard in (work / "pairs").glob("*.parquet"):
        kept.update(map(hash64, pq.read_table(shard, columns=["pair_id"])["pair_id"].to_pylist()))
    folder = work / "truth"
    folder.mkdir()
    writer = ShardWriter(folder / ".pairs", None, shard_rows=math.inf)
    for row in rows:
        if hash64(row["pair_id"]) in kept:
            writer.add(row)
    for shard in writer.close():
        shard.rename(folder / "pairs.parquet")
    write_json(folder / "truth.json", source.truth_info())
