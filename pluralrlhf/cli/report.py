"""`pluralrlhf report`: one static page, tables and figures from one or several evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """example:
  pluralrlhf report runs/quickstart --html runs/quickstart/report.html
  pluralrlhf report runs/pets-btl-eval runs/pets-vpl-eval --html runs/pets.html --versus vpl

Evaluations on the same data are compared pair by pair. The page holds everything it shows; the figures and their CSV
files are also written beside it.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf report") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make tables, figures and one static page from evaluation results.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("results", nargs="+", metavar="OUT", help="outputs of `eval reward` or `eval suite`")
    parser.add_argument("--html", required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--title", default="Personalised reward models", help="heading of the page")
    parser.add_argument(
        "--versus", metavar="METHOD", help="compare every method with this one, pair by pair at every k"
    )
    args = parser.parse_args(argv)

    from ..errors import ConfigError

    html = Path(args.html)
    if html.is_dir():
        raise ConfigError(f"`--html` {html} is a folder: name a file, such as {html / 'report.html'}.")
    from ..evaluation.printing import print_summary
    from ..evaluation.report import join, write_report

    results, sources = join(args.results)
    figures = html.parent / f"{html.stem}_figures"
    write_report(results, sources, html, figures, title=args.title, versus=args.versus)
    print_summary(results)
    print(f"\n{html}\n{figures}/")
    return 0
