"""`pluralrlhf data cache`: what the feature cache holds, and making room in it."""

from __future__ import annotations

import argparse
from pathlib import Path

ACTIONS = {
    "list": "the encoders whose features are cached, with their number and size",
    "verify": "read every byte and compare checksums; exit status 1 if something is damaged",
    "prune": "drop leftovers of killed runs, damaged and duplicate rows, merge small files; no feature is lost",
    "clear": "delete features",
}


def main(argv: list[str], prog: str = "pluralrlhf data cache") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="The cache of text features: what it holds, and making room in it. It can be deleted at any time; "
        "what is needed is encoded again.",
        epilog="actions:\n"
        + "\n".join(f"  {name:<8}{text}" for name, text in ACTIONS.items())
        + f"\n\nexample:\n  {prog} list\n  {prog} clear --unused_days 30",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=ACTIONS, nargs="?", default="list", help="default: list")
    parser.add_argument(
        "--root",
        type=Path,
        help="folder of the cache (default: features/ in $PLURALRLHF_CACHE, else in ~/.cache/pluralrlhf)",
    )
    parser.add_argument("--encoder", help="only this encoder's features: its name, or the start of its fingerprint")
    parser.add_argument("--unused_days", type=float, help="only features that were not used for so many days")
    args = parser.parse_args(argv)

    from ..features import maintenance
    from ..files import cache_root

    root = args.root or cache_root() / "features"
    stores = maintenance.find_stores(root, args.encoder)
    if args.unused_days is not None:
        stores = [info for info in stores if info.unused_days >= args.unused_days]
    if args.action == "list":
        _print_stores(root, stores)
    elif args.action == "verify":
        return _verify(stores)
    elif args.action == "prune":
        freed = sum(maintenance.prune(info) for info in stores)
        print(f"freed {freed / 1e6:.1f} MB in {root}")
    else:
        freed = maintenance.clear(stores)
        print(f"deleted the features of {len(stores)} encoders, {freed / 1e6:.1f} MB, in {root}")
    return 0


def _print_stores(root: Path, stores: list) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fingerprint", "encoder", title=str(root))
    for name in ("dim", "texts", "files", "MB", "unused days"):
        table.add_column(name, justify="right")
    for info in stores:
        numbers = (str(info.dim), f"{info.texts:,}", str(info.shards), f"{info.bytes / 1e6:.1f}")
        table.add_row(info.path.name[:12], info.name, *numbers, f"{info.unused_days:.0f}")
    console = Console()
    console.print(table)
    console.print(f"{len(stores)} encoders, {sum(info.bytes for info in stores) / 1e6:.1f} MB", highlight=False)


def _verify(stores: list) -> int:
    from rich.console import Console
    from rich.progress import track

    from ..features.maintenance import damage
    from ..features.store import ShardStore

    paths = [path for info in stores for path in ShardStore(info.path).files()]
    found = 0
    for path in track(paths, "reading", console=Console(stderr=True), transient=True):
        if reason := damage(path):
            found += 1
            print(f"damaged: {path}: {reason}")
    print(f"{len(paths)} files, {found} damaged" + (": `prune` removes them" if found else ""))
    return 1 if found else 0


if __name__ == "__main__":
    import sys

    from . import run_module

    sys.exit(run_module("data_cache", sys.argv[1:], "pluralrlhf data cache"))
