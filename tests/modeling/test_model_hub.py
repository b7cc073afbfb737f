"""Models from the Hub that are more than their weights: from the Hub's own cache, as a download leaves it."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import pet_rows, tiny_backbone, tiny_config, tiny_tokenizer
from transformers import Qwen2ForCausalLM

from pluralrlhf.errors import ConfigError
from pluralrlhf.modeling import PersonalizedRewardModel
from pluralrlhf.trainers.peft import peft_config_for

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "76543210fedcba9876543210fedcba9876543210"
PROMPTS, RESPONSES = ["which pet is nice ?"] * 2, ["the nice cat is best .", "the small dog is best ."]


def snapshot(repository, commit, *refs):
    """Folder of a commit in the Hub's cache, with the names of branches and tags that point to it."""
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    for ref in refs:
        (repository / "refs" / ref).write_text(commit)
    return repository / "snapshots" / commit


def test_an_adapter_from_the_hub(tmp_path):
    torch.manual_seed(1)
    model = PersonalizedRewardModel.from_backbone(tiny_backbone(), "vpl", tokenizer=tiny_tokenizer(), max_length=64)
    model.attach_adapter(get_peft_model(model, peft_config_for(model, LoraConfig(target_modules=["q_proj"]))))
    user = model.encode_user(pet_rows(1, 4))
    expected = model.score(PROMPTS, RESPONSES, user)
    repository = tmp_path / "cache" / "models--owner--vpl"
    model.save_pretrained(snapshot(repository, COMMIT, "main"))
    loaded = PersonalizedRewardModel.from_pretrained("owner/vpl", cache_dir=str(tmp_path / "cache"))
    torch.testing.assert_close(loaded.score(PROMPTS, RESPONSES, user), expected)
    shutil.rmtree(repository)
    with pytest.raises(ConfigError, match="as the id of a model on the Hub it could not be loaded"):
        PersonalizedRewardModel.from_pretrained("owner/vpl", cache_dir=str(tmp_path / "cache"))


def test_a_summariser_and_a_tokenizer_are_those_of_the_version_that_was_asked_for(tmp_path):
    cache = {"cache_dir": str(tmp_path / "cache")}
    repository = tmp_path / "cache" / "models--owner--plus"
    summaries = {}
    for seed, (commit, ref) in enumerate([(COMMIT, "main"), (OLDER, "v1")]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"<{ref}>"])
        folder = snapshot(repository, commit, ref)
        model = PersonalizedRewardModel.from_backbone(
            tiny_backbone(seed, vocab_size=64), "plus", {"max_new_tokens": 8}, tokenizer=tokenizer, max_length=128
        )
        model.save_pretrained(folder)
        Qwen2ForCausalLM(tiny_config(vocab_size=64)).save_pretrained(folder / "summarizer")
        tokenizer.save_pretrained(folder / "summarizer")
        summaries[ref] = PersonalizedRewardModel.from_pretrained(folder).encode_user(pet_rows(1, 4)).texts
    assert summaries["main"] != summaries["v1"]
    for options in ({}, {"revision": "v1"}):
        loaded = PersonalizedRewardModel.from_pretrained("owner/plus", **cache, **options)
        ref = options.get("revision", "main")
        assert loaded.encode_user(pet_rows(1, 4)).texts == summaries[ref]
        assert f"<{ref}>" in loaded.tokenizer.get_vocab()
