"""Tutoring: find out how a student learns, then say how to teach the topic.

A student learns best in one of two or six ways. The tutor tries ways out (`here is a story about TOPIC .`) and sees how
the student reacts; after `n_trials` the student asks for the plan, and the tutor states it (`i will teach TOPIC with
STYLE .`). Success is naming the student's way. Students like their own way with probability `match`, another with
probability `mismatch`, and say something vague with probability `vague`. Topics and the students' phrasings are disjoint
between train and held-out students. The published domain (Wan et al. 2025, arXiv 2504.03206) has two styles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import ConfigError
from ..user_models.beliefs import ExactBelief
from .base import Act, Conversation, Reply, UserProfile, stable_random
from .exercise import NUMBERS

# style, how the tutor tries it out
STYLES: tuple[tuple[str, str], ...] = (
    ("stories", "here is a story about {topic} ."),
    ("experiments", "let us build {topic} by hand ."),
    ("drawings", "look at this drawing of {topic} ."),
    ("steps", "here are the steps of {topic} ."),
    ("games", "let us play a game about {topic} ."),
    ("debates", "let us argue about {topic} ."),
)
TOPICS = {
    "train": ("gravity", "fractions", "volcanoes", "verbs", "planets", "magnets", "rivers", "maps"),
    "validation": ("clouds", "angles", "insects", "poems"),
    "test": ("light", "decimals", "glaciers", "rhymes"),
}
PLAN = "i will teach {topic} with {style} ."
CUE = "how will you teach me ?"
# What the student says, by phrasing: liked, not liked, vague.
REACTIONS = (
    (("oh , i see it now !", "that helps me a lot ."), ("i am lost .", "that does not help me ."), ("hm , maybe .",)),
    (("now i see , that helps !", "oh , a lot !"), ("i do not see it .", "that is lost on me ."), ("maybe , hm .",)),
)
LIKED, DISLIKED, VAGUE = range(3)
CONFUSED = "what do you mean ?"


@dataclass
class TutorWorld:
    """The tutoring world.

    Args:
        n_types: 2 (stories, experiments) or 6.
        n_trials: Ways tried out before the student asks for the plan.
        match, mismatch, vague: Probabilities of liking one's own way, of liking another, and of a vague reaction.
        n_users: Students of a split.
        seed: Draws the students.
    """

    n_types: int = 6
    n_trials: int = 4
    match: float = 0.9
    mismatch: float = 0.1
    vague: float = 0.05
    n_users: int = 240
    seed: int = 0
    name: str = field(default="tutor", init=False)

    def __post_init__(self):
        if self.n_types not in (2, 6):
            raise ConfigError(f"`n_types` is {self.n_types}; use 2 or 6.")
        if not 0 < self.n_trials < len(NUMBERS):
            raise ConfigError(f"`n_trials` is {self.n_trials}; use 1 to {len(NUMBERS) - 1}.")
        if not 0 <= self.mismatch < self.match <= 1 or not 0 <= self.vague < 1:
            raise ConfigError(
                f"`match`, `mismatch`, `vague` are {self.match}, {self.mismatch}, {self.vague}; they are probabilities "
                "and `match` must be above `mismatch`."
            )
        self.types = tuple(style for style, _ in STYLES[: self.n_types])
        self.max_turns = self.n_trials + 1
        topics = "|".join(topic for group in TOPICS.values() for topic in group)
        self._tries = [re.compile(text.format(topic=f"({topics})").replace(" .", r" \.")) for _, text in STYLES]
        self._plan = re.compile(PLAN.format(topic=f"({topics})", style="([a-z]+)").replace(" .", r" \."))
        self._read = {line: kind for phrasing in REACTIONS for kind, lines in enumerate(phrasing) for line in lines}

    def users(self, split: str) -> list[UserProfile]:
        """`n_users` students, types and topics in turn."""
        if split not in TOPICS:
            raise ConfigError(f"`split` is {split!r}; use train, validation or test.")
        out = []
        for i in range(self.n_users):
            style = i % self.n_types
            topic = TOPICS[split][(i // self.n_types) % len(TOPICS[split])]
            attributes = {"topic": topic, "style": self.types[style]}
            description = f"You are a student who learns {topic} best with {self.types[style]}."
            out.append(UserProfile(f"{split}-{self.seed}-{i}", style, attributes, split, description))
        return out

    def prompt(self, profile: UserProfile) -> list[dict[str, str]]:
        n, topic = NUMBERS[self.n_trials], profile.attributes["topic"]
        return [{"role": "user", "content": f"teach me {topic} , try {n} ways first ."}]

    def parse(self, utterance: str) -> Act:
        """What an utterance does: trying a style out is `ask`, stating the plan `recommend`."""
        text = " ".join(utterance.lower().split())
        plan = self._plan.fullmatch(text)
        if plan:
            return Act("recommend", self.types.index(plan.group(2))) if plan.group(2) in self.types else Act("invalid")
        for style, pattern in enumerate(self._tries[: self.n_types]):
            if pattern.fullmatch(text):
                return Act("ask", style)
        return Act("invalid")

    def success(self, conversation: Conversation) -> float:
        """1.0 if the plan names the student's style and topic, else 0.0."""
        if not conversation.turns:
            return 0.0
        act, text = conversation.turns[-1].act, conversation.turns[-1].agent.lower().split()
        right = act.kind == "recommend" and act.target == conversation.profile.type_index
        return float(right and conversation.profile.attributes["topic"] in text)

    def scripted_reply(self, conversation: Conversation, suggestible: float = 0.0) -> Reply:
        """The student's reaction to the last utterance.

        `suggestible` is the probability of liking whatever is tried, whoever the student is.
        """
        turn, act = len(conversation.turns), conversation.turns[-1].act
        rng = stable_random("student", conversation.seed, turn)
        cue = f" {CUE}" if turn >= self.n_trials else ""
        if act.kind != "ask":
            return Reply(CONFUSED + cue)
        likes = self.match if act.target == conversation.profile.type_index else self.mismatch
        if stable_random("agree", conversation.seed, turn).random() < suggestible:
            likes = 1.0
        kind = VAGUE if rng.random() < self.vague else LIKED if rng.random() < likes else DISLIKED
        return Reply(rng.choice(REACTIONS[0 if conversation.profile.split == "train" else 1][kind]) + cue)

    def exact_belief(self) -> TutorBelief:
        """Bayes' posterior over styles."""
        return TutorBelief(self)


