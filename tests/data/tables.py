"""Small tables for tests of the data sources."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any


def rows(users: int = 20, prompts: int = 8) -> list[dict[str, Any]]:
    """Pairs of users who like A or B by turns."""
    return [
        {
            "user_id": f"user{u}",
            "prompt": f"Question {q}?",
            "chosen": f"Answer {'AB'[u % 2]}{q}",
            "rejected": f"Answer {'BA'[u % 2]}{q}",
        }
        for u in range(users)
        for q in range(prompts)
    ]


def jsonl(table: list[Any]) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in table).encode()


def as_csv(table: list[dict[str, Any]], **settings: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]), **settings)
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def build(tmp_path: Path, *flags: str, path: Path | None = None, out: str = "out") -> tuple[int, Path]:
    """Runs `data build table`; exit status and folder."""
    from pluralrlhf.cli import main

    source = [] if path is None else ["--path", str(path)]
    folder = tmp_path / out
    return main(["data", "build", "table", *source, "--out", str(folder), "--no_progress", *flags]), folder


def read(folder: Path) -> list[dict[str, Any]]:
    """Every pair of a folder, with its split."""
    import pyarrow.parquet as pq

    from pluralrlhf.data import pair_files

    files = pair_files(folder)
    return [{"split": split, **row} for split in files for f in files[split] for row in pq.read_table(f).to_pylist()]
