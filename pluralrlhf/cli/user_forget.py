"""`pluralrlhf user forget`: removes a user's states and history, and says what was removed."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from ..files import write_text

EXAMPLE = """example:
  pluralrlhf user forget --users users --user_id anna --dry_run
  pluralrlhf user forget --users users --user_id anna

Removes JSON files whose `user_id` is this one, and the user's rows from files of several users; what has no `user_id`
belongs to the user that the file is named after. What a killed writing left (.part) is removed. A model that was trained on the user's pairs still is: train it again
without them.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf user forget") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Forget a user.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--users", required=True, metavar="DIR", help="folder of users' files: states (JSON) and histories (JSONL)")
    add("--user_id", required=True, help="whom to forget")
    add("--dry_run", action="store_true", help="say what would be removed, and remove nothing")
    args = parser.parse_args(argv)

    removed = forget(args.users, args.user_id, dry_run=args.dry_run)
    print(json.dumps({"user_id": args.user_id, "dry_run": args.dry_run, "removed": removed}, indent=2))
    return 0


def files_of(folder: str, user_id: str) -> list[Path]:
    """JSON files of a folder that are this user's, in order of their names."""
    files = ((path, _content(path)) for path in _files(folder, "*.json"))
    return [path for path, value in files if isinstance(value, dict) and _owner(value, path.stem) == str(user_id)]


def forget(folder: str, user_id: str, dry_run: bool = False) -> list[dict]:
    """Removes what belongs to a user from a folder; returns one entry a file: `file`, `kind`, `rows`.

    Raises:
        ConfigError: There is no such folder, or nothing of the user in it.
    """
    from ..errors import ConfigError

    removed = []
    for path in _files(folder, "*.json"):
        content = _content(path)
        left, rows = _without(content, str(user_id), path.stem)
        if rows:
            state = isinstance(content, dict) and ("summary" in content or "state" in content)
            removed.append({"file": str(path), "kind": "state" if state else "history", "rows": rows})
            if not dry_run:
                _replace(path, None if left is None else json.dumps(left, indent=2, ensure_ascii=False) + "\n")
    for path in _files(folder, "*.jsonl"):
        keep, gone = [], 0
        # Not `splitlines`, which also cuts at what JSON may hold inside a text.
        for line in path.read_text(encoding="utf-8").split("\n"):
            left, rows = _without(_parsed(line), str(user_id), path.stem)
            gone += rows
            if not rows:
                keep.append(line)
            elif left is not None:
                keep.append(json.dumps(left, ensure_ascii=False))
        if gone:
            removed.append({"file": str(path), "kind": "history", "rows": gone})
            if not dry_run:
                text = "\n".join(keep)
                _replace(path, text if text.strip() else None)
    named = re.compile(r'"user_id":\s*"?' + re.escape(json.dumps(str(user_id), ensure_ascii=False)[1:-1]) + r"(?!\w)")
    for path in _files(folder, "*.part"):  # of a file whose writing was killed; nothing reads it, and it may be cut
        if path.name.partition(".json")[0] == str(user_id) or named.search(path.read_text("utf-8", "replace")):
            removed.append({"file": str(path), "kind": "unfinished", "rows": 1})
            if not dry_run:
                path.unlink()
    if not removed:
        raise ConfigError(f"`--users` {folder}: there is nothing of user {user_id!r} in it.")
    return removed


def _files(folder: str, pattern: str) -> list[Path]:
    from ..errors import ConfigError

    if not Path(folder).is_dir():
        raise ConfigError(f"`--users` {folder}: there is no such folder.")
    return sorted(Path(folder).rglob(pattern))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _content(path: Path) -> Any:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _owner(row: dict, otherwise: str) -> str:
    """Whose a state or a row is: its `user_id` or, where it has none, that of what it lies in. Numbers are ids too."""
    found = row.get("user_id")
    return otherwise if found is None else str(found)


def _without(content: Any, user_id: str, otherwise: str) -> tuple[Any, int]:
    """What is left of a state, a history or a list of rows without a user (None for nothing), and how much was removed."""
    if isinstance(content, list):
        keep = [row for row in content if not isinstance(row, dict) or _owner(row, otherwise) != user_id]
        return keep or None, len(content) - len(keep)
    if not isinstance(content, dict):
        return content, 0
    owner, pairs = _owner(content, otherwise), content.get("pairs")
    if isinstance(pairs, list) and any(isinstance(row, dict) and row.get("user_id") is not None for row in pairs):
        keep, rows = _without(pairs, user_id, owner)
        if owner == user_id and len(content) > 1:  # a state of this user's: other users' pairs alone are left of it
            return keep and {"pairs": keep}, max(rows, 1)
        return keep and {**content, "pairs": keep}, rows
    if owner != user_id:
        return content, 0
    return None, len(pairs) if isinstance(pairs, list) and pairs else 1


def _replace(path: Path, text: str | None) -> None:
    """Writes a file anew, or removes it."""
    if text is None:
        path.unlink()
    else:
        write_text(path, text)
