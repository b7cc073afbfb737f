"""Data: the row contract, sources that give rows, dataset folders, and the history of each user.

A dataset folder is written by `build_dataset` (command `pluralrlhf data build`) and read by `load_pairs` and
`load_users`; `datasets.load_dataset(FOLDER, "pairs")` reads it just as well.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .card import hash_files
from .schema import SPLITS, USER_COLUMNS, messages
from .splits import SplitConfig
from .writer import build_dataset

if TYPE_CHECKING:
    import datasets

__all__ = [
    "SPLITS",
    "SplitConfig",
    "build_dataset",
    "data_sha256",
    "load_pairs",
    "load_users",
    "messages",
    "pair_files",
    "read_build",
]

_BUILD = "Build one with `pluralrlhf data build SOURCE --out DIR`, or name the folder that it made"


def read_build(folder: str | os.PathLike) -> dict[str, Any]:
    """`build.json` of a dataset folder; a folder that is missing or is none is a `DataError`."""
    folder = Path(folder)
    if not folder.exists():
        raise DataError("the folder does not exist", _BUILD, file=str(folder))
    if not folder.is_dir():
        raise DataError("a file, not a dataset folder", _BUILD, file=str(folder))
    path = folder / "build.json"
    if not path.is_file():
        raise DataError("not a dataset folder: there is no build.json in it", _BUILD, file=str(folder))
    try:
        build = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"cannot be read ({type(error).__name__})", "Build the folder again", file=str(path)) from None
    if not isinstance(build, dict) or build.get("schema") != 1:
        found = f"schema {build.get('schema')!r}" if isinstance(build, dict) else "no JSON object"
        raise DataError(f"{found}; this version reads schema 1", "Build the folder again", file=str(path))
    return build


def pair_files(folder: str | os.PathLike) -> dict[str, list[str]]:
    """Split name -> its parquet files, in order, each with the contract's columns.

    Raises:
        DataError: the folder is missing or wrong, or a file lacks a column or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .schema import pairs_schema

    read_build(folder)
    files: dict[str, list[str]] = {}
    for split in SPLITS:
        found = sorted(Path(folder, "pairs").glob(f"{split}-[0-9]*-of-[0-9]*.parquet"))
        if not found:
            continue
        expected = int(found[0].stem.rpartition("-")[2])
        if len(found) != expected:
            raise DataError(
                f"{len(found)} of {expected} files of split `{split}` are there", "Build it again", file=str(folder)
            )
        for path in found:
            try:
                schema = pq.read_schema(path)
            except (pa.ArrowException, OSError):
                raise DataError(
                    "not a parquet file, or a damaged one", "Build the folder again", file=str(path)
                ) from None
            for field in pairs_schema("margin" in schema.names):
                if field.name not in schema.names or schema.field(field.name).type != field.type:
                    has = schema.field(field.name).type if field.name in schema.names else "missing"
                    raise DataError(
                        f"the column is {has}, not {field.type}", "Build it again", file=str(path), column=field.name
                    )
        files[split] = [str(path) for path in found]
    if not files:
        raise DataError("there are no pairs in it (pairs/<split>-*.parquet)", _BUILD, file=str(folder))
    return files


def load_pairs(folder: str | os.PathLike) -> datasets.DatasetDict:
    """The `pairs` config of a dataset folder, checked: split name -> `datasets.Dataset`, in the order of `SPLITS`.

    Raises:
        DataError: the folder is missing, is no dataset folder, or its files do not keep the contract.
    """
    return _load(pair_files(folder))


def load_users(folder: str | os.PathLike) -> datasets.Dataset:
    """The `users` config: one row a user (`user_id`, `profile`, `attributes`, `conversations`).

    For oracle baselines, simulators and evaluation; a reward model does not read it unless its method says so.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    read_build(folder)
    path = Path(folder, "users", "users-00000-of-00001.parquet")
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        raise DataError("the users' file is missing or damaged", "Build the folder again", file=str(path)) from None
    if missing := [column for column in USER_COLUMNS if column not in names]:
        raise DataError("the column is missing", "Build the folder again", file=str(path), column=missing[0])
    return _load({"users": [str(path)]})["users"]


def data_sha256(folder: str | os.PathLike) -> str:
    """Hash of everything that the two configs hold (names and bytes of the parquet files), for `results.json`."""
    read_build(folder)
    return hash_files(Path(folder))


def _load(files: dict[str, list[str]]) -> datasets.DatasetDict:
    import datasets

    # Bars for reads that take a blink would bury a caller's own output.
    small = sum(os.path.getsize(path) for paths in files.values() for path in paths) < 50_000_000
    hide = small and datasets.utils.are_progress_bars_disabled() is False
    if hide:
        datasets.utils.disable_progress_bars()
    try:
        loaded = datasets.load_dataset("parquet", data_files=files)
    finally:
        if hide:
            datasets.utils.enable_progress_bars()
    return datasets.DatasetDict({split: loaded[split] for split in files})
