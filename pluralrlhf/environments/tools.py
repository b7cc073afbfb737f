"""Questions as tools: the exercise world for TRL's `environment_factory`.

    GRPOTrainer(model, train_dataset=tool_dataset(world, "train"), environment_factory=exercise_tools(world), ...)

The policy calls `ask(topic)` and `recommend(strategy)`; TRL runs the calls and appends their results. This route suits
models with a tool-calling chat template; free conversation is `MultiTurnGRPOTrainer`'s. The environment owns its reward:
success plus, if asked for, the potential's change over the whole conversation (phi(b_T) - phi(b_0)).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .base import Conversation, Turn, UserProfile, stable_seed
from .exercise import ASKS, ATTRIBUTES, RECOMMENDS, STRATEGIES, ExerciseWorld

TOPICS = {topic: i for i, (topic, *_) in enumerate(ATTRIBUTES)}


def exercise_tools(world: ExerciseWorld, belief_weight: float = 0.0, floor: float = 1e-3) -> Callable[[], object]:
    """An environment factory for TRL: calling it makes one environment.

    Args:
        world: The task. Its users are found by the dataset's `user_id` column.
        belief_weight: Weight of log b_T(u*) - log b_0(u*) in the reward.
        floor: Smallest probability inside the logarithm.
    """
    profiles: dict[str, UserProfile] = {u.user_id: u for s in ("train", "validation", "test") for u in world.users(s)}
    belief = world.exact_belief()

    class ExerciseTools:
        """One conversation; public methods are the policy's tools."""

        def __init__(self):
            self._talk: Conversation | None = None

        def reset(self, user_id: str = "", **row) -> str | None:
            """Begins a conversation with the row's user."""
            seed = stable_seed("tools", user_id, row.get("seed", 0))
            self._talk = Conversation(profiles[user_id], world.prompt(profiles[user_id]), seed=seed)
            return None

        def ask(self, topic: str) -> str:
            """Asks the user about one topic.

            Args:
                topic: What to ask about, in one word, such as music or company.

            Returns:
                What the user answers.
            """
            if self._talk.ended is not None:
                return "The conversation is over."
            topic = topic.strip().lower()
            if topic not in TOPICS:
                return f"Unknown topic; use one of {', '.join(TOPICS)}."
            text = ASKS[1].format(topic=topic)
            self._talk.turns.append(Turn(text, world.parse(text)))
            self._talk.turns[-1].user = world.scripted_reply(self._talk).text
            return self._talk.turns[-1].user

        def recommend(self, strategy: str) -> str:
            """Recommends a strategy, which ends the conversation.

            Args:
                strategy: What to recommend, such as home yoga.

            Returns:
                Whether the recommendation was understood.
            """
            if self._talk.ended is not None:
                return "The conversation is over."
            strategy = strategy.strip().lower()
            if strategy not in STRATEGIES:
                return f"Unknown strategy; use one of {', '.join(STRATEGIES)}."
            text = RECOMMENDS[0].format(strategy=strategy)
            self._talk.turns.append(Turn(text, world.parse(text)))
            self._talk.ended = "recommended"
            return "Thank you."

        def get_reward(self) -> float:
            """Success, plus the weighted gain in log belief."""
            talk = self._talk
            reward = world.success(talk)
            if belief_weight:
                mass = belief.beliefs([talk.messages])[0][:, talk.profile.type_index]
                reward += belief_weight * float(np.log(max(mass[-1], floor)) - np.log(max(mass[0], floor)))
            return reward

    return ExerciseTools


def tool_dataset(world: ExerciseWorld, split: str):
    """The split's users as a dataset of `prompt` and `user_id` for `environment_factory`."""
    from datasets import Dataset

    users = world.users(split)
    text = (
        f"Find out what exercise suits this user: ask about at most {world.n_questions} topics with `ask`, then call "
        f"`recommend` with one of {', '.join(STRATEGIES)}. Topics: {', '.join(TOPICS)}."
    )
    prompts = [[{"role": "user", "content": text}] for _ in users]
    return Dataset.from_dict({"prompt": prompts, "user_id": [u.user_id for u in users]})
