"""Which of the package's code a result hangs on: the modules that made it and all that they import."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# Imported, but of what is said and shown alone.
_OF_NO_MATTER = ("errors.py", "locks.py", "data/progress.py", "trainers/model_card.py")


@cache
def code_hash(*entries: str) -> str:
    """Hash of these files or folders of the package and of what they import: results of other code are not this code's.

    Raises:
        RuntimeError: The package has no such file.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(code_behind(*entries)):
        digest.update(f"{file}\n".encode() + (_PACKAGE / file).read_bytes())
    return digest.hexdigest()


def code_behind(*entries: str) -> set[str]:
    """The files that `code_hash` hashes, by their paths in the package."""
    left: list[Path] = []
    for entry in entries:
        path = _PACKAGE / entry
        found = [path] if path.is_file() else sorted(path.rglob("*.py"))
        if not found:
            raise RuntimeError(f"no file of the package is named {entry}")
        left += found
    seen: set[Path] = set()
    while left:
        if (file := left.pop()) not in seen:
            seen.add(file)
            left += _imported(file)
    return {file.relative_to(_PACKAGE).as_posix() for file in seen} - set(_OF_NO_MATTER)


def _imported(file: Path) -> Iterator[Path]:
    """The package's modules that a file imports anywhere, for types' sake apart."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    for_types = {id(node) for check in checks for node in ast.walk(check)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in for_types:
            continue
        folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for name in node.names:
            places = (folder / f"{name.name}.py", folder / name.name / "__init__.py", folder.with_suffix(".py"))
            yield from [place for place in (*places, folder / "__init__.py") if place.is_file()][:1]
