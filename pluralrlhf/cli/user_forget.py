"""`pluralrlhf user forget`: removes a user's states and history, and says what was removed."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

EXAMPLE = """example:
  pluralrlhf user forget --users users --user_id anna --dry_run
  pluralrlhf user forget --users users --user_id anna

Removes JSON files whose `user_id` is this one, and the user's rows from JSONL files; what has no `user_id` belongs to the
user that the file is named after. A model that was trained on the
user's pairs still is: train it again without them.
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
    from ..errors import ConfigError

    if not Path(folder).is_dir():
        raise ConfigError(f"`--users` {folder}: there is no such folder.")
    return [path for path in sorted(Path(folder).rglob("*.json")) if _owner(path) == user_id]


def forget(folder: str, user_id: str, dry_run: bool = False) -> list[dict]:
    """Removes what belongs to a user from a folder; returns one entry a file: `file`, `kind`, `rows`.

    Raises:
        ConfigError: There is no such folder, or nothing of the user in it.
    """
    from ..errors import ConfigError

    removed = []
    for path in files_of(folder, user_id):
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = "state" if "summary" in content or "state" in content else "history"
        removed.append({"file": str(path), "kind": kind, "rows": len(content.get("pairs", [])) or 1})
        if not dry_run:
            path.unlink()
    for path in sorted(Path(folder).rglob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        keep = [line for line in lines if _owner_of_line(line, path) != user_id]
        if len(keep) == len(lines):
            continue
        removed.append({"file": str(path), "kind": "history", "rows": len(lines) - len(keep)})
        if not dry_run:
            # Written beside and renamed: a kill leaves the old file or the new one, never half of one.
            part = path.with_suffix(".jsonl.part")
            part.write_text("".join(keep), encoding="utf-8")
            os.replace(part, path)
            if not keep:
                path.unlink()
    if not removed:
        raise ConfigError(f"`--users` {folder}: there is nothing of user {user_id!r} in it.")
    return removed


def _owner(path: Path) -> str | None:
    """Whose a JSON file is: its `user_id` or, where it has none, its name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("user_id") or path.stem if isinstance(content, dict) else None


def _owner_of_line(line: str, path: Path) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row.get("user_id") or path.stem if isinstance(row, dict) else None
