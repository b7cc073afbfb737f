"""Errors meant for the reader: what was given, what was found, what to do."""

from __future__ import annotations


class PluralRLHFError(ValueError):
    """Base of every error that is the caller's to fix. The command line prints it without a traceback."""


class ConfigError(PluralRLHFError):
    """A setting is misspelled, missing, or does not fit the others."""


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
