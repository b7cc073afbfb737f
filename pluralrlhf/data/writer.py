"""Writes a source as a dataset folder: validated, split by hash, in bounded memory, byte-identical for the same call.

The folder is written beside its destination and renamed at the end, so that a build that is killed leaves nothing
half-made in its place. See `card.py` for the README.md and `schema.py` for the rows.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError
from ..files import write_json
from .beside import write_truth, write_users
from .destination import new_folder
from .schema import LEAVE_OUT, SCHEMA_VERSION, SPLITS, RowError, validate_pair
from .shards import GROUP_ROWS, ShardWriter, jsonable
from .splits import SplitConfig, hash64

if TYPE_CHECKING:
    from .sources import Source

NO_HISTORY = "user_without_history"
BELOW_MIN_PAIRS = "user_below_min_pairs"


def build_dataset(
    source: Source,
    out: str | os.PathLike,
    *,
    seed: int = 0,
    skip_invalid: bool = False,
    min_pairs_per_user: int | None = None,
    validation_users: float = 0.1,
    test_users: float = 0.2,
    test_items: float = 0.2,
    test_pairs: float = 0.1,
    user_fold: int = 0,
    n_user_folds: int | None = None,
    item_fold: int = 0,
    n_item_folds: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Builds a dataset folder and returns its path.

    Args:
        source: Where the rows come from.
        out: The folder to make. Its parent is made if needed.
        seed: Seed of the splits.
        skip_invalid: Leave rows out that do not keep the contract, count them by reason, and write them to
            `skipped.jsonl`, in place of stopping at the first.
        min_pairs_per_user: Leave users with fewer valid pairs out, and count them. A user's first pair has no history
            to be predicted from: where neither this nor the source gives a number, a user with a single pair is an
            error (or skipped, with `skip_invalid`). 1 keeps everyone.
        validation_users, test_users, test_items, test_pairs, user_fold, n_user_folds, item_fold, n_item_folds: See
            `SplitConfig`.
        overwrite: Replace `out` if it is a dataset folder already.
        progress: Show rows read and the time left, on stderr.

    Raises:
        DataError: a row or file of the source is bad, or nothing is left to train on.
        ConfigError: `out` exists, or a setting does not fit.
    """
    splits = SplitConfig(
        seed=seed,
        validation_users=validation_users,
        test_users=test_users,
        test_items=test_items,
        test_pairs=test_pairs,
        user_fold=user_fold,
        n_user_folds=n_user_folds,
        item_fold=item_fold,
        n_item_folds=n_item_folds,
    )
    if min_pairs_per_user is None:
        min_pairs_per_user = source.min_pairs_per_user
    if min_pairs_per_user is not None and min_pairs_per_user < 1:
        raise ConfigError(f"`min_pairs_per_user` is {min_pairs_per_user}: 1 keeps everyone, 2 is the least history")
    with new_folder(out, overwrite) as work:
        (work / "pairs").mkdir()
        _Build(source, work, splits, skip_invalid, min_pairs_per_user).run(progress)
    return Path(out)


