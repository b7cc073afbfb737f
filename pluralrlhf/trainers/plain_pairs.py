"""The contract's ids for a plain preference dataset, made from its texts; and whether its pairs have contexts at all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..files import json_digest
from .pair_checks import SIDES

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.history import UserHistory

logger = logging.getLogger(__name__)
# Of so many targets it is looked whether they have a context, and said from this share without one on.
_MAX_LOOKED_AT, _MANY_ALONE = 5_000, 0.5


def one_prompt(dataset: Dataset) -> bool:
    """Whether all rows have the same prompt, or none."""
    if "prompt" not in dataset.column_names:
        return True
    first = dataset[0]["prompt"]
    batches = dataset.select_columns(["prompt"]).iter(batch_size=1000)
    return all(prompt == first for batch in batches for prompt in batch["prompt"])


def with_ids(name: str, dataset: Dataset, needs_users: bool, responses_are_items: bool) -> Dataset:
    """The dataset with `user_id`, `prompt`, `pair_id` and `item_ids`.

    Args:
        name: Of the split, for errors and ids.
        dataset: With `chosen` and `rejected`.
        needs_users: Whether who judged counts; otherwise everybody is one.
        responses_are_items: What a target and its context must not share is a response to its prompt. Otherwise it
            is the prompt, and the responses where a row has none.

    Raises:
        DataError: Users are needed and there is no `user_id`.
    """
    columns: dict[str, list] = {}
    if "user_id" not in dataset.column_names:
        if needs_users:
            remedy = "Say who made each choice, or train `user_model: btl`, which needs no users."
            raise DataError("the column is missing", remedy, file=f"split `{name}`", column="user_id")
        columns["user_id"] = ["anonymous"] * len(dataset)
    if "prompt" not in dataset.column_names:
        columns["prompt"] = [""] * len(dataset)
    if missing := {"pair_id", "item_ids"} - set(dataset.column_names):
        made: dict[str, list] = {column: [] for column in sorted(missing)}
        seen: dict[str, int] = {}
        for row in dataset:
            prompt = row.get("prompt") or ""
            key = json_digest([row.get("user_id"), prompt, *(row[side] for side in SIDES)])
            seen[key] = seen.get(key, 0) + 1
            by_response = responses_are_items or not prompt
            items = [[prompt, row[side]] for side in SIDES] if by_response else [prompt]
            for column, value in (("pair_id", f"{name}:{key}:{seen[key]}"), ("item_ids", [*map(json_digest, items)])):
                if column in made:
                    made[column].append(value)
        columns |= made
    for column, values in columns.items():
        dataset = dataset.add_column(column, values)
    return dataset


def warn_of_lacking_contexts(history: UserHistory, rows: np.ndarray, n_context: int) -> None:
    """Says if most targets have no context: a model of users then learns nothing about them."""
    some = rows[:: -(-len(rows) // _MAX_LOOKED_AT)]
    if not n_context or not len(some):
        return
    alone = (history.context(some, 1) < 0).all(1).mean()
    if alone >= _MANY_ALONE:
        logger.warning(
            "%.0f %% of the training pairs have no context: their user has no other pair, or all of the user's pairs share an "
            "item, and what shares an item with a target (its prompt, unless `item_ids` says otherwise) never is its context. "
            "Nothing about users can be learned from them.",
            100 * alone,
        )  # fmt: skip
