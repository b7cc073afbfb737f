"""`pluralrlhf user elicit`: an interview in the terminal, until the model is sure of the user."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

INTERRUPTED = "add --resume to go on from the last answer"
EXAMPLE = """example:
  pluralrlhf user elicit --model runs/styles-vpl --pairs questions.jsonl --out users/anna.json
  pluralrlhf user elicit --model runs/styles-vpl --pairs questions.jsonl --out users/anna.json --resume

questions.jsonl: {"prompt": "How do I make tea?", "responses": ["Boil water.", "With pleasure! First, ..."]}
Answer a or b; s skips a question, u takes the last answer back, q ends. The state is saved after every answer.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf user elicit") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Ask a user which of two responses is better, one pair after the other, and learn at once.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="saved head-route model")
    add("--pairs", required=True, metavar="FILE", help="JSON or JSONL with `prompt` and two `responses` to ask about")
    add("--targets", metavar="FILE", help="pairs whose choices are to be predicted (default: those of --pairs)")
    add("--out", required=True, metavar="FILE", help="JSON file of the user's state, written after every answer")
    add("--user_id", help="whose state it is (default: the name of --out)")
    add("--resume", action="store_true", help="go on from the choices in --out")
    add(
        "--acquisition",
        choices=("epig", "bald", "d_optimal", "random", "fixed"),
        default="epig",
        help="how the next pair is chosen: information about the targets' choices (epig, default), about the user "
        "(bald, d_optimal), at random, or in the file's order (fixed)",
    )
    add("--max_questions", type=int, default=20, metavar="N", help="most questions (default: 20)")
    add(
        "--sure_below",
        type=float,
        default=0.02,
        metavar="NATS",
        help="stop when the doubt about the user, per target choice, is below this (default: 0.02 of at most 0.69)",
    )
    add("--seed", type=int, default=0, help="seed of the posterior's draws (default: 0)")
    args = parser.parse_args(argv)

    from ..errors import ConfigError

    if args.max_questions < 1:
        raise ConfigError(f"`--max_questions` is {args.max_questions}; give at least 1.")
    out = Path(args.out)
    if out.exists() and not args.resume:
        raise ConfigError(f"`--out` {out} exists. Name another file, or go on from its choices with `--resume`.")
    if args.resume and not out.exists():
        raise ConfigError(f"`--resume`: there is no {out} to go on from. Leave `--resume` out.")

    from ..evaluation.interview import Interview
    from ..evaluation.scorers import load_model
    from ..modeling.saving import weights_sha256
    from .user_files import read_json, write_json

    candidates = _rows(args.pairs, "--pairs")
    before = read_json(args.out, "--out") if args.resume else {"pairs": []}
    known = _known(before, args.out)
    model = load_model(args.model)
    sha256 = weights_sha256(args.model)
    if before.get("model_sha256", sha256) != sha256:
        print(f"note: the choices in {args.out} were made with another model; {args.model} reads them again",
              file=sys.stderr)  # fmt: skip

    def start(pairs: list[dict]) -> Interview:
        return Interview(
            model,
            candidates,
            targets=None if args.targets is None else _rows(args.targets, "--targets"),
            acquisition=args.acquisition,
            pairs=pairs,
            sure_below=args.sure_below,
            seed=args.seed,
        )

    talk = start(known)
    # What was answered in an earlier sitting is not asked again.
    asked = {pair.get("pair_id") for pair in known}
    talk.left = [number for number in talk.left if talk.candidates[number]["pair_id"] not in asked]

    def save(talk: Interview) -> None:
        about = {"user_id": args.user_id or out.stem, "model": args.model, "model_sha256": sha256}
        write_json({**talk.to_json(), **about}, args.out)

    print("Which of the two responses do you prefer?  a / b,  s skip,  u undo,  q quit\n")
    talk, end = _converse(talk, start, save, args.max_questions)
    n = len(talk.pairs)
    if not n and not args.resume:
        out.unlink(missing_ok=True)  # of answers that were all taken back
        print(f"{end}: no choices, so that nothing is saved.")
        return 0
    save(talk)
    print(f"{end}: {n} choice{'s' * (n != 1)} in all{_doubt(talk)}. Saved to {args.out}.")
    return 0


def _converse(talk, start, save, max_questions: int):
    """Asks until the user or the model has enough; returns the interview and why it ended."""
    past: list[tuple[list[dict], list[int]]] = []  # choices and open questions before each answer, for `u`
    while (question := talk.next()) is not None:
        if talk.sure and past:
            return talk, "The model is sure enough"
        if len(past) >= max_questions:
            return talk, f"{max_questions} question{'s are' if max_questions > 1 else ' is'} asked"
        row = talk.candidates[question]
        print(f"[{len(past) + 1}]  {_text(row['prompt'])}\n\n  a) {_text(row['responses'][0], '     ')}\n")
        print(f"  b) {_text(row['responses'][1], '     ')}\n")
        answer = _ask()
        if answer in ("q", None):
            return talk, "Ended"
        if answer == "u" and not past:
            print("Nothing was answered since the start, so that nothing can be taken back.\n")
            continue
        if answer == "u":
            pairs, left = past.pop()
            what = "skip" if len(pairs) == len(talk.pairs) else "last answer"
            talk = start(pairs)
            talk.left = left
            save(talk)
            print(f"The {what} is taken back.\n")
            continue
        past.append((list(talk.pairs), list(talk.left)))
        expected = talk.expects(question)
        talk.answer(question, {"a": 0, "b": 1, "s": None}[answer])
        if answer != "s":
            save(talk)
            foreseen = 100 * (expected if answer == "a" else 1 - expected)
            print(f"  noted; the model had given this answer {foreseen:.0f} %{_doubt(talk)}\n")
    return talk, "These were all the questions"


def _ask() -> str | None:
    """One of a, b, s, u, q; `None` at the end of the input."""
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            print()
            return None
        word = line.strip().lower()
        if word[:1] in ("a", "b", "s", "u", "q") and word in ("a", "b", "s", "u", "q", "skip", "undo", "quit"):
            return word[0]
        print("Please answer a, b, s (skip), u (undo) or q (quit).")


def _doubt(talk) -> str:
    doubt = talk.doubt
    return "" if doubt is None else f"; doubt about you {doubt:.3f} nats (sure below {talk.sure_below:g})"


def _text(content, indent: str = "") -> str:
    """Messages or a text, for reading; control characters of a terminal are left out."""
    if not isinstance(content, str):
        many = len(content) > 1
        content = "\n".join(f"{m['role']}: {m['content']}" if many else m["content"] for m in content)
    plain = "".join(c for c in content if c == "\n" or c.isprintable())
    return plain.replace("\n", "\n" + indent)


def _rows(path: str, name: str) -> list[dict]:
    from ..errors import DataError
    from .user_files import read_json

    rows = read_json(path, name)
    rows = rows if isinstance(rows, list) else [rows]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"found {type(row).__name__}", "Give one object a row.", file=path, row=number)
    return rows


def _known(content: Any, path: str) -> list[dict]:
    from ..errors import ConfigError

    if not isinstance(content, dict) or not isinstance(content.get("pairs"), list):
        raise ConfigError(f"`--resume`: {path} holds no choices. It was not written by `user elicit`.")
    return content["pairs"]
