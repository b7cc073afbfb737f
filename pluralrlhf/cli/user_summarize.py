"""`pluralrlhf user summarize`: a history in, a summary out, with what it came from."""

from __future__ import annotations

import argparse
import sys

EXAMPLE = """example:
  pluralrlhf user summarize --model runs/pets-plus --history anna.jsonl --user_id anna --out users/anna.json

anna.jsonl, one row a line, either pairs or rated chat logs:
  {"prompt": "Which pet?", "chosen": "A cat naps on your lap.", "rejected": "Dogs love long walks."}
  {"messages": [{"role": "user", "content": "Which pet?"},
                {"role": "assistant", "content": "A cat naps on your lap.", "rating": "up"}]}
Rows with a `user_id` may be of several users: those of `--user_id` are read.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf user summarize") -> int:
    from .user_files import HISTORY_HELP

    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a user's summary from what they preferred.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="saved text-route model, such as plus")
    add("--history", required=True, metavar="FILE", help=HISTORY_HELP)
    add(
        "--user_id",
        help="whose rows of the history are read, where rows have a `user_id`; noted in the summary's file",
    )
    add("--n_context", type=int, metavar="K", help="use the last K pairs (default: as many as the model reads)")
    add("--out", metavar="FILE", help="JSON file to write (default: standard output)")
    args = parser.parse_args(argv)

    from ..errors import ConfigError
    from ..modeling.saving import weights_sha256
    from .user_files import load_text_model, read_history, write_json

    if args.n_context is not None and args.n_context < 1:
        raise ConfigError(f"`--n_context` is {args.n_context}; give at least 1.")
    history = read_history(args.history, args.user_id)
    model = load_text_model(args.model)
    limit = getattr(model.user_model.config, "max_pairs", None)
    asked = history[-args.n_context if args.n_context else 0 :]
    pairs = asked[-limit if limit else 0 :]
    if len(pairs) < len(asked):
        print(
            f"note: the summariser was trained on up to {limit} pairs: the last {limit} of {len(history)} are read",
            file=sys.stderr,
        )
    state = model.encode_user(pairs)
    state.provenance["model_sha256"] = weights_sha256(args.model)
    if args.user_id:
        state.provenance["user_id"] = args.user_id
    write_json(state.to_json(), args.out)
    return 0
