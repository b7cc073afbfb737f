"""Whose choices a model was trained on, by which evaluation notices that users called unseen are none."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from .arrays import BATCH, column_texts
from .schema import VALIDATION
from .splits import hash64

FILE = "training_users.safetensors"
# Digests of a user that a model keeps, and how many of them say that another dataset's user is the same.
_KEPT, _ENOUGH = 8, 2
# Share of users for whom that may be chance.
_CHANCE = 0.02


def choices(split: Any) -> Iterator[tuple[str, int]]:
    """Each pair's user, and a 64-bit digest of the user's id and the two responses, in whichever order."""
    columns = split.select_columns(["user_id", "chosen", "rejected"]).with_format("arrow")
    for batch in columns.iter(BATCH):
        sides = (map(hash64, column_texts(batch[side])) for side in ("chosen", "rejected"))
        for user, *texts in zip(batch["user_id"].to_pylist(), *sides):
            yield user, hash64(user, *sorted(texts))


def by_user(splits: Iterable[Any]) -> dict[str, set[int]]:
    """The digests of each user's choices in all of these splits."""
    found: dict[str, set[int]] = {}
    for split in splits:
        for user, digest in choices(split):
            found.setdefault(user, set()).add(digest)
    return found


def sketch(split: Any) -> np.ndarray:
    """(n,) sorted uint64: of every user the least few digests, so that equal choices leave equal sketches."""
    kept = [digest for digests in by_user([split]).values() for digest in heapq.nsmallest(_KEPT, digests)]
    return np.sort(np.array(kept, dtype=np.uint64))


def write_sketch(split: Any, folder: str | Path) -> None:
    """Writes `training_users.safetensors` beside a model. Who lacks both ids and texts can read nothing from it."""
    from safetensors.numpy import save_file

    save_file({"choices": sketch(split)}, str(Path(folder) / FILE))


def read_sketch(folder: str | Path) -> np.ndarray | None:
    """What `write_sketch` wrote; `None` where a model has none.

    Raises:
        ConfigError: The file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        return load_file(str(path))["choices"]
    except (SafetensorError, KeyError) as error:
        raise ConfigError(
            f"the digests of training users in {str(path)!r} are damaged or only partly there ({error}). Copy the model again."
        ) from None


def check_unseen(sketches: Mapping[str, np.ndarray], splits: Mapping[str, Any]) -> None:
    """Refuses splits of unseen users whose users a model was trained on.

    Two of a user's choices must be known, or the only one, and more than one user in fifty must be known: users of two
    generated populations may bear one name, and few sentences may make the same choice twice.

    Args:
        sketches: Name of a model to its sketch.
        splits: Split name to dataset; those of seen users are passed over.

    Raises:
        ConfigError: More users of these splits than chance explains made choices that a model was trained on.
    """
    names = [name for name in splits if name == VALIDATION or "unseen_users" in name]
    found = by_user(splits[name] for name in names) if sketches else {}
    for model, values in sketches.items():
        known = set(values.tolist())
        met = sum(len(own & known) >= min(_ENOUGH, len(own)) for own in found.values())
        if met > _CHANCE * len(found):
            raise ConfigError(
                f"`--model` {model}: {met} of the {len(found)} users of {', '.join(f'`{name}`' for name in names)} made "
                "choices that it was trained on, so that for it they are not unseen. Evaluate it on the dataset that it "
                "was trained on, or train it on this one."
            )


def trained_apart(sketches: Sequence[np.ndarray | None]) -> bool:
    """Whether two models are known to have been trained on different choices."""
    known = [values for values in sketches if values is not None]
    return any(not np.array_equal(known[0], values) for values in known[1:])
