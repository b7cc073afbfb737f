"""Errors meant for the reader: what was given, what was found, what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class PluralRLHFError(ValueError):
    """Base of every error that is the caller's to fix. The command line prints it without a traceback."""


class ConfigError(PluralRLHFError):
    """A setting is misspelled, missing, or does not fit the others."""


class NumericError(PluralRLHFError):
    """What was computed is NaN or infinite."""


class DataError(PluralRLHFError):
    """A row or a file does not keep the data contract.

    Args:
        found: What was found, in a few words; never a user's text in full.
        remedy: What the reader can do about it.
        file: Where it was found.
        row: 1-based row (or line) in that file.
        column: The column at fault.
    """

    def __init__(
        self,
        found: str,
        remedy: str,
        *,
        file: str | None = None,
        row: int | None = None,
        column: str | None = None,
    ):
        self.found, self.remedy, self.file, self.row, self.column = found, remedy, file, row, column
        where = [str(file)] if file else []
        if row is not None:
            where.append(f"row {row}")
        if column:
            where.append(f"column `{column}`")
        super().__init__(f"{', '.join(where) + ': ' if where else ''}{found}. {remedy}")


@contextmanager
def loading(argument: str, name: str | os.PathLike) -> Iterator[None]:
    """Turns what is raised for a model that is not found, or not whole, into a `ConfigError` that names the remedy.

    Args:
        argument: What the caller calls it.
        name: The folder or Hub id that is loaded inside.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ConfigError(
            f"`{argument}`: the weights in {str(name)!r} are damaged or only partly there ({error}). Copy or download them again."
        ) from None
    except OSError as error:
        if error.filename is not None:  # the disk's own, such as a missing right
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if os.path.isdir(name):
            raise ConfigError(f"`{argument}`: the folder {str(name)!r} holds no model ({reason}).") from None
        raise ConfigError(
            f"`{argument}`: there is no folder {str(name)!r} here, and as the id of a model on the Hub it could not be "
            f"loaded ({reason}). Check the path; or the id, and that the Hub is reachable or the model is in its cache."
        ) from None
