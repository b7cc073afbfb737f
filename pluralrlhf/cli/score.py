"""`pluralrlhf score`: rewards of many candidates for many users, to parquet."""

from __future__ import annotations

import argparse

INTERRUPTED = "the same command goes on from what was finished"
EXAMPLE = """example:
  pluralrlhf data build pets --out runs/data/pets
  pluralrlhf train reward --config recipes/pets/vpl.yaml --data runs/data/pets --output_dir runs/pets-vpl
  echo '{"prompt": "Which pet?", "responses": ["A kitten.", "A puppy."]}' > runs/answers.jsonl
  pluralrlhf score --model runs/pets-vpl --data runs/data/pets --candidates runs/answers.jsonl --out runs/scores

Writes scores-00000.parquet ... with user_id, candidate (the row of the file, from 0), response (its place in
`responses`) and reward. The same call goes on where an earlier one was stopped.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf score") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score candidate responses for every user of a dataset.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="saved reward model")
    add("--data", required=True, metavar="DIR", help="dataset folder, whose pairs say who the users are")
    add("--candidates", required=True, metavar="FILE", help="JSONL or parquet: `prompt`, `response` or `responses`")
    add("--out", required=True, metavar="DIR", help="folder of the scores")
    add("--n_context", type=int, default=8, metavar="K", help="pairs of each user that the model sees (default: 8)")
    add("--splits", nargs="+", metavar="SPLIT", help="whose users, from which pairs (default: all splits)")
    add("--block_size", type=int, default=1000, metavar="N", help="responses in a file (default: 1000)")
    add("--batch_size", type=int, default=64, metavar="N", help="texts in a batch of a trained backbone (default: 64)")
    add(
        "--packing",
        choices=["shared_prefix"],
        help="a trained backbone reads what texts begin with in common (a user's text, a prompt) once a batch",
    )
    add("--no_progress", action="store_true", help="show no progress")
    args = parser.parse_args(argv)

    from ..evaluation.candidates import score_candidates

    record = score_candidates(
        args.model,
        args.data,
        args.candidates,
        args.out,
        n_context=args.n_context,
        splits=args.splits,
        block_size=args.block_size,
        batch_size=args.batch_size,
        packing=args.packing,
        progress=not args.no_progress,
    )
    print(f"{args.out}: {record['scores']:,} scores of {record['users']:,} users in {record['files']} files")
    return 0
