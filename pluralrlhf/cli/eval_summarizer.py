"""`pluralrlhf eval summarizer`: what summaries say, whom they serve, and what they copy."""

from __future__ import annotations

import argparse
import json

EXAMPLE = """example:
  pluralrlhf train summarizer --config recipes/pets/plus.yaml --data runs/data/pets --output_dir runs/pets-plus
  pluralrlhf eval summarizer --model runs/pets-plus --data runs/data/pets --n_context 3 --output_dir runs/pets-summaries

writes summaries.json. The wrong user's summary, the flipped context, the empty and the edited summary are controls;
`pluralrlhf eval reward` gives the same models' accuracy for every split and number of context pairs.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf eval summarizer") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Evaluate the texts of text-route models: accuracy, faithfulness, controls, copying.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="saved text-route models; differences are to the first",
    )
    add("--data", required=True, metavar="DIR", help="dataset folder made by `data build`")
    add("--output_dir", required=True, metavar="OUT", help="folder of the results")
    add("--n_context", type=int, default=8, metavar="K", help="pairs behind each text (default: 8)")
    add("--split", help="split of the targets (default: unseen users on unseen items)")
    add("--topics", type=_topics, help='topic to words as JSON (default: those of training), {"cat": ["cats", "cat"]}')
    add("--max_targets", type=int, metavar="N", help="targets a user at most")
    add("--seed", type=int, default=0, help="seed of contexts and controls (default: 0)")
    add("--batch_size", type=int, default=64, help="pairs scored at once (default: 64)")
    add("--write_texts", action="store_true", help="also write summaries.jsonl, with user ids and texts")
    args = parser.parse_args(argv)

    from ..errors import ConfigError
    from ..evaluation.evaluate_summaries import evaluate_summaries

    if args.n_context < 1:
        raise ConfigError(f"`--n_context` is {args.n_context}; a text needs at least 1 pair.")
    content = evaluate_summaries(
        args.model,
        args.data,
        args.output_dir,
        n_context=args.n_context,
        split=args.split,
        topics=args.topics,
        max_targets=args.max_targets,
        seed=args.seed,
        batch_size=args.batch_size,
        write_texts=args.write_texts,
    )
    print(table(content))
    return 0


def _topics(text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not JSON") from None


def table(content: dict) -> str:
    """The results as a table, in per cent."""
    lines = [f"{content['split']}, {content['n_context']} pairs of context; % of pairs, mean over users [95 %]", ""]
    head = ["method", "seeds", "own", "other user", "flipped", "empty", "swapped", "faithful", "words", "copies"]
    rows = [head]
    for name, found in content["methods"].items():
        accuracy = found["accuracy"]
        cells = [interval(accuracy.get(key)) for key in ("own", "other_user", "flipped", "empty", "swapped")]
        faithful = interval(found.get("faithfulness", {}).get("true"))
        leak = "LEAK" if any(c["leak"] for c in found["copying"]) else "no"
        rows.append([name, str(found["n_seeds"]), *cells, faithful, f"{found['words']:.0f}", leak])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += ["", *(f"{name}: {interval(value)}" for name, value in content["differences"].items())]
    return "\n".join(lines).rstrip()


def interval(metric: dict | None) -> str:
    if not metric or metric["value"] is None:
        return "–"
    text = f"{100 * metric['value']:.1f}"
    return text if metric["ci95"] is None else f"{text} [{100 * metric['ci95'][0]:.1f}, {100 * metric['ci95'][1]:.1f}]"
