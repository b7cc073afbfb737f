"""`pluralrlhf eval diagnostics`: beyond accuracy, from the results of an evaluation."""

from __future__ import annotations

import argparse

EXAMPLE = """example:
  pluralrlhf eval reward --model runs/pets-vpl --baseline runs/pets-btl --data runs/data/pets --output_dir runs/pets-eval
  pluralrlhf eval diagnostics --results runs/pets-eval --data runs/data/pets --noise 0 0.1 0.2 0.3 0.4 0.5
  pluralrlhf report runs/pets-eval --html report.html

writes diagnostics/ beside the results (figures with their CSV), which `report` then shows: predicted against real vote
shares, gaps between groups of users, the price on pairs that nearly all agree on, signs of collapse; with --noise, wrong
labels in the context; with --best_of (generated populations), best of n against the true reward.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf eval diagnostics") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Vote shares, groups of users, agreed pairs, collapse, wrong labels, best of n.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--results", required=True, metavar="OUT", help="output of `eval reward` or `eval suite`")
    add("--data", nargs="+", required=True, metavar="DIR", help="the dataset folder that it evaluated; of folds, all")
    add("--dataset", metavar="NAME", help="which of a suite's datasets (default: the only one)")
    add("--split", metavar="SPLIT", help="default: the split that the report looks at first")
    add("--n_context", type=int, metavar="K", help="number of context pairs (default: the largest)")
    add("--noise", nargs="+", type=float, metavar="RATE", help="shares of wrong labels; loads the models again")
    add("--best_of", nargs="+", type=int, metavar="N", help="numbers of responses; loads the models again")
    add("--model", nargs="+", metavar="DIR", help="models for --noise and --best_of (default: those of the results)")
    add("--seed", type=int, default=0, help="seed of bootstraps and draws (default: 0)")
    args = parser.parse_args(argv)

    from ..errors import ConfigError

    if any(not 0 <= rate <= 0.5 for rate in args.noise or ()):
        raise ConfigError(f"`--noise` is {args.noise}; give shares from 0 to 0.5.")
    if any(n < 1 for n in args.best_of or ()):
        raise ConfigError(f"`--best_of` is {args.best_of}; give numbers of at least 1.")
    from ..data import load_pairs, load_users
    from ..evaluation.diagnostics import FOLDER, diagnostics_rows, model_diagnostics, stored_diagnostics
    from ..evaluation.diagnostics import write_diagnostics as write
    from ..evaluation.drawing import slug
    from ..evaluation.summary import read_results
    from ..evaluation.verdicts import headline_split
    from .eval_elicitation import _shown

    results = [result for result in read_results(args.results)["results"] if not result["placebo_of"]]
    names = list(dict.fromkeys(result["dataset"] for result in results))
    name = args.dataset or names[0]
    if name not in names or (args.dataset is None and len(names) > 1):
        raise ConfigError(f"`--dataset`: name one of {', '.join(names)}.")
    results = [result for result in results if result["dataset"] == name]
    if len(args.data) > 1 and (args.noise or args.best_of):
        raise ConfigError("`--noise` and `--best_of` take one `--data` folder: run them for one fold.")
    splits, users = (
        _joined([load_pairs(data) for data in args.data]),
        [u for d in args.data for u in load_users(d) or ()],
    )
    split = args.split or headline_split(list(results[0]["splits"]))
    if split not in splits:
        raise ConfigError(f"`--split` is {split!r}, which the data lacks. It has {', '.join(splits)}.")
    baseline = results[0]["baseline"]
    show = _shown()
    content = stored_diagnostics(
        args.results,
        splits,
        users,
        split,
        dataset=name,
        baseline=baseline,
        n_context=args.n_context,
        seed=args.seed,
    )
    if args.noise or args.best_of:
        models, methods = _models(args.model, results, args.results)
        content |= model_diagnostics(
            models,
            methods,
            args.data[0],
            splits,
            users,
            split,
            noise=args.noise,
            sizes=args.best_of,
            n_context=content["n_context"],
            baseline=baseline,
            seed=args.seed,
            show=show,
        )
    content = write(content, args.results, slug(name))
    columns, rows, notes = diagnostics_rows(content)
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in [columns, *rows]))
    if found := content.get("best_of_n"):
        left_out = sorted({*(args.best_of or ())} - {*found["sizes"]})
        if left_out:
            notes = [
                *notes,
                f"Best of {', '.join(map(str, left_out))}: left out, the smallest set of responses to a prompt has {found['pool']}.",
            ]
    print("\n" + "\n".join(notes))
    files = ["diagnostics.json", *(f[kind] for f in content["figures"] for kind in ("png", "csv"))]
    print(f"\n{args.results}/{FOLDER}/{slug(name)}: {', '.join(files)}")
    return 0


def _joined(parts: list):
    """The splits of several folds; a pair that is in several is kept once."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    out = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        whole = concatenate_datasets([part[name] for part in parts if name in part])
        first = {pair: row for row, pair in reversed(list(enumerate(whole["pair_id"])))}
        out[name] = whole.select(sorted(first.values()))
    return out


def _models(given: list[str] | None, results: list[dict], folder: str) -> tuple[list[str], list[str | None]]:
    """Folders of models and the names they go by; those of a suite lie within its output."""
    from pathlib import Path

    from ..errors import ConfigError

    if given:
        return given, [None] * len(given)
    models, names = [], []
    for result in results:
        listed = result["model"] if isinstance(result["model"], list) else [result["model"]]
        for model in filter(None, listed):
            found = next((path for path in (Path(folder, model), Path(model)) if path.is_dir()), None)
            if found is not None:
                models.append(str(found))
                names.append(result["method"])
    if not models:
        raise ConfigError("The results name no models that are still there. Give them with `--model`.")
    return models, names
