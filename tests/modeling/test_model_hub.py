"""A model with an adapter from the Hub: from the Hub's own cache, as a download leaves it."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import pet_rows, tiny_backbone, tiny_tokenizer

from pluralrlhf.errors import ConfigError
from pluralrlhf.modeling import PersonalizedRewardModel
from pluralrlhf.trainers.peft import peft_config_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROMPTS, RESPONSES = ["which pet is nice ?"] * 2, ["the nice cat is best .", "the small dog is best ."]


def test_an_adapter_from_the_hub(tmp_path):
    torch.manual_seed(1)
    model = PersonalizedRewardModel.from_backbone(tiny_backbone(), "vpl", tokenizer=tiny_tokenizer(), max_length=64)
    model.attach_adapter(get_peft_model(model, peft_config_for(model, LoraConfig(target_modules=["q_proj"]))))
    user = model.encode_user(pet_rows(1, 4))
    expected = model.score(PROMPTS, RESPONSES, user)
    repository = tmp_path / "cache" / "models--owner--vpl"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    model.save_pretrained(repository / "snapshots" / COMMIT)
    loaded = PersonalizedRewardModel.from_pretrained("owner/vpl", cache_dir=str(tmp_path / "cache"))
    torch.testing.assert_close(loaded.score(PROMPTS, RESPONSES, user), expected)
    shutil.rmtree(repository)
    with pytest.raises(ConfigError, match="as the id of a model on the Hub it could not be loaded"):
        PersonalizedRewardModel.from_pretrained("owner/vpl", cache_dir=str(tmp_path / "cache"))
