"""Exercise recommendation: twenty attributes, five decide, eight strategies.

The published attribute list and rule (Wan et al. 2025, arXiv 2504.03206) are not public; this world is our own. A user
has twenty two-valued attributes. A decision tree turns five of them into one of eight strategies:

    company?  solitude -> place?    nature -> intensity?   sweat -> trail running     calm -> long walks
                                    rooms  -> length?      bursts -> interval circuits hours -> home yoga
              friends  -> contest?  winning -> intensity?  sweat -> club football     calm -> lawn bowls
                                    fun     -> length?     bursts -> dance class      hours -> hiking group

so three well-chosen questions suffice, five settle it without adapting, and fifteen topics are a waste of a turn.

The policy asks (`do you choose A or B ?`, `what about your TOPIC ?`), may ask leading questions (`so you choose A ,
right ?`) and ends by recommending. The user answers in one of several phrasings, sometimes vaguely, sometimes by
changing the subject to another attribute, rarely with the wrong value. Of the 32 deciding combinations, four a strategy,
two belong to train users, one to validation and one to test users, so that choices made on validation users are made
on combinations that neither training nor the report has. Validation and test users speak in other phrasings than train
users (of the same words: a model from scratch knows no synonyms).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import ConfigError
from ..user_models.beliefs import FactoredBelief
from .base import Act, Conversation, Reply, UserProfile, stable_random

# topic, words for value 0, words for value 1; the first word of each is its name. The first five decide.
ATTRIBUTES: tuple[tuple[str, tuple[str, str], tuple[str, str]], ...] = (
    ("company", ("solitude", "quiet"), ("friends", "groups")),
    ("place", ("nature", "forests"), ("rooms", "studios")),
    ("contest", ("winning", "medals"), ("fun", "laughter")),
    ("intensity", ("sweat", "sprints"), ("calm", "breathing")),
    ("length", ("bursts", "minutes"), ("hours", "afternoons")),
    ("diet", ("meat", "sausages"), ("vegetables", "salads")),
    ("music", ("rock", "guitars"), ("jazz", "pianos")),
    ("pets", ("dogs", "puppies"), ("cats", "kittens")),
    ("drink", ("coffee", "espresso"), ("tea", "herbs")),
    ("season", ("summer", "sunshine"), ("winter", "snow")),
    ("colour", ("red", "crimson"), ("blue", "navy")),
    ("travel", ("trains", "rails"), ("planes", "flights")),
    ("reading", ("novels", "stories"), ("papers", "magazines")),
    ("sleep", ("dawn", "mornings"), ("midnight", "evenings")),
    ("home", ("towns", "cities"), ("villages", "farms")),
    ("screen", ("films", "cinema"), ("games", "consoles")),
    ("craft", ("wood", "carving"), ("wool", "knitting")),
    ("food", ("sweets", "chocolate"), ("salt", "crisps")),
    ("work", ("desks", "offices"), ("tools", "workshops")),
    ("holiday", ("beaches", "seas"), ("mountains", "peaks")),
)
N_DECIDING = 5
STRATEGIES = (
    "trail running",
    "long walks",
    "interval circuits",
    "home yoga",
    "club football",
    "lawn bowls",
    "dance class",
    "hiking group",
)
# What the user says, by phrasing: train users use the first set, validation and test users the second.
CARRIERS = (
    ("i choose {} .", "for me it is {} .", "mostly {} , i think .", "{} , always .", "it would be {} ."),
    ("i think it is {} .", "always {} for me .", "mostly it would be {} .", "{} , i choose ."),
)
VAGUE = (("it depends , really .", "hard to say ."), ("really , it depends .", "it is hard to say ."))
CHANGES = (("by the way , i choose {} .", "oh , it is {} by the way ."), ("oh , by the way , {} for me .",))
AGREEMENTS = ("yes , {} .", "{} , yes .")
CONFUSED = ("sorry , i do not follow .", "i do not follow , sorry .")
ASKS = ("do you choose {v0} or {v1} ?", "what about your {topic} ?")
SUGGESTS = ("so you choose {value} , right ?",)
RECOMMENDS = ("i recommend {strategy} .",)
OPENINGS = {
    True: "hi , ask me {n} questions , then recommend .",
    False: "hi , recommend when you are ready .",
}
CUE = "please recommend now ."
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def strategy_of(deciding: Sequence[int]) -> int:
    """The rule: five values (company, place, contest, intensity, length) -> index into `STRATEGIES`."""
    company, place, contest, intensity, length = deciding
    second = contest if company else place
    third = length if second else intensity
    return 4 * company + 2 * second + third


def path_of(deciding: Sequence[int]) -> tuple[int, int, int]:
    """The three attributes that the rule reads for these five values."""
    second = 2 if deciding[0] else 1
    return 0, second, 4 if deciding[second] else 3


def deciding_combinations(split: str) -> list[tuple[int, ...]]:
    """The combinations of the five deciding values that users of a split have; no two splits share one.

    Train users have the sixteen with an even number of ones, so that among them any four of the attributes are
    independent: no answers give away another, and a policy can learn no short cut that others do not offer. The sixteen
    odd ones, two a strategy, are divided between validation and test users, one a strategy each.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"`split` is {split!r}; use train, validation or test.")
    out = []
    for strategy, validation in enumerate((0, 1, 0, 1, 1, 0, 1, 0)):
        members = [c for c in itertools.product((0, 1), repeat=N_DECIDING) if strategy_of(c) == strategy]
        odd = [c for c in members if sum(c) % 2]
        held = {"validation": [odd[validation]], "test": [odd[1 - validation]]}
        out += held.get(split) or [c for c in members if c not in odd]
    return out