@dataclass
class _Build:
    """One run: its settings, what it has counted so far, and the files it is writing."""

    source: Source
    work: Path
    splits: SplitConfig
    skip_invalid: bool
    min_pairs: int | None

    read: int = 0
    with_margin: bool | None = None
    dropped: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    partition: dict[str, str] = field(default_factory=dict)
    valid: Counter = field(default_factory=Counter)  # user -> valid pairs, before any is lost to the splits
    first: dict[str, tuple] = field(default_factory=dict)  # user -> (file, row) of the user's only pair so far
    lost: dict[str, tuple] = field(
        default_factory=dict
    )  # user -> (reason, row) of an only pair that no split can hold
    start: dict[str, Any] = field(default_factory=dict)  # where the first valid row came from
    seen: set[int] = field(default_factory=set)
    items: set[str] = field(default_factory=set)  # the first few different ones
    writers: dict[str, ShardWriter] = field(default_factory=dict)

    def run(self, progress: bool) -> None:
        from .card import write_card
        from .progress import Progress

        self.source.split = self.splits
        with Progress("pairs", self.source.progress, shown=progress) as bar:
            self.source.tick = bar.tick
            for row in self.source.rows():
                self.read += 1
                bar.step()
                try:
                    if isinstance(row, Exception):
                        raise row
                    self.add(row)
                except RowError as error:
                    if isinstance(row, dict) and "_columns" in row:
                        error = error.at(error.file, error.row, names=row["_columns"])
                    if not self.skip_invalid:
                        raise error from None
                    self.skip(error, None if isinstance(row, Exception) else row)
        shards = {split: writer.close() for split, writer in self.writers.items()}
        short = self.users_to_drop()
        counts = {}
        for split in SPLITS:
            if split in shards and (count := self.finish(split, shards[split], short)):
                counts[split] = count
        self.check_enough(counts)
        kept = set().union(*(count.pop("_users") for count in counts.values()))
        without_pairs = write_users(self.work, self.source, kept, self.skip if self.skip_invalid else None)
        write_truth(self.work, self.source)
        described = self.source.describe()
        build = {
            "schema": SCHEMA_VERSION,
            **{key: described[key] for key in ("source", "version", "sha256") if key in described},
            "parameters": {
                **described.get("parameters", {}),
                **{key: value for key, value in asdict(self.splits).items() if key != "seed"},
                "min_pairs_per_user": self.min_pairs,
                "skip_invalid": self.skip_invalid,
            },
            "seed": self.splits.seed,
            "counts": {
                "pairs_read": self.read,
                "pairs": sum(count["pairs"] for count in counts.values()),
                "users": len(kept),
                "users_below_min_pairs": len(short),
                "users_without_pairs": without_pairs,
                "stripped_ids": described.get("stripped_ids", 0),
                "close_ratings": described.get("close_ratings", 0.0),
                "splits": counts,
            },
            "dropped": dict(sorted((+self.dropped + Counter(self.source.dropped)).items())),
            "skipped_invalid": dict(sorted(self.skipped.items())),
        }
        told = ("licence", "attribution", "missing_files", "raters_by_position", "choice_numbers", "changed_profiles")
        extra = {key: described[key] for key in told if described.get(key)}
        write_json(self.work / "build.json", {**build, **extra})
        write_card(self.work, build, described)

    def add(self, row: dict[str, Any]) -> None:
        """Validates a row and hands it to its split."""
        file, number = row.get("_file", self.source.label), row.get("_row", self.read)
        clean = validate_pair(row, file=file, row_number=number)
        if self.with_margin is None:
            self.with_margin = "margin" in clean
        if self.with_margin != ("margin" in clean):
            found = "there is no margin, but earlier rows have one" if self.with_margin else "a margin, but not before"
            remedy = f"Give every row a margin, {LEAVE_OUT}, or drop such rows with --skip_invalid"
            raise RowError("missing_margin", found, remedy, file=file, row=number, column="margin")
        key = hash64(clean["pair_id"])
        if key in self.seen:
            remedy = f"Give every pair its own id, {LEAVE_OUT}, or drop repeats with --skip_invalid"
            found = "the pair id occurs in an earlier row"
            raise RowError("duplicate_pair_id", found, remedy, file=file, row=number, column="pair_id")
        self.seen.add(key)
        if len(self.items) < 2:
            self.items.update(clean["item_ids"])
        user = clean["user_id"]
        self.valid[user] += 1
        self.start = self.start or {"file": file, "row": number}
        if self.valid[user] == 1:
            self.first[user] = (file, number)
            self.partition[user] = self.splits.user_partition(row.get("_split_key", user))
        else:
            self.first.pop(user, None)
            self.lost.pop(user, None)
        split, reason = self.splits.assign(
            row.get("_split_key", user),
            clean["item_ids"],
            partition=self.partition[user],
            test_item=row.get("_test_item"),
        )
        if split is None:
            self.dropped[reason] += 1
            if user in self.first:
                self.lost[user] = (reason, clean)
            return
        if split not in self.writers:
            from .schema import pairs_schema

            self.writers[split] = ShardWriter(self.work / "pairs" / f".{split}", pairs_schema(self.with_margin))
        self.writers[split].add(clean)

    def skip(self, error: RowError, row: dict[str, Any] | None) -> None:
        """Counts an invalid row and writes it aside."""
        self.skipped[error.reason] += 1
        raw = error.raw
        if raw is None and row is not None:
            raw = row.get("_raw", {key: value for key, value in row.items() if not key.startswith("_")})
        entry = {
            "file": error.file,
            "row": error.row,
            "column": error.column,
            "reason": error.reason,
            "found": error.found,
            "raw": raw,
        }
        with open(self.work / "skipped.jsonl", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(jsonable(entry), ensure_ascii=False) + "\n")

    def users_to_drop(self) -> set[str]:
        """Users with too few valid pairs; an error where nobody said what to do about a user with a single one."""
        if self.min_pairs is not None:
            return {user for user, count in self.valid.items() if count < self.min_pairs}
        if self.first and not self.skip_invalid:
            raise self.no_history(next(iter(self.first)))
        # That a user has no history says more than that no split could hold the pair.
        for user, (reason, row) in self.lost.items():
            self.dropped[reason] -= 1
            self.skip(self.no_history(user), row)
        return set(self.first)

    def no_history(self, user: str) -> RowError:
        file, row = self.first[user]
        found = f"this user has a single pair, so no history ({len(self.first):,} of {len(self.valid):,} users)"
        remedy = (
            "Drop such users with --min_pairs_per_user 2 (or --skip_invalid), or keep all with --min_pairs_per_user 1"
        )
        return RowError(NO_HISTORY, found, remedy, file=file, row=row, column="user_id")

    def finish(self, split: str, shards: list[Path], short: set[str]) -> dict[str, Any] | None:
        """Gives a split's shards their final names, without the users in `short`; None if nothing is left."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if short:
            shards = self.without(short, split, shards)
        users: set[str] = set()
        rows = 0
        for number, shard in enumerate(shards):
            column = pq.read_table(shard, columns=["user_id"])["user_id"]
            rows += len(column)
            users.update(pc.unique(column).to_pylist())
            shard.rename(self.work / "pairs" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
        return {"pairs": rows, "users": len(users), "_users": users} if rows else None

    def without(self, short: set[str], split: str, shards: list[Path]) -> list[Path]:
        """The shards written again without these users' rows, which are counted (and written aside if invalid)."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        from .schema import pairs_schema

        drop = pa.array(sorted(short), pa.string())
        writer = ShardWriter(self.work / "pairs" / f".kept-{split}", pairs_schema(self.with_margin))
        for shard in shards:
            with pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(GROUP_ROWS):
                    table = pa.Table.from_batches([batch])
                    dropped = pc.is_in(table["user_id"], drop)
                    writer.add_table(table.filter(pc.invert(dropped)))
                    if self.min_pairs is not None:
                        self.dropped[BELOW_MIN_PAIRS] += pc.sum(dropped).as_py() or 0
                        continue
                    for row in table.filter(dropped).to_pylist():
                        self.skip(self.no_history(row["user_id"]), row)
            shard.unlink()
        return writer.close()

    def check_enough(self, counts: dict[str, Any]) -> None:
        """A dataset without pairs, with one user, or without a training split is of no use to anyone."""
        lost = self.dropped + self.skipped + Counter(self.source.dropped)
        why = ", ".join(f"{reason} {n:,}" for reason, n in sorted(lost.items())) or "nothing was dropped"
        where = self.start or {"file": self.source.label}
        if not counts:
            remedy = "Check the input and the mapping (`-h` shows an example)"
            if not self.read and not lost:
                raise DataError("there are no rows", remedy, **where)
            raise DataError(f"no pair is left ({why})", remedy, **where)
        users = set().union(*(count["_users"] for count in counts.values()))
        if len(users) < 2:
            found = f"all {sum(c['pairs'] for c in counts.values()):,} pairs belong to one user"
            remedy = "Learning what each user wants takes several users: check which column is mapped to `user_id`"
            raise DataError(found, remedy, column="user_id", **where)
        if "train" not in counts:
            found = f"no pair fell in `train` ({len(users):,} users; {why})"
            remedy = "Lower --test_users, --validation_users or --test_items, or choose another --seed"
            if len(self.items) == 1:
                found = f"all pairs are of one item, which is on the unseen side ({why})"
                remedy = "Pairs of one item are never each other's context: use --items responses, or another column"
            raise DataError(found, remedy, **where)
