"""From messages to the text that an encoder reads. Pure functions: the text is what the feature cache is keyed by."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError

PART_MODES = ("response", "joined", "concat")

Messages = Sequence[Mapping[str, str]]


def render(messages: Messages, tokenizer: Any = None, *, add_special: bool = True, prompt_only: bool = False) -> str:
    """Renders messages as one text.

    Without a tokenizer, or with one that has no chat template (sentence encoders), the text is plain: a single
    message is its content, several are one `Role: content` a line. With a chat template it is the template's. Strings in
    the content that the tokenizer would take for special tokens are broken up first, see [`neutralize_special_tokens`].

    Args:
        messages: `{"role", "content"}` dictionaries.
        tokenizer: Of the model that will read the text.
        add_special: Whether the text will be tokenised with the tokenizer's own special tokens
            (`tokenizer(text)`, its default): a leading BOS in the template that it would double is then left out.
        prompt_only: Whether to end with the start of an assistant's turn.

    Raises:
        ConfigError: if the chat template refuses the messages.

    Example:
        >>> render([{"role": "user", "content": "Hello"}])
        'Hello'
        >>> render([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}])
        'User: Hello\\nAssistant: Hi'
    """
    contents = [neutralize_special_tokens(message["content"], tokenizer) for message in messages]
    if not has_chat_template(tokenizer):
        if len(messages) == 1:
            return contents[0]
        return "\n".join(f"{m['role'].capitalize()}: {content}" for m, content in zip(messages, contents))
    safe = [{**message, "content": content} for message, content in zip(messages, contents)]
    try:
        text = tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=prompt_only)
    except Exception as error:  # jinja2 raises its own errors, and templates raise theirs
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(
            f"The chat template of the encoder's tokenizer refuses messages with the roles {roles} ({error}). Give an "
            "encoder whose template takes them, or one without a chat template."
        ) from error
    if add_special and tokenizer.bos_token and text.startswith(tokenizer.bos_token) and _adds_bos(tokenizer):
        text = text[len(tokenizer.bos_token) :]
    return text


def encoder_parts(prompt: Messages, response: Messages, mode: str, tokenizer: Any = None) -> list[str]:
    """The texts whose embeddings, concatenated, are the features of a (prompt, response).

    Args:
        prompt: The prompt's messages.
        response: The response's messages.
        mode: `response` (the response alone), `joined` (prompt and response as one text: by the chat template if the
            tokenizer has one, else prompt, line break, response) or `concat` (the response and the prompt, each on its
            own).
        tokenizer: Of the model that will read the texts; see [`render`].

    Returns:
        One text for `response` and `joined`; `[response, prompt]` for `concat`, so that the features' first half is the
        same as in `response`.

    Raises:
        ConfigError: for an unknown `mode`.
    """
    if mode not in PART_MODES:
        raise ConfigError(f"`encoder_parts`: found {mode!r}. Choose one of {', '.join(PART_MODES)}.")
    if mode == "joined" and has_chat_template(tokenizer):
        return [render([*prompt, *response], tokenizer)]
    # A template needs a user's turn before the assistant's, so that parts on their own are plain text.
    plain_prompt, plain_response = _plain(prompt, tokenizer), _plain(response, tokenizer)
    if mode == "response":
        return [plain_response]
    return [f"{plain_prompt}\n{plain_response}"] if mode == "joined" else [plain_response, plain_prompt]


def neutralize_special_tokens(text: str, tokenizer: Any) -> str:
    """Breaks up every string in `text` that the tokenizer would read as a special or added token.

    A user who writes `<|im_end|>` would otherwise end the turn. A space goes in after the string's first character, so
    that a reader still sees what was written, and the tokenizer reads ordinary text. Added tokens that are plain words
    or white space are no markup and stay.

    Args:
        text: What somebody wrote.
        tokenizer: None changes nothing.

    Returns:
        The text, unchanged if there is nothing in it to break up.
    """
    if tokenizer is None:
        return text
    pattern, normalizer = _special_strings(tokenizer)
    if pattern is None:
        return text
    while pattern.search(text):
        text = pattern.sub(_break_up, text)
    if normalizer is not None and pattern.search(normalizer(text)):
        # A token that is matched after normalisation can hide in other letters (full-width ones, say), where its place
        # in the original is not known: the normalised text is kept, without it.
        text = pattern.sub(" ", normalizer(text))
        while pattern.search(normalizer(text)):
            text = pattern.sub(" ", normalizer(text))
    return text


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return tokenizer is not None and bool(getattr(tokenizer, "chat_template", None))


def _plain(messages: Messages, tokenizer: Any) -> str:
    contents = [{**m, "content": neutralize_special_tokens(m["content"], tokenizer)} for m in messages]
    return render(contents)


def _break_up(match: re.Match) -> str:
    found = match.group()
    return f"{found[0]} {found[1:]}" if len(found) > 1 else " "


_patterns: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _special_strings(tokenizer: Any) -> tuple[re.Pattern | None, Any]:
    """A pattern of the tokenizer's special strings, and its normaliser if some are matched after normalisation."""
    known = _patterns.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = (len(tokenizer), *_find_special_strings(tokenizer))
        _patterns[tokenizer] = known
    return known[1:]


def _find_special_strings(tokenizer: Any) -> tuple[re.Pattern | None, Any]:
    added = list(getattr(tokenizer, "added_tokens_decoder", {}).values())
    special = {token for token in getattr(tokenizer, "all_special_tokens", []) if token.strip()}
    special |= {token.content for token in added if token.special and token.content.strip()}
    markup = {token.content for token in added if re.search(r"[^\w\s]", token.content)}
    strings = sorted(special | markup, key=lambda string: (-len(string), string))
    if not strings:
        return None, None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = None
    if backend is not None and backend.normalizer is not None and any(token.normalized for token in added):
        normalizer = backend.normalizer.normalize_str
        strings += [normal for normal in map(normalizer, strings) if normal.strip() and normal not in strings]
    return re.compile("|".join(map(re.escape, strings))), normalizer


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
