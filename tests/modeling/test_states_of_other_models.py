"""A user's state is for the model that made it."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import pet_rows, tiny_backbone, tiny_tokenizer

from pluralrlhf.errors import ConfigError
from pluralrlhf.modeling import PersonalizedRewardModel
from pluralrlhf.user_models import UserState

PROMPTS, RESPONSES = ["which pet is nice ?"] * 2, ["the nice cat is best .", "the small dog is best ."]


@pytest.fixture(params=["ours", "vpl", "p_ttt"])
def models(request):
    """Two models of one method that were trained apart."""
    settings = {"layers": 2, "every": 1} if request.param == "p_ttt" else None
    found = []
    for seed in (0, 1):
        backbone = tiny_backbone()
        torch.manual_seed(seed)
        found.append(
            PersonalizedRewardModel.from_backbone(
                backbone, request.param, settings, tokenizer=tiny_tokenizer(), max_length=64
            )
        )
    return found


def exported(model):
    return UserState.from_json(json.loads(json.dumps(model.encode_user(pet_rows(1, 4)).to_json())))


def test_another_model_of_the_same_method_refuses_it(models):
    mine, other = models
    state = exported(mine)
    assert torch.isfinite(mine.score(PROMPTS, RESPONSES, state)).all()
    with pytest.raises(ConfigError, match="was made by another"):
        other.score(PROMPTS, RESPONSES, state)


def test_the_same_model_takes_it_after_loading_in_any_precision_and_not_after_training(models, tmp_path):
    mine, _ = models
    state = exported(mine)
    mine.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = PersonalizedRewardModel.from_pretrained(tmp_path, dtype=dtype)
        assert loaded._user_model_sha256() == state.provenance["user_model_sha256"]
    with torch.no_grad():
        next(mine.user_model.parameters()).add_(0.5)
    with pytest.raises(ConfigError, match="Encode the user's pairs again"):
        mine.score(PROMPTS, RESPONSES, state)


def test_a_text_in_place_of_a_list_is_an_error(models):
    with pytest.raises(ConfigError, match="`prompts` is one text"):
        models[0].score("which pet ?", "cat")
