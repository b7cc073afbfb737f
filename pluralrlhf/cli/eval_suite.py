"""`pluralrlhf eval suite`: everything that a suite file names, once."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

INTERRUPTED = "the same command goes on from what was finished"
EXAMPLE = """example:
  pluralrlhf eval suite evals/quickstart.yaml --output_dir runs/quickstart

A suite file names datasets, methods and references:

  description: Do two opposite types of users get what each of them wants?
  datasets:
    pets: {source: pets, n_users: 200}            # a source with its settings, or `data: FOLDER`
  train: {encoder: offline, max_steps: 200}        # settings of training that all methods share
  methods:
    btl: {user_model: btl}
    vpl: {user_model: vpl, user_model_kwargs: {beta: 0.001}}
  n_context: [0, 2, 8]
  seeds: 3
  placebo: true                                    # votes shuffled among users, trained again: the gain must be 0
  ceiling: true                                    # what could be reached at best

Per dataset also: item_folds, user_folds (each fold is the test side once), n_context, splits, placebo, ceiling, train.
`--methods` and `--folds` run it as if the file named only these, and the results are of these; the whole, run later into
the same folder, does only what is left.
`like: OTHER.yaml` takes from a suite beside it what this one does not say itself.
Stop it when you like: the same command goes on, and computes nothing twice. Run it several times at once, as one process
for each GPU (CUDA_VISIBLE_DEVICES), and the processes share the jobs.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf eval suite") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Build, train and evaluate everything that a suite file names.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("suite", metavar="FILE.yaml", help="the suite")
    parser.add_argument("--output_dir", required=True, metavar="OUT", help="folder of the results")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds (default: what the file says, or 1)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these of the suite's methods")
    parser.add_argument(
        "--folds", nargs="+", type=int, metavar="N", help="only these folds of datasets in folds, from 0"
    )
    parser.add_argument(
        "--n_bootstrap", type=int, default=1000, metavar="N", help="replicates behind intervals (default: 1000)"
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="SOURCE=DIR",
        help="local copy of a source's data, where the suite would fetch it from its public origin",
    )
    parser.add_argument("--no_report", action="store_true", help="leave out figures and report.html")
    args = parser.parse_args(argv)

    from ..errors import ConfigError
    from . import command_of

    for name in ("seeds", "n_bootstrap"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"`--{name}` is {getattr(args, name)}; give at least 1.")
    if not Path(args.suite).is_file():
        raise ConfigError(f"{args.suite}: there is no such file. Suites lie in evals/*.yaml.")
    from ..evaluation.evaluate import write_outputs
    from ..evaluation.suite import run_suite
    from ..evaluation.suite_spec import load_suite, narrowed, with_paths

    spec = narrowed(with_paths(load_suite(args.suite, args.seeds), args.path), args.methods, args.folds)
    command = command_of(prog, argv)
    write = partial(
        write_outputs, folder=Path(args.output_dir), title=f"Suite: {spec.name}", report=not args.no_report
    )
    run_suite(spec, args.output_dir, n_replicates=args.n_bootstrap, command=command, finish=write)
    return 0
