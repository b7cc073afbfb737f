"""`pluralrlhf user export`: a user's state or summary for other programs, with what it came from."""

from __future__ import annotations

import argparse

EXAMPLE = """example:
  pluralrlhf user export --users users --user_id anna --out anna.json
  pluralrlhf user export --users users --user_id anna --format message --out anna-message.json

`message` is the chat message, made of a summary, that any model can be given in front of a conversation.
"""


def main(argv: list[str] | None = None, prog: str = "pluralrlhf user export") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Export what is known of a user.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--users", required=True, metavar="DIR", help="folder of users' files (from `user summarize` or `user elicit`)"
    )
    add("--user_id", required=True, help="whose")
    add("--format", choices=("state", "message"), default="state", help="everything, or the message alone")
    add("--out", metavar="FILE", help="JSON file to write (default: standard output)")
    args = parser.parse_args(argv)

    from ..user_models.text.base import summary_prefix
    from .user_files import read_json, write_json
    from .user_forget import files_of

    files = files_of(args.users, args.user_id)
    states = [
        content
        for content in (read_json(str(file), "--users") for file in files)
        if "summary" in content or "state" in content
    ]
    if not states:
        from ..errors import ConfigError

        raise ConfigError(f"`--users` {args.users}: no state of user {args.user_id!r} is there.")
    if args.format == "message":
        texts = [state for state in states if "summary" in state]
        if not texts:
            from ..errors import ConfigError

            raise ConfigError(
                f"`--format message`: the state of user {args.user_id!r} is numbers of `{states[-1].get('method')}`, no text. Use "
                "--format state, or a text-route model."
            )
        state = texts[-1]
        prefix = state.get("prefix") if not state.get("edited") else None
        write_json(prefix or summary_prefix(state["summary"]), args.out)
    else:
        write_json(states[0] if len(states) == 1 else states, args.out)
    return 0
