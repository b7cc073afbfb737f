"""Token ids of a response to a prompt with messages about the user in front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .rendering import has_chat_template, neutralize_special_tokens
from .tokenization import Messages, as_messages, tokenize_response


class PrefixTokenizer:
    """Puts messages about a user in front of conversations.

    Where the chat template renders a conversation message by message (most do), prefix and conversation are tokenised
    once each and joined. Templates that do not, such as those that put a default system message where there is none,
    or that know no system messages, get the whole conversation each time.

    Args:
        tokenizer: With or without a chat template.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.has_system = not has_chat_template(tokenizer) or self._takes_system()
        self.joins = self._joins()
        self._prefixes: dict[str, list[int]] = {}

    def _takes_system(self) -> bool:
        probe = [{"role": "system", "content": "y"}, {"role": "user", "content": "y"}]
        try:
            self.tokenizer.apply_chat_template(probe, tokenize=False)
        except Exception:  # jinja2 raises its own errors, and templates raise theirs
            return False
        return True

    def _joins(self) -> bool:
        if not has_chat_template(self.tokenizer) or not self.has_system:
            return False
        system, user, agent = ([{"role": role, "content": "yes. x"}] for role in ("system", "user", "assistant"))
        for prefix in (system, [*user, *agent], [*user, *agent, *user, *agent]):
            whole = self._whole(prefix, user, agent)
            try:
                parts = self._chat(prefix) + tokenize_response(self.tokenizer, user, agent)[0]
            except Exception:
                return False
            if whole != parts:
                return False
        return True

    def _chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        safe = [{**m, "content": neutralize_special_tokens(m["content"], self.tokenizer)} for m in messages]
        return list(self.tokenizer.apply_chat_template(safe, tokenize=True, return_dict=True)["input_ids"])

    def _whole(self, prefix: Sequence[dict[str, str]], prompt: Messages, response: Messages) -> list[int]:
        prompt = as_messages(prompt, "user")
        if prefix and not self.has_system and prefix[0]["role"] == "system" and prompt:
            first = {**prompt[0], "content": f"{prefix[0]['content']}\n\n{prompt[0]['content']}"}
            prefix, prompt = prefix[1:], [first, *prompt[1:]]
        return tokenize_response(self.tokenizer, [*prefix, *prompt], as_messages(response, "assistant"))[0]

    def prefix_ids(self, prefix: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of messages that end before the prompt."""
        key = repr(prefix)
        if key not in self._prefixes:
            if len(self._prefixes) > 20_000:
                self._prefixes.clear()
            self._prefixes[key] = self._chat(prefix) if prefix else []
        return self._prefixes[key]

    def ids(
        self,
        prefix: Sequence[dict[str, str]],
        prompt: Messages,
        response: Messages,
        max_length: int | None = None,
        target_ids: Sequence[int] | None = None,
    ) -> tuple[list[int], bool]:
        """Tokens of prefix, prompt and response.

        Args:
            target_ids: Tokens of prompt and response on their own, where they are known.

        Returns:
            (ids, truncated): past `max_length` the longest message of the prefix loses its end, word by word, then
            the beginning of what is left is cut.

        Raises:
            ConfigError: The chat template refuses the messages.
        """
        target = list(target_ids) if target_ids is not None else None
        if not prefix:
            if target is None:
                # As messages, also where they are plain texts: what stands in front must not change the rest.
                messages = as_messages(prompt, "user"), as_messages(response, "assistant")
                return tokenize_response(self.tokenizer, *messages, max_length)
            return target, False
        try:
            ids = self._join(prefix, prompt, response, target)
            truncated = max_length is not None and len(ids) > max_length
            while truncated and prefix and len(ids) > max_length:
                prefix = _shorter(prefix, len(ids) - max_length)
                ids = (
                    self._join(prefix, prompt, response, target)
                    if prefix
                    else target or self._whole([], prompt, response)
                )
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"The reward model's chat template refuses the messages about the user ({error})."
            ) from None
        return (ids[-max_length:] if truncated else ids), truncated

    def _join(self, prefix, prompt, response, target) -> list[int]:
        if not self.joins:
            return self._whole(prefix, prompt, response)
        if target is None:
            target = tokenize_response(
                self.tokenizer, as_messages(prompt, "user"), as_messages(response, "assistant")
            )[0]
        return self.prefix_ids(prefix) + target


def _shorter(prefix: Sequence[dict[str, str]], n_words: int) -> list[dict[str, str]]:
    """The prefix without about `n_words` words at the end of its longest message, or without that message's pair."""
    longest = max(range(len(prefix)), key=lambda i: len(prefix[i]["content"]))
    words = prefix[longest]["content"].split()
    keep = words[: max(0, len(words) - n_words)]
    if keep:
        return [{**m, "content": " ".join(keep)} if i == longest else m for i, m in enumerate(prefix)]
    # A whole exchange goes, so that roles still take turns: four messages a labelled pair.
    return list(prefix[4:])
