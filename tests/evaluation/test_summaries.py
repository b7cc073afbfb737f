"""What is read from summaries by rule, and a leak that must be found."""

from __future__ import annotations

import numpy as np
import pytest

from pluralrlhf.evaluation.summaries import copying, faithfulness, others, overlap, stated_order, swap_topics
from pluralrlhf.trainers.summarizer_start import STATEMENTS, Topics

TOPICS = Topics({"cat": ["cats", "cat"], "dog": ["dogs", "dog"], "bird": ["birds", "bird"]})


@pytest.mark.parametrize(
    ("text", "liked", "disliked"),
    [
        *((template.format(best="cats", least="dogs"), {"cat"}, {"dog"}) for template in STATEMENTS),
        ("This person does not like dogs.", set(), {"dog"}),
        ("Likes cats less than dogs", {"dog"}, {"cat"}),
        ("Loves cats and birds, but hates dogs.", {"cat", "bird"}, {"dog"}),
        ("prefers a cat over a bird", {"cat"}, {"bird"}),
        ("cats, dogs", set(), set()),
        ("", set(), set()),
    ],
)
def test_what_a_text_states(text, liked, disliked):
    assert stated_order(text, TOPICS) == (liked, disliked)


def test_a_private_code_is_not_faithful():
    said = faithfulness("the user likes dogs best and cats least .", ["cat", "bird", "dog"], TOPICS)
    assert said.states and not said.true and not said.favourite
    said = faithfulness("the user likes cats best and dogs least .", ["cat", "bird", "dog"], TOPICS)
    assert said.states and said.true and said.favourite
    assert not faithfulness("hello there", ["cat", "bird", "dog"], TOPICS).states


def test_swapping_turns_what_is_stated():
    text = "this person prefers cats to dogs ."
    assert swap_topics(text, TOPICS) == "this person prefers dogs to cats ."
    assert swap_topics("hello", TOPICS) == "hello"


def test_a_planted_leak_is_found_and_fluent_statements_are_none():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(400)]
    responses = [[" ".join(rng.choice(words, 12)) for _ in range(4)] for _ in range(30)]
    partner = others(range(30))
    other = [responses[i] for i in partner]
    # Five words of one target response, in a sentence that is otherwise a summary.
    leaked = ["the user likes " + " ".join(own[0].split()[:6]) + " ." for own in responses]
    assert copying(leaked, responses, other)["leak"]
    honest = ["the user likes cats best and dogs least ."] * 30
    found = copying(honest, responses, other)
    assert not found["leak"] and found["excess"]["value"] == 0


def test_overlap_is_a_share_of_the_summarys_own_words():
    assert overlap("a b c d e", ["x a b c d y"]) == 0.5
    assert overlap("a b", ["a b"]) == 0.0


def test_nobody_keeps_their_own_summary():
    for n in (2, 3, 17):
        partner = others(range(n))
        assert sorted(partner) == list(range(n)) and (partner != np.arange(n)).all()
