"""Stored predictions, one a pair and method: what the plurality and collapse figures are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ConfigError, DataError
from .controls import OWN
from .opinions import Opinions
from .storage import PER_PAIR


@dataclass
class Predictions:
    """Predictions of P pairs under their users' own contexts, means over seeds.

    A pair in several folds counts as several, and groups of pairs are those of one fold: each fold's model has learnt
    from the votes of the other folds' users, so that shares over all folds would have been seen.

    Attributes:
        split: Split of the pairs.
        pair_ids, user_ids: (P,) ids.
        user: (P,) user codes, numbering `np.unique(user_ids)`.
        n_context: Number of context pairs; a method without users has the same predictions for every number.
        margin, probability: Method to (P,) values of the recorded choice, NaN where there is none.
        group: (P,) number of the unordered pair of responses and the fold.
        first: (P,) whether the response with the smaller key was chosen.
        response: (P, 2) codes of the chosen and the rejected response and the fold.
        agreed: (P,) whether nearly all users agree on the pair.
    """

    split: str
    pair_ids: np.ndarray
    user_ids: np.ndarray
    user: np.ndarray
    n_context: int
    margin: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]
    group: np.ndarray
    first: np.ndarray
    response: np.ndarray
    agreed: np.ndarray

    def first_probability(self, method: str) -> np.ndarray:
        """(P,) probability that the user prefers the response with the smaller key."""
        p = self.probability[method]
        return np.where(self.first, p, 1 - p)


def load_predictions(
    folder: str | Path,
    splits: Mapping[str, Any],
    split: str,
    *,
    n_context: int | None = None,
    dataset: str | None = None,
    methods: Sequence[str] | None = None,
) -> Predictions:
    """Reads one split of an evaluation.

    Args:
        folder: Output of `eval reward` or `eval suite`.
        splits: The dataset's splits, for who judged the same two responses.
        split: The split.
        n_context: Number of context pairs; the largest if not given.
        dataset: Which of a suite's datasets.
        methods: Only these.

    Raises:
        ConfigError: No rows of that split, dataset or number of context pairs.
    """
    path = Path(folder) / PER_PAIR
    if not path.is_file():
        raise DataError("the file does not exist", "Name a folder that `pluralrlhf eval` wrote.", file=str(path))
    keep = (pc.field("split") == split) & (pc.field("control") == OWN)
    if "dataset" in pq.read_schema(path).names and dataset is not None:
        keep &= pc.field("dataset") == dataset
    columns = ["method", "n_context", "user_id", "pair_id", "margin", "probability"]
    folds = "fold" in pq.read_schema(path).names
    table = pq.read_table(path, columns=[*columns, "fold"] if folds else columns, filters=keep)
    if not folds:
        table = table.append_column("fold", pa.repeat(pa.scalar(0, pa.int64()), len(table)))
    if not len(table):
        of = "" if dataset is None else f" of dataset {dataset!r}"
        raise ConfigError(f"{path} has no rows of split {split!r}{of}.")
    sizes = sorted(pc.unique(table["n_context"]).to_pylist())
    k = sizes[-1] if n_context is None else n_context
    # Methods without users have rows for no other number, and would stand in for those that are not there.
    if k not in sizes:
        raise ConfigError(
            f"`n_context` is {k}; {path} has {', '.join(map(str, sizes))} for split {split!r}. Name one of these, or "
            "evaluate it first."
        )
    names = pc.unique(table["method"]).to_pylist()
    parts = []
    for name in names if methods is None else methods:
        rows = table.filter(pc.equal(table["method"], name))
        at = rows.filter(pc.equal(rows["n_context"], k))
        # A method without users was scored once.
        parts.append(at if len(at) else rows.filter(pc.equal(rows["n_context"], 0)))
    table = pa.concat_tables(parts)
    keys = ["method", "fold", "user_id", "pair_id"]
    means = table.group_by(keys).aggregate([("margin", "mean"), ("probability", "mean")])
    data = splits[split]
    ids = np.array(data["pair_id"], dtype=object)
    row_of = {pair: row for row, pair in enumerate(ids.tolist())}
    users = np.unique(np.array(data["user_id"], dtype=object), return_inverse=True)[1].reshape(-1)
    opinions = Opinions({split: data}, users)
    pair_ids = means["pair_id"].to_pylist()
    rows = np.array([row_of.get(pair, -1) for pair in pair_ids])
    if (rows < 0).any():
        raise ConfigError(
            f"{path} holds {int((rows < 0).sum())} pairs that the data lacks: name the data it came from."
        )
    codes, place = np.unique(means["fold"].to_numpy() * len(ids) + rows, return_inverse=True)
    fold, present = np.divmod(codes, len(ids))
    found = {"margin": {}, "probability": {}}
    method = np.array(means["method"].to_pylist(), dtype=object)
    for column, into in found.items():
        values = means[f"{column}_mean"].to_numpy()
        for name in dict.fromkeys(method.tolist()):
            out = np.full(len(present), np.nan)
            out[place[method == name]] = values[method == name]
            into[name] = out
    user_ids = np.array(data["user_id"], dtype=object)[present]
    return Predictions(
        split=split,
        pair_ids=ids[present],
        user_ids=user_ids,
        user=np.unique(user_ids, return_inverse=True)[1].reshape(-1),
        n_context=k,
        margin=found["margin"],
        probability=found["probability"],
        group=np.unique(opinions.group[present] + fold * len(ids), return_inverse=True)[1].reshape(-1),
        first=opinions.first[present],
        response=opinions.response[present] + (fold * 2 * len(ids))[:, None],
        agreed=opinions.agreed()[present],
    )
