"""Rows of a dataset on the Hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import DataError


def hub_rows(
    path: str, config: str | None, split: str, revision: str | None
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """`(name, row number, row)` of one split.

    Raises:
        DataError: the dataset, its configuration or split is not there, or cannot be reached or read.
    """
    import datasets

    name, number = f"{path} ({split})", 0
    try:
        for row in datasets.load_dataset(path, config, split=split, revision=revision, streaming=True):
            number += 1
            yield name, number, row
    except Exception as error:  # of the network, the Hub, its files, ...: always the reader's to fix
        message = str(error).strip().partition("\n")[0][:200]
        raise DataError(
            f"the dataset cannot be read from the Hub ({type(error).__name__}: {message})",
            "Check the id, --hub_config, --hub_split and the connection, or download it and give the folder",
            file=name,
            row=number + 1 if number else None,
        ) from None


def hub_commit(path: str) -> str:
    """The commit that the dataset's main branch is at, or `unknown`."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(path).sha or "unknown"
    except Exception:  # the rows were read; which commit they were is all that is missing
        return "unknown"
