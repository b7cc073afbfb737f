"""What the `user` commands read and write: a history of pairs, a summary, responses to score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ConfigError, DataError

HISTORY_HELP = (
    "JSON or JSONL file of one user's pairs (`prompt`, `chosen`, `rejected`), or of rated chat logs: messages with "
    '`"rating": "up"` or `"down"` on answers'
)


def read_json(path: str, what: str) -> Any:
    """A JSON file, or a JSONL file as a list."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"`{what}` {path}: cannot be read ({error.strerror}).") from None
    try:
        return json.loads(text)
    except ValueError:
        pass
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(
                    f"not JSON ({error})", "Give JSON, or one object a line.", file=path, row=number
                ) from None
    return rows


def read_history(path: str, user_id: str | None = None) -> list[dict[str, Any]]:
    """One user's labelled pairs.

    A row with `messages` is a chat log: each answer rated "up" is paired with each answer rated "down" to the same
    messages before it, and otherwise with a disliked answer from elsewhere in the user's logs, in turn. Where rows have a
    `user_id`, those of the user are read.

    Raises:
        DataError: A row that cannot be read, no pair, none of this user, or several users and nothing says which.
    """
    rows = read_json(path, "--history")
    rows = rows.get("pairs", [rows]) if isinstance(rows, dict) else rows if isinstance(rows, list) else [rows]
    if not rows:
        raise DataError("there are no rows", "Give at least one pair, or one rated answer of each kind.", file=path)
    pairs, rated = [], []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"found {type(row).__name__}, not an object", "Give one object a row.", file=path, row=number
            )
    own = _owners(rows, user_id, path)
    for number, row in enumerate(rows, 1):
        if number not in own:
            continue
        if "messages" in row:
            rated += _rated(row["messages"], path, number)
            continue
        for key in ("prompt", "chosen", "rejected"):
            if not row.get(key):
                raise DataError("missing or empty", "Give a text or messages.", file=path, row=number, column=key)
        pairs.append({**row, "pair_id": row.get("pair_id") or f"row-{number}"})
    pairs += _paired(rated)
    if not pairs:
        raise DataError(
            "no answer rated up and no answer rated down to set against it", "Rate at least one of each.", file=path
        )
    return pairs


def _owners(rows: list[dict[str, Any]], user_id: str | None, path: str) -> set[int]:
    """Numbers of the user's rows."""
    users = {str(row["user_id"]) for row in rows if row.get("user_id") is not None}
    if user_id is None:
        if len(users) > 1:
            raise DataError(
                f"the rows are of {len(users)} users", "Say whose summary is wanted: `--user_id`.", file=path
            )
        return set(range(1, len(rows) + 1))
    own = {n for n, row in enumerate(rows, 1) if row.get("user_id") is None or str(row["user_id"]) == str(user_id)}
    if users and not any(rows[n - 1].get("user_id") is not None for n in own):
        raise DataError(
            f"no row is of the user given as `--user_id`, but of {len(users)} others",
            "Check the id, or give a file of this user.",
            file=path,
        )
    return own


def _rated(messages: Any, path: str, row: int) -> list[tuple[list[dict[str, str]], str, bool, str]]:
    out, before = [], []
    try:
        for number, message in enumerate(messages):
            plain = {"role": message["role"], "content": message["content"]}
            rating = message.get("rating")
            if rating not in (None, "up", "down"):
                found = f"`rating` is {rating!r}"
                raise DataError(found, "Use `up`, `down`, or leave it out.", file=path, row=row, column="messages")
            if rating and message["role"] == "assistant":
                out.append((list(before), message["content"], rating == "up", f"row-{row}-message-{number}"))
            before.append(plain)
    except (KeyError, TypeError, AttributeError):
        raise DataError("not a list of messages", "Each has `role` and `content`.", file=path, row=row) from None
    return out


def _paired(rated: list[tuple[list[dict[str, str]], str, bool, str]]) -> list[dict[str, Any]]:
    liked, disliked = ([r for r in rated if r[2] is up] for up in (True, False))
    pairs, used = [], set()
    for before, text, _, name in liked:
        same = [r for r in disliked if r[0] == before]
        for other in same:
            used.add(other[3])
            pairs.append(_pair(before, text, other[1], f"{name}/{other[3]}"))
    paired = {pair["pair_id"].split("/")[0] for pair in pairs}
    rest = [r for r in disliked if r[3] not in used] or disliked
    alone = [r for r in liked if r[3] not in paired]
    for number, (before, text, _, name) in enumerate(alone):
        if rest:
            other = rest[number % len(rest)]
            pairs.append(_pair(before, text, other[1], f"{name}/{other[3]}"))
    return pairs


def _pair(before: list, chosen: str, rejected: str, pair_id: str) -> dict[str, Any]:
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    prompt = before or [{"role": "user", "content": ""}]
    return {"prompt": prompt, "chosen": next(answers), "rejected": next(answers), "pair_id": pair_id}


def read_responses(path: str) -> tuple[list[Any], list[Any]]:
    """Prompts and responses: rows with `prompt` and `response` (or `responses`)."""
    from ..evaluation.candidates import prompt_and_responses

    rows = read_json(path, "--responses")
    prompts, responses = [], []
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        prompt, given = prompt_and_responses(row, path, number)
        prompts += [prompt] * len(given)
        responses += given
    return prompts, responses


def load_text_model(path: str):
    """A saved text-route reward model."""
    from ..evaluation.scorers import load_model

    model = load_model(path)
    if model.user_model.route != "text":
        raise ConfigError(
            f"`--model` {path} is `{model.config.user_model}`, whose users are no texts. Use a text-route model (plus, "
            "icl, extract ...)."
        )
    return model


def read_state(model: Any, path: str | None, text: str | None):
    """A user's state from a file written by `user summarize` or `user elicit`, or from a typed summary."""
    from ..modeling.text import user_text

    if (path is None) == (text is None):
        raise ConfigError("Give either `--user FILE` (from `user summarize` or `user elicit`) or `--summary TEXT`.")
    text_route = model.user_model.route == "text"
    if text is not None:
        if not text_route:
            raise ConfigError(
                f"`--summary`: the users of `{model.config.user_model}` are no texts. Use `--user FILE`."
            )
        return user_text(model, text)
    content = read_json(path, "--user")
    from ..user_models import UserState
    from ..user_models.text import TextState

    if not isinstance(content, dict):
        command = "summarize" if text_route else "elicit"
        raise ConfigError(f"`--user` {path} is no user's state. Write one with `pluralrlhf user {command}`.")
    return model._checked((TextState if text_route else UserState).from_json(content))


def write_json(content: Any, path: str | None) -> None:
    """To a file, or to standard output."""
    if path is None:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)
