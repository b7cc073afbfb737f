"""What is no text is named, with its place, before a tokenizer sees it."""

from __future__ import annotations

import pytest
from tiny import tiny_backbone, tiny_tokenizer

import pluralrlhf
from pluralrlhf.errors import ConfigError
from pluralrlhf.modeling import PersonalizedRewardModel


@pytest.fixture(scope="module")
def model():
    return PersonalizedRewardModel.from_backbone(tiny_backbone(), "vpl", {"latent_dim": 2}, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    "bad", [None, 3, ["a cat"], [{"role": "user"}], [{"role": "user", "content": None}], {"a": 1}]
)
def test_a_response_that_is_no_text(model, bad):
    with pytest.raises(ConfigError, match="`responses`, entry 2"):
        model.score(["p", "p"], ["a cat", bad])


def test_half_a_surrogate_pair(model):
    with pytest.raises(ConfigError, match="surrogate"):
        model.score(["p"], ["a \ud83d cat"])
    with pytest.raises(ConfigError, match=r"pairs\[0\]\['chosen'\]"):
        model.encode_user([{"prompt": "p", "chosen": "a \ud83d cat", "rejected": "a dog"}])


def test_messages_and_texts_are_read(model):
    assert model.score(["p", "p"], ["a cat", [{"role": "assistant", "content": "a cat"}]]).shape == (2,)


def test_the_package_names_what_it_offers():
    assert set(pluralrlhf.__all__) <= set(dir(pluralrlhf))