class TutorBelief:
    """Exact posterior over the student's style, read from the transcript alone."""

    def __init__(self, world: TutorWorld):
        self.world, self.n_types = world, world.n_types
        likes = np.full((world.n_types, world.n_types), world.mismatch)
        np.fill_diagonal(likes, world.match)
        answers = [(1 - world.vague) * likes, (1 - world.vague) * (1 - likes), np.full_like(likes, world.vague)]
        prior = np.full(world.n_types, 1 / world.n_types)
        self.bayes = ExactBelief(prior, np.stack(answers, axis=1))

    def beliefs(self, transcripts: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        n_turns = max((sum(m["role"] == "assistant" for m in t) for t in transcripts), default=0)
        tried = np.full((len(transcripts), n_turns), -1)
        heard = np.full((len(transcripts), n_turns), -1)
        for n, transcript in enumerate(transcripts):
            turn = -1
            for message in transcript:
                if message["role"] == "assistant":
                    turn += 1
                    act = self.world.parse(message["content"])
                    tried[n, turn] = act.target if act.kind == "ask" else -1
                elif turn >= 0:
                    heard[n, turn] = self.world._read.get(message["content"].removesuffix(f" {CUE}"), -1)
        tried[heard < 0] = -1
        return self.bayes.beliefs_of(tried, heard)