@dataclass
class ExerciseWorld:
    """The exercise world (see the module's text for the rule and the splits).

    Args:
        n_questions: Questions before the user asks for the recommendation; with `cue=False` the policy chooses.
        max_turns: Utterances of the policy at most; by default `n_questions` + 1, or 10 with `cue=False`.
        cue: Whether the user asks for the recommendation after `n_questions` questions.
        vague, change, noise: Probabilities of a vague answer, of a change of subject, of saying the wrong value.
        n_users: Users of a split; the fifteen distracting attributes are drawn at random for each.
        strict: Whether only the grammar's own sentences are valid (for a policy trained from scratch) or any question
            that names one attribute (for a general language model).
        seed: Draws the users.
    """

    n_questions: int = 5
    max_turns: int | None = None
    cue: bool = True
    vague: float = 0.03
    change: float = 0.02
    noise: float = 0.005
    n_users: int = 512
    strict: bool = True
    seed: int = 0
    name: str = field(default="exercise", init=False)
    types: tuple[str, ...] = field(default=STRATEGIES, init=False)

    def __post_init__(self):
        if not 0 < self.n_questions < len(NUMBERS):
            raise ConfigError(f"`n_questions` is {self.n_questions}; use 1 to {len(NUMBERS) - 1}.")
        if min(self.vague, self.change, self.noise) < 0 or self.vague + self.change > 1 or self.noise >= 0.5:
            raise ConfigError(
                f"`vague`, `change`, `noise` are {self.vague}, {self.change}, {self.noise}; they are probabilities, "
                "vague + change at most 1 and noise below 0.5."
            )
        if self.max_turns is None:
            self.max_turns = self.n_questions + 1 if self.cue else 10
        self._word = {w: (a, v) for a, (_, *vs) in enumerate(ATTRIBUTES) for v, words in enumerate(vs) for w in words}
        self._acts: dict[str, Act] = {}
        for a, (topic, zero, one) in enumerate(ATTRIBUTES):
            for form in ASKS:
                self._acts[form.format(v0=zero[0], v1=one[0], topic=topic)] = Act("ask", a)
            for form, (v, words) in itertools.product(SUGGESTS, enumerate((zero, one))):
                self._acts[form.format(value=words[0])] = Act("suggest", a, v)
        for form, (s, name) in itertools.product(RECOMMENDS, enumerate(STRATEGIES)):
            self._acts[form.format(strategy=name)] = Act("recommend", s)

    # ---- users

    def users(self, split: str) -> list[UserProfile]:
        """`n_users` users: deciding combinations of the split in turn, distracting values drawn at random."""
        combinations = deciding_combinations(split)
        out = []
        for i in range(self.n_users):
            rng = stable_random("exercise users", self.seed, split, i)
            values = [*combinations[i % len(combinations)]]
            values += [rng.randrange(2) for _ in ATTRIBUTES[N_DECIDING:]]
            named = {topic: words[v][0] for (topic, *words), v in zip(ATTRIBUTES, values)}
            description = "You prefer " + ", ".join(f"{v} ({a})" for a, v in named.items()) + "."
            out.append(UserProfile(f"{split}-{i}", strategy_of(values[:N_DECIDING]), named, split, description))
        return out

    def values(self, profile: UserProfile) -> list[int]:
        """The profile's twenty values as 0 or 1."""
        return [self._word[profile.attributes[topic]][1] for topic, *_ in ATTRIBUTES]

    def prompt(self, profile: UserProfile) -> list[dict[str, str]]:
        return [{"role": "user", "content": OPENINGS[self.cue].format(n=NUMBERS[self.n_questions])}]

    # ---- what was said

    def parse(self, utterance: str) -> Act:
        """What an utterance does. An utterance that fits no rule, or two, is `invalid`."""
        text = " ".join(utterance.lower().split())
        if text in self._acts:
            return self._acts[text]
        return Act("invalid") if self.strict else self._parse_loosely(text)

    def _parse_loosely(self, text: str) -> Act:
        named = [s for s, name in enumerate(STRATEGIES) if name in text]
        if re.search(r"\b(recommend|suggest|try)\b", text) and len(named) == 1:
            return Act("recommend", named[0])
        words = re.findall(r"[a-z]+", text)
        found = {a for a, (topic, *_) in enumerate(ATTRIBUTES) if topic in words}
        said = [self._word[w] for w in words if w in self._word]
        found |= {a for a, _ in said}
        if len(found) != 1 or "?" not in text:
            return Act("invalid")
        leading = re.search(r"\b(right|surely|don't you|isn't it)\b", text) and len({v for _, v in said}) == 1
        return Act("suggest", *said[0]) if leading else Act("ask", found.pop())

    def statements(self, text: str) -> list[tuple[int, int]]:
        """What a user's line states: (attribute, value) pairs, in order. A question states nothing."""
        out = []
        for sentence in re.split(r"(?<=[.?!])\s+", text.lower()):
            if not sentence.rstrip().endswith("?"):
                out += [self._word[w] for w in re.findall(r"[a-z]+", sentence) if w in self._word]
        return out

    def success(self, conversation: Conversation) -> float:
        """1.0 if the conversation ended with the strategy of the rule, else 0.0."""
        act = conversation.turns[-1].act if conversation.turns else Act("invalid")
        return float(act.kind == "recommend" and act.target == conversation.profile.type_index)

    # ---- the scripted user

    def scripted_reply(self, conversation: Conversation, suggestible: float = 0.0) -> Reply:
        """Answers the last utterance; a function of the profile, the transcript and the conversation's seed."""
        turn = len(conversation.turns)
        act = conversation.turns[-1].act
        rng = stable_random("reply", conversation.seed, turn)
        phrasing = 0 if conversation.profile.split == "train" else 1
        cue = f" {CUE}" if self.cue and turn >= self.n_questions else ""
        if act.kind not in ("ask", "suggest"):
            return Reply(rng.choice(CONFUSED) + cue)
        values = self._stance(conversation, suggestible)
        if act.kind == "suggest" and self._agrees(conversation.seed, turn, suggestible):
            return Reply(self._say(rng, AGREEMENTS, act.target, act.value) + cue)
        kind, attribute = rng.random(), act.target
        if kind < self.vague:
            return Reply(rng.choice(VAGUE[phrasing]) + cue)
        if kind < self.vague + self.change:
            attribute = rng.choice([a for a in range(len(ATTRIBUTES)) if a != act.target])
        value = values[attribute] ^ (rng.random() < self.noise)
        carriers = CARRIERS if attribute == act.target else CHANGES
        return Reply(self._say(rng, carriers[phrasing], attribute, value) + cue)

    def _say(self, rng, carriers: Sequence[str], attribute: int, value: int) -> str:
        return rng.choice(carriers).format(rng.choice(ATTRIBUTES[attribute][1 + value]))

    def _agrees(self, seed: int, turn: int, suggestible: float) -> bool:
        return suggestible > 0 and stable_random("agree", seed, turn).random() < suggestible

    def _stance(self, conversation: Conversation, suggestible: float) -> list[int]:
        """The user's values, as moved by the leading questions that were agreed to."""
        values = self.values(conversation.profile)
        for turn, past in enumerate(conversation.turns[:-1], start=1):
            if past.act.kind == "suggest" and self._agrees(conversation.seed, turn, suggestible):
                values[past.act.target] = past.act.value
        return values

    # ---- the exact belief

    def exact_belief(self) -> ExerciseBelief:
        """Bayes' posterior over strategies for a user who is not suggestible."""
        return ExerciseBelief(self)


