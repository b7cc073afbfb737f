"""Evaluation of a conversational policy on held-out simulated users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..environments.base import Belief, Conversation, ScriptedUser, SimulatedUser, World, stable_seed
from .bootstrap import user_interval


def play(
    model: Any,
    tokenizer: Any,
    world: World,
    split: str,
    *,
    n: int = 256,
    seed: int = 0,
    user: SimulatedUser | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 16,
    batch_size: int = 256,
    max_length: int | None = None,
) -> list[Conversation]:
    """`n` conversations with users of a split, the users in turn; the same dice for every policy of the same `seed`."""
    from ..environments.generation import CachedGenerator, ChatFormat
    from ..environments.rollout import rollout
    from ..features.tokenization import padding_id

    users = world.users(split)
    conversations = [
        Conversation(users[i % len(users)], world.prompt(users[i % len(users)]), seed=stable_seed("eval", seed, i))
        for i in range(n)
    ]
    training = model.training
    model.eval()
    generator, chat = CachedGenerator(model, padding_id(tokenizer)), ChatFormat(tokenizer)
    for start in range(0, n, batch_size):
        rollout(
            conversations[start : start + batch_size],
            world=world,
            user=user or ScriptedUser(world),
            generator=generator,
            chat=chat,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            temperature=temperature,
            seed=stable_seed("eval", seed, split, start),
        )
    model.train(training)
    return conversations


def by_user(conversations: Sequence[Conversation], values: Sequence[float]) -> np.ndarray:
    """Mean of `values` over each user's conversations, in order of first appearance."""
    sums: dict[str, list[float]] = {}
    for conversation, value in zip(conversations, values):
        sums.setdefault(conversation.profile.user_id, []).append(value)
    return np.array([np.mean(v) for v in sums.values()])


def interval(conversations: Sequence[Conversation], values: Sequence[float]) -> dict[str, Any]:
    """`{"value", "ci95", "n_users", "n_conversations"}`, users resampled."""
    return {**user_interval(by_user(conversations, values)), "n_conversations": len(conversations)}


def summarise(conversations: Sequence[Conversation], world: World, belief: Belief | None = None) -> dict[str, Any]:
    """What a batch of conversations shows; failed conversations are counted and left out of everything else.

    Keys: `success` (with interval), `failed`, `ended` (counts), `turns`, `tokens` (the policy's, a conversation),
    `invalid` (share of utterances), `unread` (share of conversations that ended without a readable recommendation),
    `shares` (recommended against true shares of each type, and their total variation distance) and, with a belief,
    `belief_accuracy`, `belief_true` (mass on the true type) and `belief_ece`, the first two by turn.
    """
    ok = [c for c in conversations if not c.failed]
    ended: dict[str, int] = {}
    for c in conversations:
        ended[c.ended] = ended.get(c.ended, 0) + 1
    out: dict[str, Any] = {"failed": len(conversations) - len(ok), "ended": ended}
    if not ok:
        return out
    turns = [turn for c in ok for turn in c.turns]
    out["success"] = interval(ok, [world.success(c) for c in ok])
    out["turns"] = interval(ok, [len(c.turns) for c in ok])
    out["tokens"] = interval(ok, [sum(c.env_mask) for c in ok])
    out["invalid"] = sum(turn.act.kind == "invalid" for turn in turns) / len(turns)
    out["leading"] = sum(turn.act.kind == "suggest" for turn in turns) / len(turns)
    final = [c.turns[-1].act for c in ok]
    out["unread"] = sum(act.kind != "recommend" for act in final) / len(ok)
    n_types = len(world.types)
    true = np.bincount([c.profile.type_index for c in ok], minlength=n_types) / len(ok)
    said = np.bincount([a.target for a in final if a.kind == "recommend"], minlength=n_types)
    said = said / max(said.sum(), 1)
    out["shares"] = {
        "types": list(world.types),
        "true": true.tolist(),
        "recommended": said.tolist(),
        "total_variation": float(np.abs(true - said).sum() / 2),
    }
    if belief is not None:
        from ..user_models.beliefs import expected_calibration_error

        b = belief.beliefs([c.messages for c in ok])
        types = np.array([c.profile.type_index for c in ok])
        out["belief_accuracy"] = [interval(ok, belief_hits(b[:, t], types)) for t in range(b.shape[1])]
        out["belief_true"] = [float(b[np.arange(len(ok)), t, types].mean()) for t in range(b.shape[1])]
        out["belief_ece"] = expected_calibration_error(b[:, -1], types)
    return out


def belief_hits(beliefs: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Whether the most probable type is the true one, (N, U), (N,) -> (N,); ties share the credit."""
    best = np.isclose(beliefs, beliefs.max(axis=1, keepdims=True))
    return best[np.arange(len(types)), types] / best.sum(axis=1)
