"""`packing: shared_prefix` in training and evaluation: the same losses and gradients, with fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from tiny import pet_dataset, tiny_backbone, tiny_tokenizer
from transformers import BertConfig, BertModel, MistralConfig, MistralModel, TrainerCallback

from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer
from pluralrlhf.data.history import UserHistory
from pluralrlhf.errors import ConfigError
from pluralrlhf.evaluation.controls import ControlContexts
from pluralrlhf.evaluation.scorers import load_scorers
from pluralrlhf.features.shared_prefix import pack_by_owner
from pluralrlhf.modeling import PersonalizedRewardModel

QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
METHODS = {
    "btl": {"user_model": "btl", "user_model_kwargs": {"head": "linear"}},
    "btl_mlp": {"user_model": "btl", "user_model_kwargs": {"hidden": 16}},
    "icl": {"user_model": "icl", "user_model_kwargs": {}},
    "vpl": {"user_model": "vpl", "user_model_kwargs": {"latent_dim": 4, "hidden": 16, "decoder_hidden": 16}},
}


class Trace(TrainerCallback):
    """Losses as logged, and the gradients of the first optimiser step."""

    def __init__(self):
        self.losses, self.gradients = [], {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def train(folder, method: str, lora: bool = False, evaluate: bool = False, **settings):
    settings = {"max_steps": 6, "per_device_train_batch_size": 8, "n_context": 3, "learning_rate": 1e-3} | settings
    args = PersonalizedRewardConfig(
        str(folder), **QUIET, **METHODS[method], max_grad_norm=1e9, eval_n_context=[0, 3], max_length=120, **settings
    )
    trace = Trace()
    trainer = PersonalizedRewardTrainer(
        tiny_backbone(initializer_range=0.2), args, pet_dataset(6, 8), pet_dataset(3, 8, 1, 6), tiny_tokenizer(),
        peft_config=LoraConfig(r=4, init_lora_weights=False) if lora else None, callbacks=[trace],
    )  # fmt: skip
    trainer.train()
    return trace, trainer.evaluate() if evaluate else {}, trainer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora", [False, True])
def test_training_is_that_of_padded_batches(tmp_path, method, lora):
    naive, plain_metrics, plain = train(tmp_path / "naive", method, lora, evaluate=True)
    assert abs(naive.losses[-1] - naive.losses[0]) > 1e-3
    for tokens in (40, 4096):
        packed, metrics, trainer = train(
            tmp_path / "packed", method, lora, evaluate=True, packing="shared_prefix", packing_tokens=tokens
        )
        np.testing.assert_allclose(packed.losses, naive.losses, atol=2e-5)
        assert packed.gradients.keys() == naive.gradients.keys()
        for name, gradient in naive.gradients.items():
            assert (packed.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
        for key in ("eval_validation_log_loss_k0", "eval_validation_log_loss_k3"):
            assert metrics[key] == pytest.approx(plain_metrics[key], abs=1e-4)
    batch, wide = (next(iter(t.get_train_dataloader())) for t in (trainer, plain))
    rows = [value for name, value in wide.items() if name.endswith("input_ids")]
    assert batch["packed_input_ids"].numel() < 0.8 * sum(ids.numel() for ids in rows)


def test_accumulated_gradients_do_not_depend_on_the_packing(tmp_path):
    whole, _, _ = train(tmp_path / "whole", "icl", per_device_train_batch_size=8)
    for tokens in (48, 4096):
        parts, _, _ = train(
            tmp_path / "parts", "icl", per_device_train_batch_size=2, gradient_accumulation_steps=4,
            packing="shared_prefix", packing_tokens=tokens,
        )  # fmt: skip
        np.testing.assert_allclose(parts.losses, whole.losses, atol=2e-5)
        for name, gradient in whole.gradients.items():
            assert (parts.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("method", ["icl", "vpl", "btl"])
def test_evaluation_gives_the_same_scores(tmp_path, method):
    _, _, trainer = train(tmp_path / "model", method)
    trainer.save_model()
    splits = {"test_seen_users_seen_items": pet_dataset(4, 6, 2)}  # so few words that users make like choices
    scores = []
    for packing in (None, "shared_prefix"):
        (scorer,) = load_scorers([tmp_path / "model"], splits, progress=False, packing=packing, batch_size=7)
        history = scorer.pairs.history
        assert isinstance(history, UserHistory) and scorer.pairs.packing == packing
        rows = history.rows("test_seen_users_seen_items")
        own = ControlContexts(history, "test_seen_users_seen_items", seed=0).own(rows, 3)
        scorer.prepare(np.concatenate([rows, own.index.reshape(-1)]))
        scores.append(scorer.score(rows, own)[0])
    assert scores[0].std() > 1e-3
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)


def test_what_cannot_be_packed_is_refused_before_training(tmp_path):
    def trainer(backbone, peft_config=None, **settings):
        args = PersonalizedRewardConfig(str(tmp_path), packing="shared_prefix", **QUIET, **METHODS["icl"] | settings)
        return PersonalizedRewardTrainer(
            backbone, args, pet_dataset(2, 3), processing_class=tiny_tokenizer(), peft_config=peft_config
        )

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(ConfigError, match="window of 8 tokens"):
        trainer(MistralModel(MistralConfig(vocab_size=80, sliding_window=8, num_key_value_heads=2, **shape)))
    with pytest.raises(ConfigError, match="`pooling` is 'mean'"):
        trainer(BertModel(BertConfig(vocab_size=80, **shape)))
    with pytest.raises(ConfigError, match="learned prompts"):
        trainer(tiny_backbone(), PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS"))
    with pytest.raises(ConfigError, match=r"features of `encoder`"):
        PersonalizedRewardConfig(str(tmp_path), encoder="offline", packing="shared_prefix")
    with pytest.raises(ConfigError, match="'shared_prefixes'"):
        PersonalizedRewardConfig(str(tmp_path), packing="shared_prefixes")
    with pytest.raises(ConfigError, match="`packing_tokens` is 0"):
        PersonalizedRewardConfig(str(tmp_path), packing="shared_prefix", packing_tokens=0)


def test_a_text_longer_than_the_budget_gets_its_row():
    sequences = [[1, 2, 3, 4, 5, 6, 7], [9, 8], [1, 2, 5], [9, 7, 7]]
    packed = pack_by_owner(sequences, [0, 1, 0, 1], max_tokens=3)
    assert packed.input_ids.shape[1] == 7
    for ids, row, token in zip(sequences, packed.row, packed.token):
        assert packed.input_ids[row][packed.mask()[row, 0, token]].tolist() == ids


@pytest.mark.gpu
def test_flex_attention_trains_the_same_on_cuda(tmp_path):
    losses = []
    for attention in ("sdpa", "flex_attention"):
        backbone = tiny_backbone(initializer_range=0.2, hidden_size=64)
        backbone.set_attn_implementation(attention)
        args = PersonalizedRewardConfig(
            str(tmp_path), **QUIET, **METHODS["icl"], max_steps=4, per_device_train_batch_size=8, n_context=3,
            packing="shared_prefix", bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        trace = Trace()
        trainer = PersonalizedRewardTrainer(
            backbone, args, pet_dataset(6, 8), processing_class=tiny_tokenizer(), callbacks=[trace]
        )
        trainer.train()
        losses.append(trace.losses)
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-3)


def test_packed_input_of_a_model_without_a_backbone_is_refused():
    model = PersonalizedRewardModel.from_encoder("offline", "btl")
    packed = pack_by_owner([[1, 2], [1, 3]], [0, 0])
    with pytest.raises(ConfigError, match="needs a backbone"):
        model(packed_input_ids=packed.input_ids, packed_position_ids=packed.position_ids,
              packed_visible_until=packed.visible_until, packed_row=packed.row, packed_token=packed.token)  # fmt: skip
    assert torch.is_tensor(packed.row)
