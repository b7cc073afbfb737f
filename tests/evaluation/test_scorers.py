"""Models as scorers: each is scored by its own weights and under its own users."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tiny import pet_dataset, tiny_backbone, tiny_tokenizer

from pluralrlhf.errors import ConfigError
from pluralrlhf.evaluation.controls import ControlContexts
from pluralrlhf.evaluation.scorers import load_scorers
from pluralrlhf.modeling import PersonalizedRewardModel
from pluralrlhf.modeling.saving import weights_sha256
from pluralrlhf.user_models import UserState
from pluralrlhf.user_models.text import TextState

SPLIT = "test_seen_users_seen_items"


def backbone_model(seed, user_model="btl"):
    model = PersonalizedRewardModel.from_backbone(
        tiny_backbone(seed), user_model, tokenizer=tiny_tokenizer(), max_length=160
    )
    model.config.backbone_name_or_path = "owner/base"
    return model


def margins(models):
    scorers = load_scorers(models, {SPLIT: pet_dataset(4, 6)}, progress=False)
    history = scorers[0].pairs.history
    rows = history.rows(SPLIT)
    own = ControlContexts(history, SPLIT, seed=0).own(rows, 2)
    return [scorer.score(rows, own)[0] for scorer in scorers]


def test_models_that_were_trained_from_one_backbone_are_scored_by_their_own():
    one, other = backbone_model(0, "vpl"), backbone_model(1)
    alone = [margins([model])[0] for model in (one, other)]
    together = margins([one, other])
    for a, b in zip(alone, together):
        np.testing.assert_allclose(b, a, atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_a_text_scorers_states_hold_the_users_texts():
    (scorer,) = load_scorers([backbone_model(0, "icl")], {SPLIT: pet_dataset(4, 6)}, progress=False)
    history = scorer.pairs.history
    rows = history.rows(SPLIT)[:6:5]
    state = scorer.encode(ControlContexts(history, SPLIT, seed=0).own(rows, 2))
    assert isinstance(state, TextState) and len(state) == 2 and all(state.prefixes)
    rewards = scorer.model.score_matrix(state, ["which pet is nice ?"], ["the nice cat is best ."])
    unknown = scorer.model.score(["which pet is nice ?"], ["the nice cat is best ."])
    assert (rewards - unknown).abs().min() > 1e-5
    with pytest.raises(ConfigError, match="no text of the user"):
        scorer.model.score(["a"], ["b"], UserState("icl", {"none": torch.zeros(1, 0)}))


def test_a_models_hash_is_of_its_weights_wherever_it_lies(tmp_path, monkeypatch):
    def write(folder, value):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"w": np.full(3, value)}, str(folder / "model.safetensors"))
        (folder / "config.json").write_text("{}")

    write(tmp_path / "a", 1.0)
    before = weights_sha256(tmp_path / "a")
    write(tmp_path / "a" / "checkpoint-5", 2.0)
    assert weights_sha256(tmp_path / "a") == before
    cache = tmp_path / "cache" / "models--owner--a"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tmp_path / "a", cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    monkeypatch.chdir(tmp_path)
    assert weights_sha256("owner/a") == before
    write(tmp_path / "a", 3.0)
    assert weights_sha256(tmp_path / "a") != before
