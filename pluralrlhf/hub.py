"""Repositories of models on the Hub that are more than one `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path

HUB_OPTIONS = ("token", "cache_dir", "local_files_only")
VERSION_OPTIONS = (*HUB_OPTIONS, "revision")
_QUIET = ("gated_repo", "missing_entries", "connection_errors")


def hub_copy(name: str | Path, holds: str, **options) -> Path | None:
    """The local copy of a repository on the Hub, if there is one of this name that holds this file.

    Args:
        name: `owner/name`.
        holds: Path of the file.
        options: Of `from_pretrained`; `revision`, `token`, `cache_dir` and `local_files_only` are used.
    """
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    if Path(name).exists():
        return None
    where = {key: options[key] for key in VERSION_OPTIONS if key in options}
    # What is missing altogether is the business of who loads it.
    quiet = dict.fromkeys((f"_raise_exceptions_for_{what}" for what in _QUIET), False)
    found = cached_file(str(name), holds, **where, **quiet)
    return None if found is None else Path(snapshot_download(str(name), **where))
