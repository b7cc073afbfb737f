"""Conversations between a policy and simulated users, all of a batch advancing together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .base import Conversation, SimulatedUser, Turn, World, stable_seed
from .generation import ChatFormat


def rollout(
    conversations: Sequence[Conversation],
    *,
    world: World,
    user: SimulatedUser,
    generator: Any,
    chat: ChatFormat,
    max_new_tokens: int = 16,
    max_length: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Sequence[Conversation]:
    """Plays the conversations to their ends, in place.

    Args:
        conversations: New conversations (no turns yet).
        world: Reads utterances and says when a conversation is over.
        user: Answers for all conversations at once.
        generator: `CachedGenerator`, `ReencodingGenerator` or `VLLMGenerator`.
        chat: Turns messages into tokens.
        max_new_tokens: Tokens of one utterance at most.
        max_length: Tokens of a conversation at most, prompt included; it ends as `too_long` before it would pass.
        temperature: Of the policy; 0 is greedy.
        seed: Of the policy's sampling. The users' dice are the conversations' own `seed`.

    Returns:
        The same conversations, with tokens, masks and `ended` filled in.
    """
    device = getattr(generator, "device", torch.device("cpu"))
    dice = torch.Generator(device=device).manual_seed(stable_seed("policy", seed) % 2**63)
    for conversation in conversations:
        conversation.prompt_ids = chat.prompt_ids(conversation.prompt)
    active = list(range(len(conversations)))
    generator.start([conversations[i].prompt_ids for i in active])
    while active:
        ids, logps = generator.generate(max_new_tokens, chat.stop_ids, temperature, dice)
        asking = []
        for i, tokens, values in zip(active, ids, logps):
            _add_turn(conversations[i], tokens, values, world, chat)
            if conversations[i].ended is None:
                asking.append(i)
        replies = dict(zip(asking, user.reply([conversations[i] for i in asking]))) if asking else {}
        keep, tokens_added = [], []
        for row, i in enumerate(active):
            if i not in replies:
                continue
            new = _add_reply(conversations[i], replies[i], chat, max_new_tokens, max_length)
            if new is not None:
                keep.append(row)
                tokens_added.append(new)
        active = [active[row] for row in keep]
        if active:
            generator.extend(keep, tokens_added)
    for conversation in conversations:
        _check(conversation)
    return conversations


def _add_turn(conversation: Conversation, tokens: list[int], logps: list[float], world: World, chat: ChatFormat):
    text = chat.text(tokens)
    conversation.turns.append(Turn(text, world.parse(text), token_ids=list(tokens), logprobs=list(logps)))
    n = len(tokens)
    conversation.completion_ids += tokens
    conversation.logprobs += logps
    conversation.env_mask += [1] * n
    conversation.turn_index += [len(conversation.turns) - 1] * n
    if conversation.turns[-1].act.kind == "recommend":
        conversation.ended = "recommended"
    elif len(conversation.turns) >= world.max_turns:
        conversation.ended = "max_turns"


def _add_reply(conversation, reply, chat, max_new_tokens, max_length) -> list[int] | None:
    """The tokens to encode before the next turn, or None if the conversation is over."""
    if reply.error is not None:
        conversation.ended, conversation.error = "failed", reply.error
        conversation.env_mask = [0] * len(conversation.env_mask)
        return None
    conversation.turns[-1].user = reply.text
    if reply.leaves:
        conversation.ended = "user_left"
        return None
    new = chat.user_turn_ids(reply.text)
    if conversation.turns[-1].token_ids[-1] != chat.end_id:  # cut off: close the utterance for the policy
        new = [chat.end_id, *new]
    total = len(conversation.prompt_ids) + len(conversation.completion_ids) + len(new) + max_new_tokens
    if max_length is not None and total > max_length:
        conversation.ended = "too_long"
        return None
    conversation.completion_ids += new
    conversation.logprobs += [0.0] * len(new)
    conversation.env_mask += [0] * len(new)
    conversation.turn_index += [-1] * len(new)
    return new


def _check(conversation: Conversation) -> None:
    # TRL pads a short mask with ones, which would train on the user's tokens without a word.
    lengths = {
        len(x)
        for x in (
            conversation.completion_ids,
            conversation.env_mask,
            conversation.logprobs,
            conversation.turn_index,
        )
    }
    if len(lengths) != 1 or lengths == {0}:
        raise RuntimeError(f"token lists of different lengths, or none: {sorted(lengths)}")
    if conversation.ended is None:
        raise RuntimeError("a conversation that has not ended")