class ExerciseBelief:
    """Exact posterior over the eight strategies, read from the transcript's text alone.

    An answer to a question about attribute a says either something about one attribute (the asked one, or after a
    change of subject a uniformly drawn other) or nothing. Each case has the same probability for every user, so what
    remains is the said value: P(said = v | value v) = 1 - noise. Attributes are independent a priori (the population's
    prior, uniform over the 32 combinations) and stay so, which makes a factored posterior exact.
    With suggestible users the same listener is misspecified: it takes an agreement for evidence.
    """

    def __init__(self, world: ExerciseWorld):
        self.world = world
        self.n_types = len(STRATEGIES)
        combinations = np.array(list(itertools.product((0, 1), repeat=N_DECIDING)))
        types = np.array([strategy_of(c) for c in combinations])
        self.factors = FactoredBelief(len(ATTRIBUTES), combinations, types, error=max(world.noise, 1e-6))

    def beliefs(self, transcripts: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        return self.factors.beliefs(self._said(transcripts))

    def _said(self, transcripts) -> list[list[list[tuple[int, int]]]]:
        return [statements_by_turn(messages, self.world.statements) for messages in transcripts]


def statements_by_turn(messages: Sequence[dict[str, str]], statements) -> list[list[tuple[int, int]]]:
    """Per turn, what the user stated: index 0 is before the first assistant message, t after the t-th."""
    out: list[list[tuple[int, int]]] = [[]]
    for message in messages:
        if message["role"] == "assistant":
            out.append([])
        elif message["role"] == "user":
            out[-1].extend(statements(message["content"]))
    return out
