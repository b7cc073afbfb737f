"""Conversations between a policy and a simulated user: who knows what, and why a conversation ended.

The simulated user is another agent with its own trace. Its hidden profile (`UserProfile`) may reach a reward and an
evaluation; the policy sees `Conversation.messages` and nothing else, and a test asserts that no profile field can get
there except through what the user chose to say.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


def stable_seed(*parts: object) -> int:
    """A 64-bit integer that depends on the parts only: not on the process, the platform or Python's hash seed."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stable_random(*parts: object) -> random.Random:
    """A random stream that depends on the parts only."""
    return random.Random(stable_seed(*parts))


@dataclass(frozen=True)
class UserProfile:
    """What is hidden about a user.

    Args:
        user_id: Stable name.
        type_index: The user's type, an index into `World.types`: what the belief is about.
        attributes: Attribute name -> value.
        split: `train`, `validation` or `test`.
        description: The profile in words, for simulators that are language models, and for judges.
    """

    user_id: str
    type_index: int
    attributes: dict[str, str] = field(default_factory=dict)
    split: str = "train"
    description: str = ""


@dataclass(frozen=True)
class Act:
    """What an utterance of the policy does, as a world reads it.

    `kind` is one of `ask`, `suggest` (a leading question), `recommend`, `invalid`; `target` indexes the attribute or
    the strategy, `value` the suggested value, each -1 where it does not apply.
    """

    kind: str
    target: int = -1
    value: int = -1


@dataclass(frozen=True)
class Reply:
    """A simulated user's answer: its text, or in `error` one word saying why there is none."""

    text: str | None
    leaves: bool = False
    error: str | None = None


@dataclass
class Turn:
    """One utterance of the policy and the answer to it (None after the last one)."""

    agent: str
    act: Act
    user: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class Conversation:
    """One conversation. `profile` is hidden from the policy, which sees `messages`.

    `prompt_ids`, `completion_ids`, `env_mask`, `logprobs` and `turn_index` are filled by the rollout: the completion
    holds every token after the prompt, of both parties; `env_mask` is 1 and `turn_index` the turn's number on the
    policy's own tokens (0 and -1 elsewhere).
    """

    profile: UserProfile
    prompt: list[dict[str, str]]
    seed: int = 0
    turns: list[Turn] = field(default_factory=list)
    ended: str | None = None
    error: str | None = None
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    env_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turn_index: list[int] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the policy has seen and said, as chat messages."""
        return self.prompt + self.completion

    @property
    def completion(self) -> list[dict[str, str]]:
        """The messages after the prompt."""
        out: list[dict[str, str]] = []
        for turn in self.turns:
            out.append({"role": "assistant", "content": turn.agent})
            if turn.user is not None:
                out.append({"role": "user", "content": turn.user})
        return out

    @property
    def failed(self) -> bool:
        """Whether the simulated user broke down, so that nothing here may be trained on or scored."""
        return self.ended == "failed"


class SimulatedUser(Protocol):
    """Answers the last utterance of each conversation, all of them in one call.

    Implementations: `ScriptedUser`, `LocalLMUser`, `EndpointUser`. None of them sees a reward.
    """

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """One reply for each conversation, in order."""
        ...


class World(Protocol):
    """A task with hidden user types. One file each; see `exercise.py`."""

    name: str
    types: tuple[str, ...]  # a description of each type, in words
    max_turns: int

    def users(self, split: str) -> list[UserProfile]:
        """The users of a split; splits share no deciding combination."""
        ...

    def prompt(self, profile: UserProfile) -> list[dict[str, str]]:
        """What the policy sees first; says nothing about the user's type."""
        ...

    def parse(self, utterance: str) -> Act:
        """What an utterance of the policy does."""
        ...

    def success(self, conversation: Conversation) -> float:
        """The end reward in [0, 1]: whether what was recommended is what the user's type calls for."""
        ...

    def scripted_reply(self, conversation: Conversation, suggestible: float) -> Reply:
        """The scripted user's answer, a function of the conversation and its seed only."""
        ...


class Belief(Protocol):
    """A user model: a distribution over the world's types after every turn."""

    n_types: int

    def beliefs(self, transcripts: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        """Beliefs (N, T + 1, n_types): index t is after the t-th assistant message and the answer to it.

        T is the largest number of assistant messages; shorter transcripts repeat their last belief.
        """
        ...


@dataclass
class ScriptedUser:
    """A user played by the world's own script: deterministic given the conversation's seed.

    Args:
        world: Supplies the script.
        suggestible: Probability of agreeing with a leading question whatever the truth is; what was agreed to sticks.
    """

    world: Any
    suggestible: float = 0.0

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        return [self.world.scripted_reply(conversation, self.suggestible) for conversation in conversations]


def turn_counts(conversations: Sequence[Conversation]) -> np.ndarray:
    """Number of the policy's utterances in each conversation (N,)."""
    return np.array([len(conversation.turns) for conversation in conversations], dtype=np.int64)
