"""`pluralrlhf eval reward`: what reward models make of users they have never seen."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = """example:
  pluralrlhf data build pets --out runs/data/pets
  pluralrlhf train reward --config recipes/pets/btl.yaml --data runs/data/pets --output_dir runs/pets-btl
  pluralrlhf train reward --config recipes/pets/vpl.yaml --data runs/data/pets --output_dir runs/pets-vpl
  pluralrlhf eval reward --model runs/pets-vpl --baseline runs/pets-btl --data runs/data/pets --n_context 0 2 8 \\
      --output_dir runs/pets-eval

writes results.json, per_pair.parquet (the source of every figure), summary.md, figures/ (PNG and CSV), report.html.
Compare several evaluations with `pluralrlhf report OUT OUT ... --html report.html`. Several processes:
  accelerate launch --num_processes 2 -m pluralrlhf.cli.eval_reward --model ...
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Evaluate reward models on held-out users, with controls and intervals.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="saved reward models; several of one method are its seeds",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset folder made by `data build`")
    parser.add_argument("--output_dir", required=True, metavar="OUT", help="folder of the results")
    parser.add_argument(
        "--n_context",
        nargs="+",
        type=int,
        default=[0, 2, 8],
        metavar="K",
        help="numbers of context pairs (default: 0 2 8); 0 is always among them",
    )
    parser.add_argument(
        "--baseline",
        metavar="DIR",
        help="a model without users (btl), or the output of an earlier evaluation of one on the same data",
    )
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="splits to evaluate (default: validation and all test splits)"
    )
    parser.add_argument("--no_controls", action="store_true", help="leave out the controls")
    parser.add_argument("--no_report", action="store_true", help="leave out figures and report.html")
    parser.add_argument("--seed", type=int, default=0, help="seed of contexts and controls (default: 0)")
    parser.add_argument(
        "--n_bootstrap", type=int, default=1000, metavar="N", help="replicates behind intervals (default: 1000)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="texts in a batch of a trained backbone (default: 64)"
    )
    parser.add_argument(
        "--packing",
        choices=["shared_prefix"],
        help="read what texts begin with in common (a user's text, a prompt) once; for trained backbones",
    )
    return parser


def main(argv: list[str] | None = None, prog: str = "pluralrlhf eval reward") -> int:
    args = _parser(prog).parse_args(argv)

    from ..errors import ConfigError
    from . import command_of

    for name in ("n_bootstrap", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"`--{name}` is {getattr(args, name)}; give at least 1.")
    from ..evaluation.evaluate import evaluate_reward, write_outputs

    content = evaluate_reward(
        args.model,
        args.data,
        args.output_dir,
        n_context=args.n_context,
        splits=args.splits,
        controls=not args.no_controls,
        baseline=args.baseline,
        seed=args.seed,
        n_replicates=args.n_bootstrap,
        batch_size=args.batch_size,
        packing=args.packing,
        command=command_of(prog, argv),
    )
    if content is not None:  # the first process of several
        write_outputs(content, Path(args.output_dir), report=not args.no_report)
    return 0


if __name__ == "__main__":
    from . import run_module

    sys.exit(run_module("eval_reward", sys.argv[1:], "python -m pluralrlhf.cli.eval_reward"))
