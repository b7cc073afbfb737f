"""`pluralrlhf data list`: the sources and what each gives."""

from __future__ import annotations

import argparse
import json
import textwrap


def main(argv: list[str], prog: str = "pluralrlhf data list") -> int:
    from ..data.sources import SOURCES, source_class

    parser = argparse.ArgumentParser(
        prog=prog,
        description="The data sources, and what each gives.",
        epilog=f"example:\n  {prog}\n  pluralrlhf data build pets -h",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    args = parser.parse_args(argv)
    summaries = {name: source_class(name).summary for name in SOURCES}
    if args.json:
        print(json.dumps(summaries, indent=2, ensure_ascii=False))
        return 0
    width = max(map(len, summaries)) + 2
    for name, summary in summaries.items():
        print(textwrap.fill(summary, 110, initial_indent=f"{name:<{width}}", subsequent_indent=" " * width))
    print("\nBuild one: pluralrlhf data build SOURCE --out DIR   (its settings: pluralrlhf data build SOURCE -h)")
    return 0


if __name__ == "__main__":
    import sys

    from . import run_module

    sys.exit(run_module("data_list", sys.argv[1:], "pluralrlhf data list"))
