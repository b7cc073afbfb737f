"""A backbone in half precision leaves the user model in full, whatever it is built, saved and asked with."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import pet_rows, tiny_backbone, tiny_tokenizer
from transformers import AutoModel

from pluralrlhf.modeling import PersonalizedRewardModel
from pluralrlhf.trainers.peft import peft_config_for
from pluralrlhf.user_models import USER_MODELS, user_model_class

RESPONSES = ["the nice cat is best .", "the small dog is best .", "cat", "a soft puppy is nice for you and me ."]
PROMPTS = ["which pet is nice ?"] * 4
PAIRS = pet_rows(1, 5)
FORMS = [(name, {}) for name in USER_MODELS if user_model_class(name).route == "head"]
FORMS += [
    ("lore", {"weights": "free"}),
    ("pal", {"form": "B"}),
    ("soft_tokens", {"form": "cluster", "n_tokens": 3, "n_clusters": 3}),
    ("soft_tokens", {"form": "individual", "n_tokens": 3, "eta": 0.3, "steps": 2}),
    ("p_ttt", {"layers": 2, "every": 1}),
    ("icl", {"reader": "prefix"}),
]


@pytest.fixture(params=FORMS, ids=lambda p: "-".join([p[0], *(v for v in p[1].values() if isinstance(v, str))]))
def model(request, tmp_path):
    torch.manual_seed(1)
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    backbone = AutoModel.from_pretrained(tmp_path / "backbone", dtype=torch.bfloat16)
    model = PersonalizedRewardModel.from_backbone(backbone, *request.param, tokenizer=tiny_tokenizer(), max_length=64)
    with torch.no_grad():
        for parameter in model.user_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def scores(model, user=None):
    return model.score(PROMPTS, RESPONSES, model.encode_user(PAIRS) if user is None else user)


@pytest.mark.parametrize("adapted", [False, True])
def test_saving_and_loading(model, adapted, tmp_path):
    if adapted:
        model.attach_adapter(get_peft_model(model, peft_config_for(model, LoraConfig(target_modules=["q_proj"]))))
    user = model.encode_user(PAIRS)
    expected = scores(model)
    assert torch.isfinite(expected).all() and expected.dtype == torch.float32
    model.save_pretrained(tmp_path / "model")
    loaded = PersonalizedRewardModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.user_model.parameters()} == {torch.float32}
    assert torch.bfloat16 in {value.dtype for value in loaded.backbone.parameters()}
    torch.testing.assert_close(scores(loaded), expected)
    (tmp_path / "user.json").write_text(json.dumps(user.to_json()))
    torch.testing.assert_close(scores(loaded, loaded.load_state(tmp_path / "user.json")), expected)


def test_under_autocast(model):
    """The backbone computes in half precision, the user model does not: only what it reads differs."""
    model.float()
    texts = [[pair[side][0]["content"] for pair in PAIRS[:4]] for side in ("chosen", "rejected")]
    batch = {
        f"{side}_{key}": value
        for side, found in zip(("chosen", "rejected"), texts)
        for key, value in model.tokenizer(found, padding=True, return_tensors="pt").items()
        if key != "token_type_ids"
    }
    full = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**batch)
    if model.user_model.token_head is None:  # such a head computes as TRL's does
        assert half.logits.dtype == half.loss.dtype == torch.float32
    torch.testing.assert_close(half.logits.float(), full.logits, atol=0.1, rtol=0.1)
