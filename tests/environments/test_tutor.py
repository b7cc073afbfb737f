"""The tutoring world and the recorded lessons."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from pluralrlhf.environments.base import Conversation, ScriptedUser, Turn
from pluralrlhf.environments.education_dialogue import load_lessons
from pluralrlhf.environments.tutor import PLAN, STYLES, TOPICS, TutorWorld
from pluralrlhf.errors import ConfigError, DataError


def lesson(world, profile, styles, seed=0):
    conversation = Conversation(profile, world.prompt(profile), seed=seed)
    for style in styles:
        text = STYLES[style][1].format(topic=profile.attributes["topic"])
        conversation.turns.append(Turn(text, world.parse(text)))
        conversation.turns[-1].user = ScriptedUser(world).reply([conversation])[0].text
    return conversation


@pytest.mark.parametrize("n_types", [2, 6])
def test_topics_are_disjoint_and_the_belief_is_bayes(n_types):
    world = TutorWorld(n_types=n_types, vague=0.1)
    topics = [{u.attributes["topic"] for u in world.users(s)} for s in TOPICS]
    assert not topics[0] & topics[1] and not topics[0] & topics[2] and not topics[1] & topics[2]
    belief, rights, masses = world.exact_belief(), [], []
    for i, profile in enumerate(world.users("test")):
        styles = [(i + k) % n_types for k in range(4)]
        conversation = lesson(world, profile, styles, seed=i)
        b = belief.beliefs([conversation.messages])[0]
        expected = np.full(n_types, 1 / n_types)
        for style, turn in zip(styles, conversation.turns):
            reaction = world._read.get(turn.user.removesuffix(" how will you teach me ?"))
            p = np.where(np.arange(n_types) == style, world.match, world.mismatch)
            expected = expected * {0: p, 1: 1 - p, 2: np.ones(n_types)}[reaction]
            expected /= expected.sum()
        np.testing.assert_allclose(b[-1], expected)
        said = " ".join(m["content"] for m in conversation.messages if m["role"] == "user")
        assert profile.attributes["style"] not in said
        rights.append(b[-1].argmax() == profile.type_index)
        masses.append(b[-1].max())
    assert abs(np.mean(rights) - np.mean(masses)) < 0.1


def test_the_plan_must_name_style_and_topic():
    world = TutorWorld()
    profile = world.users("train")[0]
    for topic, style, right in (("gravity", "stories", 1.0), ("verbs", "stories", 0.0), ("gravity", "games", 0.0)):
        text = PLAN.format(topic=topic, style=style)
        conversation = Conversation(profile, world.prompt(profile), turns=[Turn(text, world.parse(text))])
        assert world.success(conversation) == right
    assert world.parse("i will teach gravity with love .").kind == "invalid"
    with pytest.raises(ConfigError, match="n_types"):
        TutorWorld(n_types=3)


def test_lessons_load_with_both_spellings(tmp_path):
    talk = [{"role": "Teacher", "text": "Shall I tell a tale?"}, {"role": "Student", "text": "Yes please."}]
    rows = [
        {"background_info": {"topic": "a", "student_preferences": "likes stories", "teacher_preferences": "x"}, "conversation": talk},
        {"background_info": {"topic": "b", "student_prefrences": "hands-on work", "teacher_prefrences": "y"}, "conversation": talk},
        {"background_info": {"topic": "c", "student_prefrences": "quiet rooms", "teacher_prefrences": "y"}, "conversation": talk},
    ]  # fmt: skip
    for name, text in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(text)
        dropped = Counter()
        lessons = load_lessons(tmp_path / name, dropped)
        assert [x.type_index for x in lessons] == [0, 1] and dropped == {"no_single_type": 1}
        assert [m["role"] for m in lessons[0].messages] == ["assistant", "user"]
        assert lessons[1].teacher_preferences == "y"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"background_info": {"topic": "a"}}, "background_info"),
        ({"conversation": []}, "conversation"),
        ({"conversation": [{"role": "Dean", "text": "hm"}]}, "unknown role"),
    ],
)
def test_bad_lessons_are_named(tmp_path, change, named):
    row = {"background_info": {"student_preferences": "stories", "teacher_preferences": "x"}}
    row = row | {"conversation": [{"role": "Teacher", "text": "a"}]} | change
    (tmp_path / "bad.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=named) as error:
        load_lessons(tmp_path / "bad.json")
    assert "row 1" in str(error.value)
