"""The trainer equals TRL's where it should, learns users, and resumes exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import pet_dataset, pet_rows, tiny_backbone, tiny_config, tiny_tokenizer
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, Qwen2ForSequenceClassification, TrainerCallback
from trl import RewardConfig, RewardTrainer

from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer
from pluralrlhf.errors import ConfigError, DataError
from pluralrlhf.modeling import PersonalizedRewardModel

QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.values.append(float(logs["loss"]))


@pytest.mark.parametrize("conversational", [True, False])
def test_btl_with_a_linear_head_is_trls_reward_trainer(tmp_path, conversational):
    data = pet_dataset(4, 10, conversational=conversational)
    common = {"per_device_train_batch_size": 2, "max_steps": 20, "learning_rate": 1e-3, **QUIET}
    common |= {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    theirs = Qwen2ForSequenceClassification(tiny_config(num_labels=1))
    backbone = tiny_backbone()
    backbone.load_state_dict(theirs.model.state_dict())
    tokenizer = tiny_tokenizer()

    class Ordered(RewardTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(dataset or self.train_dataset)

    losses = Losses(), Losses()
    args = PersonalizedRewardConfig(
        str(tmp_path / "ours"), user_model="btl", user_model_kwargs={"head": "linear"}, **common
    )
    ours = PersonalizedRewardTrainer(backbone, args, data, processing_class=tokenizer, callbacks=[losses[1]])
    ours.reward_model.user_model.head.load_state_dict(theirs.score.state_dict())
    order = [e["row"] for epoch in (0,) for e in _examples(ours, epoch)]
    order += [e["row"] for e in _examples(ours, 1)]
    their_data = data.remove_columns(["user_id", "pair_id", "item_ids"]).select(order)
    trainer = Ordered(theirs, RewardConfig(str(tmp_path / "theirs"), **common), train_dataset=their_data,
                      processing_class=tokenizer, callbacks=[losses[0]])  # fmt: skip
    trainer.train()
    ours.train()
    assert len(losses[0].values) == 20
    np.testing.assert_allclose(losses[1].values, losses[0].values, atol=1e-6)
    assert abs(losses[0].values[-1] - losses[0].values[0]) > 1e-3


def _examples(trainer, epoch):
    dataset = trainer.get_train_dataloader().dataset
    order = trainer.pairs.history.epoch_order(trainer._train_rows, seed=trainer.args.seed, epoch=epoch)
    return [dataset[(int(position), epoch)] for position in order]


def frozen_args(folder, **kwargs):
    settings = {"encoder": "offline", "user_model": "vpl", "user_model_kwargs": {"latent_dim": 8, "hidden": 64}}
    settings |= {"per_device_train_batch_size": 64, "learning_rate": 2e-3, "n_context": 6, "eval_n_context": [0, 4]}
    settings |= {"max_steps": 60, "feature_cache": str(Path(folder).parent / "cache"), **QUIET}
    return PersonalizedRewardConfig(str(folder), **(settings | kwargs))


@pytest.mark.parametrize(
    "given, pairs_each, chosen",
    [({}, 12, "validation_log_loss"), ({}, 25, "validation_accuracy"),
     ({"metric_for_best_model": "validation_accuracy_k4"}, 12, "validation_accuracy_k4")],
)  # fmt: skip
def test_the_best_checkpoint_of_few_validation_pairs_is_chosen_by_its_log_loss(tmp_path, given, pairs_each, chosen):
    args = frozen_args(tmp_path, eval_strategy="steps", eval_steps=30, save_strategy="steps", save_steps=30,
                       load_best_model_at_end=True, **given)  # fmt: skip
    trainer = PersonalizedRewardTrainer(
        args=args, train_dataset=pet_dataset(4, 12), eval_dataset=pet_dataset(8, pairs_each, seed=1, first_user=40)
    )
    assert trainer.args.metric_for_best_model == chosen
    assert trainer.args.greater_is_better is ("loss" not in chosen)


@pytest.mark.parametrize("method", ["btl", "ours"])
def test_the_log_loss_of_validation_is_that_of_the_predicted_probability(tmp_path, method):
    """A posterior that knows little predicts less than its mean promises: by its mean early checkpoints look better."""
    args = frozen_args(
        tmp_path, user_model=method, user_model_kwargs=None, eval_n_context=[4], include_for_metrics=["loss"]
    )
    seen = []

    def own(prediction):
        assert prediction.losses is not None
        seen.append(prediction.predictions)
        return {"own": 1.0}

    trainer = PersonalizedRewardTrainer(
        args=args, train_dataset=pet_dataset(6, 12), compute_metrics=own,
        eval_dataset=pet_dataset(8, 12, seed=1, first_user=40),
    )  # fmt: skip
    metrics = trainer.evaluate()
    model, margins = trainer.reward_model.eval(), seen[0]
    assert metrics["eval_validation_own"] == 1 and margins.shape == (96,)
    rows = trainer.eval_dataset["validation"]["row"]
    batch = trainer.data_collator([{"row": row, "n_context": 4} for row in rows])
    batch.pop("labels")
    with torch.no_grad():
        output = model(**batch)
    if method == "btl":
        assert output.log_odds is None
        expected = np.logaddexp(0, -margins).mean()  # all users have as many pairs
    else:
        expected = torch.nn.functional.softplus(-output.log_odds).mean()
        assert abs(np.logaddexp(0, -margins).mean() - float(expected)) > 1e-3
    assert metrics["eval_validation_log_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert model.train()(**batch).log_odds is None
    np.testing.assert_array_equal(trainer.predict(trainer.eval_dataset["validation"]).predictions, margins)


def test_it_learns_users_and_reports_by_split_and_context_size(tmp_path):
    args = frozen_args(tmp_path / "out", eval_strategy="steps", eval_steps=30, save_strategy="steps", save_steps=30,
                       load_best_model_at_end=True)  # fmt: skip
    train, validation = pet_dataset(40, 12), pet_dataset(8, 12, seed=1, first_user=40)
    trainer = PersonalizedRewardTrainer(
        args=args, train_dataset=train, eval_dataset={"validation": validation, "other": validation}
    )
    before = {name: p.clone() for name, p in trainer.reward_model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.reward_model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    metrics = trainer.evaluate()
    assert metrics["eval_validation_accuracy_k4"] > 0.95
    assert abs(metrics["eval_validation_accuracy_k0"] - 0.5) < 0.2
    assert metrics["eval_other_accuracy_k4"] == metrics["eval_validation_accuracy_k4"]
    assert args.metric_for_best_model == "validation_log_loss" and not args.greater_is_better  # 96 pairs
    assert trainer.state.best_model_checkpoint is not None
    logged = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert logged and not any(key == "eval_accuracy" for entry in trainer.state.log_history for key in entry)

    trainer.save_model()
    files = {p.name for p in (tmp_path / "out").iterdir() if p.is_file()}
    written = {"README.md", "config.json", "model.safetensors", "training_args.json", "training_users.safetensors"}
    assert files == written
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| train | 40 | 480 |" in card and "validation_accuracy_k4" in card
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = trainer.reward_model.score(["p"] * 2, ["a cat", "a dog"])
    assert torch.equal(loaded.score(["p"] * 2, ["a cat", "a dog"]), expected)


def test_ours_starts_from_its_training_pairs_and_a_trained_model_keeps_what_it_has(tmp_path):
    settings = {"user_model": "ours", "user_model_kwargs": {"dim": 4, "hidden": 16}, "feature_noise": 0.3}
    args = frozen_args(tmp_path / "out", **settings | {"max_steps": 4})
    train = pet_dataset(12, 12)

    def start(data, **kwargs):
        trainer = PersonalizedRewardTrainer(args=args, train_dataset=data, **kwargs)
        learner = trainer.reward_model.user_model.learners[-1]
        assert not learner.map.weight.requires_grad and learner.prior_mean.requires_grad
        return trainer, learner.map.weight.clone(), learner.prior_mean.detach().clone()

    trainer, map_, _ = start(train)
    assert map_.any() and torch.equal(map_, start(train)[1])
    other = train.map(
        lambda row: {"chosen": row["rejected"], "rejected": row["chosen"]} if row["user_id"] < "u5" else {}
    )
    assert not torch.equal(map_, start(other)[1])
    before = trainer.reward_model.user_model.learners[-1].prior_mean.detach().clone()
    trainer.train()
    trainer.save_model()
    saved = PersonalizedRewardModel.from_pretrained(tmp_path / "out")
    assert torch.equal(saved.user_model.learners[-1].map.weight, map_)
    assert not torch.equal(saved.user_model.learners[-1].prior_mean, before)
    with pytest.raises(ConfigError, match="keeps its user model"):
        PersonalizedRewardTrainer(
            saved, frozen_args(tmp_path / "no", **settings | {"user_model_kwargs": {"dim": 5}}), train
        )
    again = start(other, model=saved)
    assert torch.equal(again[1], map_) and torch.equal(
        again[2], trainer.reward_model.user_model.learners[-1].prior_mean
    )


def test_opposite_users_of_a_trainable_backbone(tmp_path):
    args = PersonalizedRewardConfig(
        str(tmp_path),
        user_model="vpl",
        user_model_kwargs={"latent_dim": 8, "hidden": 64, "decoder_hidden": 64},
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=32,
        max_steps=350,
        n_context=4,
        no_context_share=0.0,
        eval_n_context=[0, 4],
        max_length=32,
        **QUIET,
    )
    trainer = PersonalizedRewardTrainer(
        tiny_backbone(), args, pet_dataset(40, 12), pet_dataset(10, 12, 1, 40), tiny_tokenizer()
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_validation_accuracy_k4"] > 0.9 and abs(metrics["eval_validation_accuracy_k0"] - 0.5) < 0.25


def test_lora_trains_and_saves_the_user_model(tmp_path):
    args = PersonalizedRewardConfig(
        str(tmp_path / "out"), learning_rate=3e-3, per_device_train_batch_size=8, max_steps=6, n_context=4, **QUIET
    )
    trainer = PersonalizedRewardTrainer(
        tiny_backbone(), args, pet_dataset(6, 8), processing_class=tiny_tokenizer(), peft_config=LoraConfig(r=4)
    )
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert any("lora_A" in name for name in names) and any("user_model" in name for name in names)
    assert all("lora" in name or "user_model" in name for name in names)
    trainer.train()
    trainer.save_model()
    pairs = pet_rows(1, 3)
    expected = trainer.reward_model.score(["a"], ["the cat is best ."], trainer.reward_model.encode_user(pairs))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.score(["a"], ["the cat is best ."], loaded.encode_user(pairs)), expected)
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_plain_trl_datasets_get_their_ids(tmp_path):
    rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in pet_rows(3, 6, conversational=False)]
    plain = Dataset.from_list(rows)
    trainer = PersonalizedRewardTrainer(args=frozen_args(tmp_path, user_model="btl", user_model_kwargs={}, max_steps=2),
                                        train_dataset=plain)  # fmt: skip
    trainer.train()
    with pytest.raises(DataError, match=r"column `user_id`.*btl"):
        PersonalizedRewardTrainer(args=frozen_args(tmp_path), train_dataset=plain)


def test_mistakes_are_named_before_anything_is_loaded(tmp_path):
    data = pet_dataset(2, 3)
    with pytest.raises(ConfigError, match=r"unknown keys \['latent'\]"):
        PersonalizedRewardConfig(str(tmp_path), user_model_kwargs={"latent": 3})
    with pytest.raises(ConfigError, match="leave one out"):
        PersonalizedRewardTrainer(tiny_backbone(), frozen_args(tmp_path), data)
    with pytest.raises(ConfigError, match=r"`args.encoder`"):
        PersonalizedRewardTrainer(args=PersonalizedRewardConfig(str(tmp_path), report_to="none"), train_dataset=data)
    with pytest.raises(ConfigError, match="frozen features there is nothing to adapt"):
        PersonalizedRewardTrainer(args=frozen_args(tmp_path), train_dataset=data, peft_config=LoraConfig())
    with pytest.raises(ConfigError, match="map-style"):
        PersonalizedRewardTrainer(args=frozen_args(tmp_path), train_dataset=data.to_iterable_dataset())
    with pytest.raises(ConfigError, match="`n_context` is -1"):
        PersonalizedRewardConfig(str(tmp_path), n_context=-1)
    for sizes in ("8", [], [0, "8"], [-1], None):
        with pytest.raises(ConfigError, match=r"`eval_n_context` is .*; give whole numbers of at least 0"):
            PersonalizedRewardConfig(str(tmp_path), eval_n_context=sizes)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("chosen", None, "row 3, column `chosen`: null where a text is expected"),
        ("prompt", None, "row 3, column `prompt`: null where a text is expected"),
        ("rejected", "the cat", "row 3, column `rejected`: `chosen` equals `rejected`"),
        ("user_id", None, "row 3, column `user_id`: the value is null"),
    ],
)
@pytest.mark.parametrize("conversational", [True, False])
def test_a_row_that_says_nothing_is_named(tmp_path, column, value, message, conversational):
    rows = pet_rows(2, 3, conversational=conversational)
    rows[2]["chosen"] = [{"role": "assistant", "content": "the cat "}] if conversational else "the cat "
    rows[2][column] = [{"role": "assistant", "content": value}] if conversational and value else value
    with pytest.raises(DataError, match=message):
        PersonalizedRewardTrainer(args=frozen_args(tmp_path), train_dataset=Dataset.from_list(rows))


def test_users_that_are_nan_and_empty_splits_are_refused(tmp_path):
    nan = Dataset.from_list([{**row, "user_id": float("nan")} for row in pet_rows(2, 3)])
    for data, message in ((nan, "row 1, column `user_id`: the value is NaN"), (nan.select([]), "there are no rows")):
        with pytest.raises(DataError, match=message):
            PersonalizedRewardTrainer(args=frozen_args(tmp_path), train_dataset=data)


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from tiny import pet_dataset
from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer
args = PersonalizedRewardConfig(sys.argv[1], encoder="offline", user_model="vpl", feature_cache={cache!r},
    user_model_kwargs={{"latent_dim": 8, "hidden": 32, "annealing": "cyclical"}}, per_device_train_batch_size={batch},
    learning_rate=1e-3, n_context=6, eval_n_context=[4], max_steps=30, save_steps=10, logging_steps=1,
    eval_strategy="steps", eval_steps=10, report_to="none", disable_tqdm=True)
trainer = PersonalizedRewardTrainer(args=args, train_dataset=pet_dataset(21, 9), eval_dataset=pet_dataset(5, 7, 1, 21))
trainer.train(resume_from_checkpoint=sys.argv[2] if len(sys.argv) > 2 else None)
trainer.save_model()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    import json
    json.dump([e for e in trainer.state.log_history if "loss" in e], open(sys.argv[1] + "/losses.json", "w"))
    json.dump({{k: v for k, v in metrics.items() if "accuracy" in k or "log_loss" in k}}, open(sys.argv[1] + "/metrics.json", "w"))
"""


