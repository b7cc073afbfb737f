"""`pluralrlhf eval elicitation`: interviews replayed on recorded choices, one for each way to choose questions."""

from __future__ import annotations

import argparse
import sys

# Written out, so that `-h` waits for no import.
KNOWN = ("epig", "bald", "d_optimal", "random", "fixed")
EXAMPLE = """example:
  pluralrlhf data build styles --out runs/data/styles
  pluralrlhf train reward --config recipes/styles/vpl.yaml --data runs/data/styles --output_dir runs/styles-vpl
  pluralrlhf eval elicitation --model runs/styles-vpl --data runs/data/styles --n_questions 8 --max_users 50 \\
      --output_dir runs/styles-elicitation

The answer to a question is what that participant really chose. Questions and targets share no item. Writes
elicitation.json, per_user.csv, curves.csv, curves.png, summary.md.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf eval elicitation") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare ways to choose the next question: accuracy on other items after each answer.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="saved head-route model")
    add("--data", required=True, metavar="DIR", help="dataset folder made by `data build`")
    add("--output_dir", required=True, metavar="OUT", help="folder of the results")
    add("--acquisitions", nargs="+", choices=KNOWN, metavar="NAME", help=f"of {', '.join(KNOWN)} (default: all)")
    add("--n_questions", type=int, default=12, metavar="N", help="questions asked of each participant (default: 12)")
    add("--max_users", type=int, metavar="N", help="most participants (default: all that have enough questions)")
    add(
        "--split",
        default="test_unseen_users_seen_items",
        help="split of the questions (default: test_unseen_users_seen_items; validation to choose settings on)",
    )
    add(
        "--target_items",
        type=float,
        metavar="SHARE",
        help="share of the items that belong to the targets (default: the pairs on unseen items are the targets where "
        "there are any, else 0.5)",
    )
    add("--n_draws", type=int, default=512, metavar="S", help="draws from the posterior (default: 512)")
    add("--seed", type=int, default=0, help="seed of the division, the draws and the bootstrap (default: 0)")
    args = parser.parse_args(argv)

    from ..errors import ConfigError
    from . import command_of

    for name in ("n_questions", "n_draws", "max_users"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"`--{name}` is {getattr(args, name)}; give at least 1.")
    if args.target_items is not None and not 0 < args.target_items < 1:
        raise ConfigError(f"`--target_items` is {args.target_items}; give a share between 0 and 1.")
    from ..data import data_sha256, load_pairs
    from ..evaluation.elicitation import METHODS, elicitation_data, replay
    from ..evaluation.elicitation_report import markdown, write_elicitation
    from ..evaluation.evaluate import check_output
    from ..evaluation.scorers import load_scorers

    folder = check_output(args.output_dir)
    splits = load_pairs(args.data)
    (scorer,) = load_scorers([args.model], splits)
    if scorer.model.user_model.route != "head":
        raise ConfigError(f"`--model` {args.model} reads users as texts; replay a head-route model.")
    data = elicitation_data(
        scorer,
        splits,
        n_questions=args.n_questions,
        target_items=args.target_items,
        max_users=args.max_users,
        split=args.split,
        seed=args.seed,
    )
    acquisitions = args.acquisitions or (
        METHODS if scorer.model.user_model.has_posterior else [name for name in METHODS if name in ("random", "fixed")]
    )
    show = _shown()
    curves = replay(
        scorer, data, acquisitions, n_questions=args.n_questions, n_draws=args.n_draws, seed=args.seed, show=show
    )
    info = {
        "method": scorer.method,
        "model": args.model,
        "data": args.data,
        "data_sha256": data_sha256(args.data),
        "split": args.split,
        "n_questions": args.n_questions,
        "seed": args.seed,
        "command": command_of(prog, argv),
    }
    users = [scorer.pairs.history.users[user] for user in data.questions]
    content = write_elicitation(curves, users, folder, info, args.seed)
    print(markdown(content))
    print(f"{folder}: {', '.join(content['files'])}")
    return 0


def _shown():
    """What is being done, on stderr: over itself on a terminal, every few seconds elsewhere."""
    import time

    said = [0.0]

    def show(text: str) -> None:
        terminal = sys.stderr.isatty()
        if time.monotonic() - said[0] > (0.2 if terminal else 15):
            said[0] = time.monotonic()
            print(f"\r\033[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)

    return show
