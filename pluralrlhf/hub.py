"""Repositories of models on the Hub that are more than one `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path

# Where a new training puts the checkpoints of an earlier one; not `earlier`: what begins with an underscore is left out
# of uploads to the Hub.
EARLIER = "_earlier"
HUB_OPTIONS = ("token", "cache_dir", "local_files_only")
VERSION_OPTIONS = (*HUB_OPTIONS, "revision")
_QUIET = ("gated_repo", "missing_entries", "connection_errors")


def may_be_on_hub(name: str | Path) -> bool:
    """Whether this is no local folder but has the form of an id, `owner/name`."""
    path = Path(name)
    return not (path.exists() or path.is_absolute() or len(path.parts) != 2 or path.parts[0] in (".", ".."))


def hub_copy(name: str | Path, holds: str, **options) -> Path | None:
    """The local copy of a repository on the Hub, if there is one of this name that holds this file.

    Args:
        name: `owner/name`.
        holds: Path of the file.
        options: Of `from_pretrained`; `revision`, `token`, `cache_dir` and `local_files_only` are used.
    """
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    if not may_be_on_hub(name):
        return None
    where = {key: options[key] for key in VERSION_OPTIONS if key in options}
    # What is missing altogether is the business of who loads it.
    quiet = dict.fromkeys((f"_raise_exceptions_for_{what}" for what in _QUIET), False)
    found = cached_file(str(name), holds, **where, **quiet)
    return None if found is None else Path(snapshot_download(str(name), **where))