def _script(tmp_path, batch):
    path = tmp_path / f"train_{batch}.py"
    tests = str(Path(__file__).resolve().parent.parent)
    path.write_text(SCRIPT.format(tests=tests, cache=str(tmp_path / "cache"), batch=batch))
    return str(path)


ENV = os.environ | {"OMP_NUM_THREADS": "1", "CI": "true", "HF_HUB_OFFLINE": "1"}


def _is_json(path: Path) -> bool:
    """Whether the last file of a checkpoint is whole: it is there before it is written."""
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def test_a_kill_after_a_checkpoint_and_resume_equal_an_uninterrupted_run(tmp_path):
    script = _script(tmp_path, 32)
    subprocess.run([sys.executable, script, str(tmp_path / "whole")], check=True, env=ENV, capture_output=True)
    process = subprocess.Popen(
        [sys.executable, script, str(tmp_path / "killed")],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = tmp_path / "killed" / "checkpoint-10"
    while process.poll() is None and not _is_json(checkpoint / "trainer_state.json"):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    subprocess.run(
        [sys.executable, script, str(tmp_path / "killed"), str(checkpoint)], check=True, env=ENV, capture_output=True
    )
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    # 189 training rows and 70 evaluation rows divide unevenly. Without random draws the runs are the same sum.
    changes = {
        'user_model="vpl"': 'user_model="btl", feature_noise=0.0, max_grad_norm=1e9',
        "max_steps=30": "max_steps=50",
    }
    for batch in (32, 16):
        script = Path(_script(tmp_path, batch))
        text = script.read_text().replace('"latent_dim": 8, "hidden": 32, "annealing": "cyclical"', '"hidden": 32')
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        script.write_text(text)
    subprocess.run([sys.executable, str(tmp_path / "train_32.py"), str(tmp_path / "one")], check=True, env=ENV)
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch]
    subprocess.run([*command, str(tmp_path / "train_16.py"), str(tmp_path / "two")], check=True, env=ENV)
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-4)
    losses = [
        [e["loss"] for e in json.loads((tmp_path / name / "losses.json").read_text())] for name in ("one", "two")
    ]
    assert len(losses[0]) == 50
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-2)


def test_a_quantised_backbone_trains_an_adapter(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny_backbone(hidden_size=64).save_pretrained(tmp_path / "base")  # bitsandbytes packs rows of at least 64
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    args = PersonalizedRewardConfig(
        str(tmp_path / "out"), per_device_train_batch_size=4, max_steps=2, n_context=2, learning_rate=1e-3, **QUIET
    )
    trainer = PersonalizedRewardTrainer(
        str(tmp_path / "base"), args, pet_dataset(4, 4), peft_config=LoraConfig(r=2),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    expected = trainer.reward_model.score(["a"], ["the cat is best ."])
    loaded = PersonalizedRewardModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded.score(["a"], ["the cat is best ."]), expected, atol=1e-2, rtol=1e-2)
