"""Features in a table on the device: cached ones give the same training, a copy's are those of its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny import pet_dataset, tiny_backbone, tiny_tokenizer
from transformers import TrainerCallback

from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer
from pluralrlhf.errors import ConfigError

QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
SMALL = {"latent_dim": 8, "hidden": 64, "decoder_hidden": 64}


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.values.append(float(logs["loss"]))


@pytest.mark.parametrize("user_model", ["vpl", "btl"])
def test_cached_features_give_the_same_training_from_a_table(tmp_path, user_model):
    settings = {"user_model_kwargs": SMALL if user_model == "vpl" else {}, "n_context": 4, "max_steps": 8}
    results = []
    for device_features in (False, True):
        losses = Losses()
        args = PersonalizedRewardConfig(
            str(tmp_path / "out"), encoder="offline", user_model=user_model, per_device_train_batch_size=16,
            feature_cache=str(tmp_path / "cache"), device_features=device_features, **QUIET, **settings,
        )  # fmt: skip
        trainer = PersonalizedRewardTrainer(
            args=args, train_dataset=pet_dataset(6, 8), eval_dataset=pet_dataset(3, 8, 1, 6), callbacks=[losses]
        )
        assert ("target_row" in next(iter(trainer.get_train_dataloader()))) == device_features
        trainer.train()
        results.append((losses.values, trainer.evaluate()["eval_validation_log_loss"]))
    np.testing.assert_allclose(results[1][0], results[0][0], atol=1e-6)
    assert results[1][1] == pytest.approx(results[0][1], abs=1e-6)


def refreshed(folder, steps, packing=None, callbacks=(), peft_config=None, **settings):
    settings = {"per_device_train_batch_size": 8, "max_steps": 5, "n_context": 4, "learning_rate": 1e-2} | settings
    settings = QUIET | settings
    args = PersonalizedRewardConfig(
        str(folder), user_model="vpl", user_model_kwargs=SMALL, context_refresh_steps=steps, packing=packing,
        max_length=32, eval_n_context=[0, 4], **settings,
    )  # fmt: skip
    return PersonalizedRewardTrainer(
        tiny_backbone(), args, pet_dataset(20, 12), pet_dataset(10, 12, 1, 20), tiny_tokenizer(),
        callbacks=list(callbacks), peft_config=peft_config,
    )  # fmt: skip


class Watch(TrainerCallback):
    """What the table holds of one pair after each step, and what the present weights would say."""

    def __init__(self):
        self.trainer, self.held, self.present = None, [], []

    def on_step_end(self, args, state, control, **kwargs):
        row = self.trainer._train_rows[3]
        self.held.append(self.trainer._table(torch.tensor([2 * row]))[0])
        self.present.append(torch.from_numpy(self.trainer.pairs.encoded(np.array([row]))))


@pytest.mark.parametrize("packing", [None, "shared_prefix"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_copy_is_refreshed_when_due_and_at_no_other_time(tmp_path, packing, lora):
    watch = Watch()
    adapter = LoraConfig(r=4) if lora else None
    watch.trainer = trainer = refreshed(tmp_path, 2, packing, [watch], adapter)
    before = torch.from_numpy(trainer.pairs.encoded(trainer._train_rows[3:4]))
    batch = next(iter(trainer.get_train_dataloader()))
    assert "context_row" in batch and not any(name.startswith("context_input") for name in batch)
    trainer.train()
    # Steps 0, 2 and 4 begin with a refresh: with the weights after 0, 2 and 4 steps.
    for held, expected in zip(watch.held, [before, before, watch.present[1], watch.present[1], watch.present[3]]):
        torch.testing.assert_close(held, expected, atol=5e-3, rtol=5e-3)
    assert (watch.held[2] - watch.held[0]).abs().max() > 1e-3


@pytest.mark.slow
def test_contexts_of_a_copy_teach_users(tmp_path):
    trainer = refreshed(
        tmp_path, 20, max_steps=350, per_device_train_batch_size=32, learning_rate=1e-3, no_context_share=0.0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_validation_accuracy_k4"] > 0.9


def test_resuming_at_a_refresh_is_exact(tmp_path):
    whole, resumed = Losses(), Losses()
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 7}
    refreshed(tmp_path, 2, callbacks=[whole], **saving).train()
    again = refreshed(tmp_path, 2, callbacks=[resumed], **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.values[-3:] == whole.values[-3:]


def test_what_has_no_copy_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="frozen features stay fresh"):
        PersonalizedRewardConfig(str(tmp_path), encoder="offline", context_refresh_steps=3)
    with pytest.raises(ConfigError, match="`context_refresh_steps` is 0"):
        PersonalizedRewardConfig(str(tmp_path), context_refresh_steps=0)
    for name in ("btl", "icl"):
        args = PersonalizedRewardConfig(str(tmp_path), user_model=name, context_refresh_steps=3, **QUIET)
        with pytest.raises(ConfigError, match=f"`{name}` has no features of contexts"):
            PersonalizedRewardTrainer(tiny_backbone(), args, pet_dataset(2, 3), processing_class=tiny_tokenizer())
