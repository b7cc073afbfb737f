"""`pluralrlhf eval transfer`: do summaries serve other models? A judge's win rate over default responses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files import write_json

EXAMPLE = """example:
  pluralrlhf eval transfer --model runs/plus --data runs/data/pets --n_context 8 \\
      --writer gpt-4o-mini --judge gpt-4o-mini --base_url https://api.openai.com/v1 --api_key_env OPENAI_API_KEY \\
      --output_dir runs/plus-transfer

A name without `--base_url` is a local transformers model. With a server the same command goes on where it stopped: answers
are kept in responses.jsonl and verdicts.jsonl, and none is paid for twice. Local models begin anew.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf eval transfer") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Responses of another model with a user's summary against its default ones, by a judge.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="saved text-route model that writes the summaries")
    add("--data", required=True, metavar="DIR", help="dataset folder made by `data build`")
    add("--output_dir", required=True, metavar="OUT", help="folder of the results and of the kept answers")
    add("--writer", required=True, help="model that responds")
    add("--judge", required=True, help="model that judges")
    add("--base_url", help="OpenAI-compatible server of both; without it they are local models")
    add("--judge_base_url", help="server of the judge, if another")
    add("--api_key_env", default="OPENAI_API_KEY", help="environment variable with the key (default: OPENAI_API_KEY)")
    add("--n_context", type=int, default=8, metavar="K", help="pairs behind each summary (default: 8)")
    add("--n_users", type=int, default=50, help="users at most (default: 50)")
    add("--n_prompts", type=int, default=4, help="prompts a user (default: 4)")
    add("--n_evidence", type=int, default=4, help="held-back pairs that the judge sees (default: 4)")
    add("--use_profile", action="store_true", help="the judge sees the true `profile` in place of held-back pairs")
    add("--split", help="split of the prompts (default: unseen users on unseen items)")
    add("--concurrency", type=int, default=16, help="requests in flight at a server (default: 16)")
    add("--max_tokens", type=int, default=256, help="longest response (default: 256)")
    add(
        "--prices",
        nargs=2,
        type=float,
        metavar="P",
        help="cost of a million prompt and of a million completion tokens, with a server",
    )
    args = parser.parse_args(argv)

    from ..data import load_pairs, load_users
    from ..errors import ConfigError
    from ..evaluation.evaluate import check_output
    from ..evaluation.evaluate_summaries import transfer_users
    from ..evaluation.transfer import win_rate

    for name in ("n_context", "n_users", "n_prompts", "concurrency", "max_tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(f"`--{name}` is {getattr(args, name)}; give at least 1.")
    if args.n_evidence < 0:
        raise ConfigError(f"`--n_evidence` is {args.n_evidence}; give at least 0.")
    folder = check_output(args.output_dir)
    users = transfer_users(
        args.model,
        load_pairs(args.data),
        load_users(args.data),
        split=args.split,
        n_context=args.n_context,
        n_users=args.n_users,
        n_prompts=args.n_prompts,
        n_evidence=args.n_evidence,
        use_profile=args.use_profile,
    )
    writer = _chat("writer", args.writer, args.base_url, args, folder / "responses.jsonl")
    judge = _chat("judge", args.judge, args.judge_base_url or args.base_url, args, folder / "verdicts.jsonl")
    found = win_rate(users, writer, judge)
    write_json(folder / "transfer.json", found)
    print(json.dumps(found, indent=2))
    return 0


def _chat(argument: str, name: str, base_url: str | None, args: argparse.Namespace, store: Path):
    import os

    from ..environments.endpoint import ChatEndpoint, LocalChat

    if base_url is not None:
        return ChatEndpoint(
            name,
            base_url,
            os.environ.get(args.api_key_env, "none"),
            store=store,
            concurrency=args.concurrency,
            max_tokens=args.max_tokens,
            prices=tuple(args.prices) if args.prices else None,
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..errors import loading

    with loading(argument, name):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    return LocalChat(model, tokenizer, args.max_tokens)
