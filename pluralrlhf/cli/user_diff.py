"""`pluralrlhf user diff`: how rewards move when a summary is edited."""

from __future__ import annotations

import argparse

EXAMPLE = """example:
  pluralrlhf user diff --model runs/pets-plus --user users/anna.json --responses answers.jsonl \\
      --edited "the user likes dogs best and cats least ."
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf user diff") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Rewards under a summary and under its edited form, side by side.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="saved text-route model")
    add("--user", metavar="FILE", help="file of `user summarize`")
    add("--summary", metavar="TEXT", help="the summary before, typed in")
    add("--edited", required=True, metavar="TEXT", help="the summary after")
    add("--responses", required=True, metavar="FILE", help="JSON or JSONL with `prompt` and `response` or `responses`")
    add("--out", metavar="FILE", help="JSON file to write (default: standard output)")
    args = parser.parse_args(argv)

    from ..modeling.text import user_text
    from .user_files import load_text_model, read_responses, read_state, write_json

    prompts, responses = read_responses(args.responses)
    model = load_text_model(args.model)
    before = read_state(model, args.user, args.summary)
    old = model.score(prompts, responses, before).tolist()
    new = model.score(prompts, responses, user_text(model, args.edited)).tolist()
    rows = [
        {"prompt": p, "response": r, "before": round(a, 6), "after": round(b, 6), "change": round(b - a, 6)}
        for p, r, a, b in zip(prompts, responses, old, new)
    ]
    best = {name: [max(rows, key=lambda row, n=name: row[n])["response"]] for name in ("before", "after")}
    content = {
        "before": before.texts[0],
        "after": args.edited,
        "rewards": rows,
        "first": {k: v[0] for k, v in best.items()},
    }
    write_json(content, args.out)
    return 0
