"""`pluralrlhf data inspect DIR`: what a dataset folder holds, and whether it can be trusted."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from ..errors import ConfigError

_LEAKS = {
    "users_in_two_partitions": "users in two of training, validation, test",
    "items_on_both_sides": "items both seen and unseen",
    "pairs_on_both_sides": "same prompt and responses on both item sides",
    "held_out_pairs_in_training": "held-out pairs that the user also has in `train`",
    "targets_shown_in_context": "targets whose prompt and response their context can show",
}
_NOTES = {
    "repeated_judgments": "judgments repeated by the same user",
    "contradicting_judgments": "pairs that a user judged both ways",
    "responses_shown_in_context": "targets with a response that occurs in their context to another prompt",
    "responses_on_both_sides": "response texts on both item sides",
}
# What a terminal would act on, and what turns the direction of what follows.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def main(argv: list[str], prog: str = "pluralrlhf data inspect") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Users and pairs by split, pairs a user, disagreement, what a model without users can reach at "
        "best, leaks between splits, and examples of a dataset folder.",
        epilog=f"example:\n  pluralrlhf data build pets --out data_pets\n  {prog} data_pets --examples 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", help="a dataset folder")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="show N pairs (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--no_progress", dest="progress", action="store_false", help="print no progress")
    args = parser.parse_args(argv)
    if args.examples < 0:
        raise ConfigError(f"`--examples` is {args.examples}: give a number of pairs")
    from ..data.inspect import inspect_dataset

    report = inspect_dataset(args.folder, examples=args.examples, progress=args.progress)
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        show(report)
    return 0


def show(report: dict[str, Any]) -> None:
    """Prints a report as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if _terminal() else 120)

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            made.add_column(column, justify="right" if number else "left", overflow="fold")
        return made

    console.print(f"{escape(report['folder'])}: source {escape(report['source'])}\n")
    made = table("Splits", "", "pairs", "users", "items", "prompts")
    for name, row in report["splits"].items():
        made.add_row(name, *(f"{row[key]:,}" for key in ("pairs", "users", "items", "prompts")))
    console.print(made)
    lost = {**report["dropped"], **{f"{k} (invalid)": n for k, n in report["skipped_invalid"].items()}}
    if lost := {reason: n for reason, n in lost.items() if n}:
        console.print("left out when built: " + ", ".join(f"{reason} {n:,}" for reason, n in lost.items()))

    quantiles = ("mean", "p0", "p10", "p25", "p50", "p75", "p90", "p100")
    made = table("\nPairs a user", "", "mean", "least", "10 %", "25 %", "median", "75 %", "90 %", "most")
    for name, row in report["pairs_per_user"].items():
        made.add_row(name, f"{row['mean']:,.1f}", *(f"{row[key]:,.0f}" for key in quantiles[1:]))
    console.print(made)
    made = table(
        "\nContext: the user's other pairs that share no item with the target (at least)",
        *("targets in", "without any", "mean", "least", "10 %", "25 %", "median", "75 %", "90 %", "most"),
    )
    for name, row in report["context"].items():
        values = row["quantiles"]
        made.add_row(
            name,
            f"{row['targets_without_context']:,}",
            f"{values['mean']:,.1f}",
            *(f"{values[key]:,.0f}" for key in quantiles[1:]),
        )
    console.print(made)
    made = table("\nCharacters", "", "mean", "least", "10 %", "25 %", "median", "75 %", "90 %", "most")
    for name, row in report["characters"].items():
        made.add_row(name.replace("_", " "), f"{row['mean']:,.0f}", *(f"{row[key]:,.0f}" for key in quantiles[1:]))
    console.print(made)

    found = report["disagreement"]
    made = table("\nDisagreement", "", "")
    made.add_row("different pairs judged by two users or more", f"{found['shared_pairs']:,}")
    made.add_row("judgments that are on such pairs", _percent(found["judgments_on_shared_pairs"]))
    made.add_row("such pairs on which users disagree", _percent(found["shared_pairs_with_disagreement"]))
    made.add_row("chance that two users of such a pair disagree", _percent(found["two_users_disagree"]))
    made.add_row("responses judged by five users or more", f"{found['responses_judged_by_5_users']:,}")
    made.add_row(
        "of these, preferred in 20 to 80 % of comparisons", _percent(found["of_these_won_by_20_to_80_percent"])
    )
    console.print(made)

    bound = report["global_bound"]
    keys = {
        "majority_in_sample": "majority, own vote in",
        "majority_of_others": "majority of others",
        "win_rate_of_others": "win rates of others",
    }
    title = "\nWhat one answer for everybody can reach (accuracy, mean over users)"
    made = table(title, "", "about", *keys.values())
    for name, row in bound["splits"].items():
        cells = (f"{_percent(row[key]['accuracy'])} ({row[key]['n_pairs']:,} pairs)" for key in keys)
        made.add_row(name, f"[bold]{_percent(row['reach'])}[/]", *cells)
    console.print(made)
    console.print(
        "“about” is the higher of the last two columns, of those with 50 pairs or more, and at least the 50 % of a guess."
        if len(bound["judged_by"]) > 1
        else "“about” is the last column, and at least the 50 % of a guess: too few judgments are on shared pairs for a "
        "majority, and fewer than 50 pairs tell nothing."
    )

    made = table("\nLeaks (each must be 0)", "", "")
    for key, text in _LEAKS.items():
        count = report["leaks"][key]
        made.add_row(text, f"[bold red]{count:,}[/]" if count else "0")
    console.print(made)
    console.print("Worth a look: " + ", ".join(f"{text} {report['leaks'][key]:,}" for key, text in _NOTES.items()))
    for example in report["examples"]:
        console.print(f"\n[bold]{example['split']}[/] user {_safe(example['user_id'])}")
        for part in ("prompt", "chosen", "rejected"):
            text = " / ".join(message["content"] for message in example[part])
            console.print(f"  [bold]{part:<9}[/]{_safe(text)}")


def _safe(text: str, most: int = 400) -> str:
    """User text for a terminal: no control sequences, no markup, not endless."""
    from rich.markup import escape

    text = _UNPRINTABLE.sub("�", text)
    return escape(text if len(text) <= most else text[: most - 1] + "…")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()


if __name__ == "__main__":
    import sys

    from . import run_module

    sys.exit(run_module("data_inspect", sys.argv[1:], "pluralrlhf data inspect"))
