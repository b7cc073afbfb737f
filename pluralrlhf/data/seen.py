"""Whose choices a model was trained on, by which evaluation notices that users called unseen are none."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from .arrays import BATCH, column_texts
from .splits import hash64

FILE = "training_users.safetensors"
_KEPT = 8


def choices(split: Any) -> Iterator[tuple[str, int]]:
    """Each pair's user, and a 64-bit digest of the user's id and the two responses, in whichever order."""
    columns = split.select_columns(["user_id", "chosen", "rejected"]).with_format("arrow")
    for batch in columns.iter(BATCH):
        sides = (map(hash64, column_texts(batch[side])) for side in ("chosen", "rejected"))
        for user, *texts in zip(batch["user_id"].to_pylist(), *sides):
            yield user, hash64(user, *sorted(texts))


def sketch(split: Any) -> np.ndarray:
    """(n,) sorted int64: of every user the least few digests, so that equal choices leave equal sketches."""
    by_user: dict[str, set[int]] = {}
    for user, digest in choices(split):
        by_user.setdefault(user, set()).add(digest)
    kept = [digest for digests in by_user.values() for digest in heapq.nsmallest(_KEPT, digests)]
    return np.sort(np.array(kept, dtype=np.uint64).view(np.int64))


def write_sketch(split: Any, folder: str | Path) -> None:
    """Writes `training_users.safetensors` beside a model. Who lacks both ids and texts can read nothing from it."""
    from safetensors.numpy import save_file

    save_file({"choices": sketch(split)}, str(Path(folder) / FILE))


def read_sketch(folder: str | Path) -> np.ndarray | None:
    """What `write_sketch` wrote; `None` where a model has none."""
    from safetensors.numpy import load_file

    path = Path(folder) / FILE
    return load_file(str(path))["choices"] if path.is_file() else None


def check_unseen(sketches: Mapping[str, np.ndarray], splits: Mapping[str, Any]) -> None:
    """Refuses splits of unseen users whose users a model was trained on.

    Args:
        sketches: Name of a model to its sketch.
        splits: Split name to dataset; those of seen users are passed over.

    Raises:
        ConfigError: A user of an unseen split made choices that a model was trained on.
    """
    for name in splits if sketches else ():
        if name != "validation" and "unseen_users" not in name:
            continue
        users, digests = columns_of(choices(splits[name]))
        for model, known in sketches.items():
            if met := set(users[np.isin(digests, known)]):
                raise ConfigError(
                    f"`--model` {model}: {len(met)} of the {len(set(users))} users of `{name}` made choices that it was "
                    "trained on, so that for it they are not unseen. Evaluate it on the dataset that it was trained on, "
                    "or train it on this one."
                )


def columns_of(rows: Iterable[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) users and (n,) int64 digests."""
    users, digests = zip(*rows) if (rows := list(rows)) else ((), ())
    return np.array(users, dtype=object), np.array(digests, dtype=np.uint64).view(np.int64)


def trained_apart(sketches: Sequence[np.ndarray | None]) -> bool:
    """Whether two models are known to have been trained on different choices."""
    known = [values for values in sketches if values is not None]
    return any(not np.array_equal(known[0], values) for values in known[1:])
