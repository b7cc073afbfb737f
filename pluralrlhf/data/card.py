"""The README.md of a dataset folder: YAML that tells `datasets` which file is which split, and a dataset card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..files import blocks

_SPLIT_MEANING = {
    "train": "training users on seen items",
    "validation": "other users on seen items; every choice (checkpoint, settings) is made on these",
    "test_seen_users_seen_items": "held-out pairs of training users",
    "test_seen_users_unseen_items": "training users on items never seen in training",
    "test_unseen_users_seen_items": "users never seen in training, on seen items",
    "test_unseen_users_unseen_items": "users never seen in training, on items never seen: the headline",
}

# Identifiers that the Hub knows; any other licence is named in the text only.
_LICENCES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC0-1.0": "cc0-1.0",
    "MIT": "mit",
    "Apache-2.0": "apache-2.0",
}


def hash_files(folder: Path) -> str:
    """sha256 of the names and bytes of both configs' parquet files."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("pairs", "users") for p in Path(folder, part).glob("*.parquet")):
        digest.update(f"{path.parent.name}/{path.name}\n".encode())
        with open(path, "rb") as file:
            for block in blocks(file):
                digest.update(block)
    return digest.hexdigest()


def write_card(folder: Path, build: dict[str, Any], described: dict[str, Any]) -> None:
    """Writes `folder/README.md`.

    Each config's description names the content's hash. That is not for people only: `datasets.load_dataset` on a local
    folder keys its cache by the folder's last name and this YAML, not by the files; without the hash it would answer
    with the rows of another folder of that name, or of an earlier build.

    Args:
        folder: The dataset folder, its parquet files written.
        build: What `build.json` holds.
        described: `Source.describe()`.
    """
    counts = build["counts"]
    content = hash_files(folder)
    lines = ["---"]
    if described.get("licence") in _LICENCES:
        lines.append(f"license: {_LICENCES[described['licence']]}")
    lines += ["tags:", "- preference", "- personalization", "- trl", "configs:", "- config_name: pairs"]
    lines += ["  default: true", f"  description: pairs of build {content[:16]}", "  data_files:"]
    for split in counts["splits"]:
        lines += [f"  - split: {split}", f"    path: pairs/{split}-*.parquet"]
    lines += [
        "- config_name: users",
        f"  description: users of build {content[:16]}",
        "  data_files:",
        "  - split: users",
        "    path: users/users-*.parquet",
        "---",
        "",
    ]
    lines += [f"# {described.get('title') or described['source']}: preference pairs by user", ""]
    lines += [
        f"{counts['pairs']:,} preference pairs of {counts['users']:,} users, in TRL's conversational preference format "
        "(`prompt`, `chosen`, `rejected`), with `user_id`, `pair_id` and `item_ids` (what a target and its context must "
        "not share).",
        "",
        "| split | what | pairs | users |",
        "|---|---|---:|---:|",
    ]
    lines += [
        f"| `{split}` | {_SPLIT_MEANING[split]} | {count['pairs']:,} | {count['users']:,} |"
        for split, count in counts["splits"].items()
    ]
    lines += ["", "## Source", "", f"- Source: `{build['source']}`"]
    for key, label in (("origin", "Origin"), ("version", "Version"), ("commit", "Commit")):
        if described.get(key):
            lines.append(f"- {label}: {described[key]}")
    lines.append(f"- Licence: {described.get('licence') or 'not stated; ask whoever gave you the data'}")
    if described.get("attribution"):
        lines.append(f"- Attribution: {described['attribution']}")
    if isinstance(described.get("sha256"), dict):
        lines += [f"- `{name}`: sha256 `{digest}`" for name, digest in described["sha256"].items()]
    if described.get("notes"):
        lines += ["", described["notes"]]
    lines += ["", "## Left out", ""]
    lost = {**build["dropped"], **{f"{key} (invalid)": n for key, n in build["skipped_invalid"].items()}}
    lines += [f"- {reason.replace('_', ' ')}: {n:,}" for reason, n in lost.items() if n] or ["Nothing."]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'pairs = load_dataset("FOLDER", "pairs")  # every split',
        'users = load_dataset("FOLDER", "users")["users"]',
        "```",
        "",
        "The splits are made by a hash of the user and item ids, so that the same ids fall on the same side after "
        "re-ordering or appending. `build.json` holds every setting of this build:",
        "",
        "```json",
        json.dumps(build["parameters"], ensure_ascii=False),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
