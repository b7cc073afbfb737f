"""`pluralrlhf user score`: rewards of given responses under what is known of a user."""

from __future__ import annotations

import argparse

EXAMPLE = """example:
  pluralrlhf user score --model runs/pets-plus --user users/anna.json --responses answers.jsonl
  pluralrlhf user score --model runs/pets-plus --summary "the user likes cats best and dogs least ." \\
      --responses answers.jsonl

answers.jsonl: {"prompt": "Which pet?", "responses": ["A kitten.", "A puppy."]}
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf user score") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Rewards of responses under a user's state, or under a summary that was written, edited or typed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="saved reward model")
    add(
        "--user",
        metavar="FILE",
        help="file of `user elicit` or `user summarize`; in the latter a `summary` edited by hand needs `edited: true`",
    )
    add("--summary", metavar="TEXT", help="a summary typed in")
    add("--responses", required=True, metavar="FILE", help="JSON or JSONL with `prompt` and `response` or `responses`")
    add("--out", metavar="FILE", help="JSON file to write (default: standard output)")
    args = parser.parse_args(argv)

    from ..evaluation.scorers import load_model
    from ..user_models.text import TextState
    from .user_files import read_responses, read_state, write_json

    prompts, responses = read_responses(args.responses)
    model = load_model(args.model)
    state = read_state(model, args.user, args.summary)
    rewards = model.score(prompts, responses, state).tolist()
    rows = [{"prompt": p, "response": r, "reward": round(v, 6)} for p, r, v in zip(prompts, responses, rewards)]
    said = {"summary": state.texts[0]} if isinstance(state, TextState) else {}
    write_json({**said, "rewards": rows}, args.out)
    return 0
