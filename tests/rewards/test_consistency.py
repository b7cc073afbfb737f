"""Consistency of simulated users: planted contradictions are found, verdicts are parsed strictly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pluralrlhf.environments.base import Conversation, ScriptedUser, Turn, stable_random
from pluralrlhf.environments.exercise import ATTRIBUTES, CARRIERS, ExerciseWorld
from pluralrlhf.environments.exercise_start import question
from pluralrlhf.rewards.consistency import (
    TextJudge,
    Verdict,
    consistency_reward,
    is_question,
    line_to_line,
    parse_choice,
    parse_verdict,
    prompt_to_line,
    questions_and_answers,
    user_lines,
)
from pluralrlhf.rewards.deception import misalignment, misalignment_reward
from pluralrlhf.rewards.rule_judge import RuleJudge

WORLD = ExerciseWorld(n_users=64, noise=0.0)
JUDGE = RuleJudge(WORLD.statements, WORLD.values)
OPTIONS = [(topic, (zero[0], one[0])) for topic, zero, one in ATTRIBUTES]


def talk(profile, seed, n=8):
    rng = stable_random("talk", seed)
    conversation = Conversation(profile, [], seed=seed)
    for _ in range(n):
        text = question(rng.randrange(6), rng)
        conversation.turns.append(Turn(text, WORLD.parse(text)))
        conversation.turns[-1].user = ScriptedUser(WORLD).reply([conversation])[0].text
    return conversation


def contradiction(profile, attribute, rng):
    wrong = 1 - WORLD.values(profile)[attribute]
    return rng.choice(rng.choice(CARRIERS)).format(rng.choice(ATTRIBUTES[attribute][1 + wrong]))


def planted():
    """Lines of simulated users, a fifth of them replaced by contradictions of the profile."""
    for i, profile in enumerate(WORLD.users("test")):
        rng = stable_random("plant", i)
        lines = user_lines(talk(profile, i).messages)
        wrong = [rng.random() < 0.2 for _ in lines]
        lines = [contradiction(profile, rng.randrange(20), rng) if w else x for x, w in zip(lines, wrong)]
        yield profile, lines, wrong


def test_the_rule_judge_finds_planted_contradictions():
    found, true = [], []
    for profile, lines, wrong in planted():
        found += [v is Verdict.CONTRADICTION for v in JUDGE.verdicts([(profile, line) for line in lines])]
        true += wrong
    found, true = np.array(found), np.array(true)
    assert (found & true).sum() / true.sum() >= 0.95 and (found & true).sum() / found.sum() >= 0.95
    assert true.sum() > 50


def test_line_to_line_counts_pairs():
    profile = WORLD.users("train")[0]
    music = ["i choose rock .", "hard to say .", "guitars , always .", "for me it is jazz ."]
    tally = line_to_line(music, JUDGE)
    assert (tally.contradictions, tally.consistent) == (2, 4)
    clean = prompt_to_line(user_lines(talk(profile, 1).messages), profile, JUDGE)
    assert clean.rate == 1.0 and clean.invalid_rate == 0.0


def test_questions_and_answers_fall_when_the_simulator_forgets_and_ignore_question_only_replies():
    kept, forgotten, asked = [], [], []
    for i, profile in enumerate(WORLD.users("test")):
        rng = stable_random("forget", i)
        questions = JUDGE.questions(profile, OPTIONS)
        lines = user_lines(talk(profile, i).messages)
        kept.append(questions_and_answers(lines, questions, JUDGE).score)
        drifted = lines[:3] + [contradiction(profile, rng.randrange(6), rng) for _ in range(5)]
        forgotten.append(questions_and_answers(drifted, questions, JUDGE).score)
        chatty = [x for line in lines for x in (line, "what about you ? do you choose rock ?")]
        asked.append(questions_and_answers(chatty, questions, JUDGE).score)
    assert np.nanmean(kept) == 1.0 and np.nanmean(forgotten) < 0.7
    np.testing.assert_allclose(asked, kept)


def test_verdicts_are_parsed_to_an_enumeration():
    for text, verdict in (
        ("consistent", Verdict.CONSISTENT),
        ("Let me think.\nVerdict: **Contradiction**.", Verdict.CONTRADICTION),
        ("not a contradiction", Verdict.INVALID),
        ("consistent or contradiction", Verdict.INVALID),
        ("YES", Verdict.INVALID),
        ("__import__('os')", Verdict.INVALID),
        ("", Verdict.INVALID),
        (None, Verdict.INVALID),
    ):
        assert parse_verdict(text) is verdict, text
    choices = [parse_choice(x, 3) for x in ("B", "(c)", "Answer: A", "D", "A or B", "banana", None)]
    assert choices == [1, 2, 0, None, None, None, None]
    assert is_question("and you ? why ?") and not is_question("i do . and you ?") and not is_question("")


def test_invalid_answers_are_reported_and_never_count_as_consistent():
    judge = TextJudge(lambda prompts: ["consistent", None, "maybe", "contradiction"][: len(prompts)])
    tally = prompt_to_line(["a", "b", "c", "d"], WORLD.users("train")[0], judge)
    assert (tally.rate, tally.invalid_rate) == (0.5, 0.5)
    silent = TextJudge(lambda prompts: [None] * len(prompts))
    assert math.isnan(prompt_to_line(["a"], "x", silent).rate)
    questions = JUDGE.questions(WORLD.users("train")[0], OPTIONS)[:2]
    shown = []
    answerer = TextJudge(lambda prompts: shown.extend(prompts) or ["C", "?"])
    answers = questions_and_answers(["i choose rock ."], questions, answerer)
    assert math.isnan(answers.score) and answers.invalid == 1
    assert not any(WORLD.users("train")[0].description in prompt for prompt in shown)


def test_as_reward_functions():
    profile = WORLD.users("train")[0]
    good, bad = talk(profile, 1), talk(profile, 2)
    bad.turns[0].user = contradiction(profile, 0, stable_random(0))
    empty = Conversation(profile, [])
    conversations = [good, bad, empty]
    reward = consistency_reward(JUDGE)
    values = reward(completions=[c.completion for c in conversations], conversation=conversations)
    assert values == [1.0, 7 / 8, None] and reward.__name__ == "consistency_prompt_to_line"
    between = consistency_reward(JUDGE, "line_to_line")
    assert between(completions=[good.completion])[0] == 1.0

    def listener(conversations):
        return np.ones((3, 1)), np.array([[[0.5], [0.2]], [[0.5], [0.8]], [[0.5], [0.5]]])

    assert misalignment_reward(listener)(conversation=[good, bad, good]) == pytest.approx([-0.3, 0.0, 0.0])


def test_deceiving_and_correcting_telescopes_in_the_mean_and_shows_in_the_positive_part():
    facts, beliefs = np.array([[1.0]]), np.array([[[0.5], [0.1], [0.9], [0.5], [0.5]]])
    out = misalignment(facts, beliefs, np.array([3]))
    assert out["mean"][0] == pytest.approx(0.0)
    assert out["positive"][0] == pytest.approx(0.8) and out["worst"][0] == pytest.approx(0.4)
    longer = misalignment(facts, beliefs, np.array([4]))
    assert longer["positive"] == pytest.approx(out["positive"])
