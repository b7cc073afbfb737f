"""Every recipe runs two steps on tiny models and generated data, through the command that it is for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from tiny import tiny_config, tiny_tokenizer
from transformers import Qwen2ForCausalLM, Qwen2Model

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from pluralrlhf.cli import main
from pluralrlhf.environments.exercise_start import vocabulary
from pluralrlhf.environments.tiny import tiny_policy
from pluralrlhf.environments.tiny import tiny_tokenizer as world_tokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SETTINGS = {path: yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*/*.yaml"))}
REWARD = [path for path, found in SETTINGS.items() if "user_model" in found]
SUMMARIZER = [path for path, found in SETTINGS.items() if "method" in found]
POLICY = [path for path, found in SETTINGS.items() if "world" in found]
SUITE = [path for path, found in SETTINGS.items() if "methods" in found]
TINY = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True,
        "load_best_model_at_end": False, "use_cpu": True, "bf16": False}  # fmt: skip


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_each_recipe_is_for_one_command():
    assert sorted(REWARD + SUMMARIZER + POLICY + SUITE) == sorted(SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Datasets, a tiny backbone, a tiny language model and a tiny policy."""
    folder = tmp_path_factory.mktemp("recipes")
    common = ["--n_users", "20", "--no_progress", "--validation_users", "0.2"]
    assert main(["data", "build", "pets", "--out", str(folder / "pets"), *common]) == 0
    tokenizer = tiny_tokenizer()
    shape = tiny_config(hidden_size=64, max_position_embeddings=4096)  # bitsandbytes packs rows of at least 64
    for kind, model in (("backbone", Qwen2Model(shape)), ("language_model", Qwen2ForCausalLM(shape))):
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    tokenizer = world_tokenizer(vocabulary())
    for part in (tokenizer, tiny_policy(tokenizer, hidden_size=16, layers=1, heads=2)):
        part.save_pretrained(folder / "policy")
    return folder


def arguments(settings: dict) -> list[str]:
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


@pytest.mark.parametrize("path", [
    pytest.param(path, id=name(path), marks=() if name(path) in ("polis/ours", "large/icl", "large/vpl", "large/soft_tokens", "large/p_ttt") else pytest.mark.slow)
    for path in REWARD
])  # fmt: skip
def test_reward_recipes_run(path, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(folder / "cache"))
    found = SETTINGS[path]
    if found.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes")
    settings = {
        **TINY,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 1,
    }
    settings |= {"max_eval_pairs_per_user": 2, "eval_n_context": 2, "gradient_checkpointing": False}
    if "model_name_or_path" in found:
        settings |= {"model_name_or_path": folder / "backbone", "max_length": 256}
    if found["user_model"] == "p_ttt":
        settings["user_model_kwargs"] = '{"layers": 2, "every": 1}'  # the tiny backbone has two
        del settings["gradient_checkpointing"]
    if "attn_implementation" in found:
        settings["attn_implementation"] = "sdpa"
    data = folder / "pets"
    if path.parent.name == "contexts":
        data = with_users(folder)
    argv = ["train", "reward", "--config", str(path), "--data", str(data), "--output_dir", str(tmp_path / "out")]
    assert main([*argv, *arguments(settings)]) == 0
    assert (tmp_path / "out" / "training_args.json").is_file()


def with_users(folder: Path) -> Path:
    """The pets data with a profile, answers and conversations for each user."""
    import json
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    out = folder / "profiles"
    if not out.exists():
        shutil.copytree(folder / "pets", out)
        file = next((out / "users").glob("*.parquet"))
        table = pq.read_table(file)
        columns = {
            "profile": ["I like cats."] * len(table),
            "attributes": [json.dumps({"Which pet?": "cats"})] * len(table),
            "conversations": [json.dumps([[{"role": "user", "content": "I like cats."}]])] * len(table),
        }
        for column, values in columns.items():
            table = table.set_column(table.column_names.index(column), column, pa.array(values, pa.string()))
        pq.write_table(table, file)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("path", SUMMARIZER, ids=name)
def test_summarizer_recipes_run(path, folder, tmp_path):
    settings = {**TINY, "per_device_train_batch_size": 4, "num_generations": 2, "gradient_accumulation_steps": 1}
    settings |= {"warmup_reward_steps": 1, "max_completion_length": 4, "per_device_eval_batch_size": 4}
    settings |= {"eval_on_start": False, "gradient_checkpointing": False, "n_context": 2, "min_context": 1}
    if "tiny_start" in SETTINGS[path]:
        settings["tiny_start"] = '{"steps": 2}'
    else:
        settings |= {"model_name_or_path": folder / "language_model", "reward_model": folder / "backbone"}
    data = folder / ("styles" if path.parent.name == "styles" else "pets")
    if not data.exists():  # its topics are those of this data
        assert main(["data", "build", "styles", "--out", str(data), "--n_users", "20", "--no_progress"]) == 0
    argv = ["train", "summarizer", "--config", str(path), "--data", str(data), "--output_dir"]
    assert main([*argv, str(tmp_path / "out"), *arguments(settings)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", POLICY, ids=name)
def test_policy_recipes_run(path, folder, tmp_path):
    settings = {**TINY, "per_device_train_batch_size": 4, "num_generations": 2, "max_new_tokens": 5, "check_steps": 1}
    settings |= {"n_check": 4, "model_name_or_path": folder / "policy"}
    settings |= {"world_kwargs": '{"n_users": 8, "n_questions": 2}'}
    del settings["load_best_model_at_end"], settings["eval_strategy"]
    if SETTINGS[path].get("use_vllm"):
        settings["use_vllm"] = False  # it needs an accelerator
    argv = ["train", "policy", "--config", str(path), "--output_dir", str(tmp_path / "out"), *arguments(settings)]
    assert main(argv) == 0


@pytest.mark.parametrize("kind", ["multi_gpu", "fsdp2", "zero2", "zero3"])
def test_accelerates_settings_are_where_the_readme_says(kind):
    import trl
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(Path(trl.__file__).parent / "accelerate_configs" / f"{kind}.yaml"))
    assert config.num_processes > 1
    assert f"{kind}.yaml" in (RECIPES / "large" / "README.md").read_text()


def test_layers_that_fsdp_wraps_are_the_backbones():
    from pluralrlhf.modeling import PersonalizedRewardModel

    model = PersonalizedRewardModel.from_backbone(Qwen2Model(tiny_config()), "vpl", tokenizer=tiny_tokenizer())
    assert "Qwen2DecoderLayer" in model._no_split_modules


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["multi_gpu", "fsdp2", "zero2", "zero3"])
def test_a_backbone_trains_under_accelerates_settings(kind, folder, tmp_path):
    """Through the trainer, as the README of recipes/large launches it; what is saved is whole, whoever held the pieces."""
    import subprocess
    import sys

    import torch
    import trl
    from safetensors import safe_open

    from pluralrlhf.modeling import PersonalizedRewardModel

    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    config, out = Path(trl.__file__).parent / "accelerate_configs" / f"{kind}.yaml", tmp_path / "out"
    settings = {**TINY, "use_cpu": False, "use_peft": False, "per_device_train_batch_size": 4}
    settings |= {"model_name_or_path": folder / "backbone", "max_length": 256, "gradient_accumulation_steps": 1}
    settings |= {"gradient_checkpointing": False}
    launch = ["-m", "accelerate.commands.launch", "--config_file", config]
    launch += ["--num_processes", min(2, torch.cuda.device_count()), "-m", "pluralrlhf.cli.train_reward"]
    launch += ["--config", RECIPES / "large" / "soft_tokens.yaml", "--data", folder / "pets", "--output_dir", out]
    subprocess.run([sys.executable, *map(str, launch), *arguments(settings)], check=True, timeout=900)
    model = PersonalizedRewardModel.from_pretrained(out)
    with safe_open(out / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) == set(model.state_dict())
        assert all(saved.get_slice(key).get_shape() == list(value.shape) for key, value in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("path", [path for path in POLICY if SETTINGS[path].get("use_vllm")], ids=name)
def test_vllm_plays(path, folder, tmp_path):
    pytest.importorskip("vllm")
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 2, "max_new_tokens": 5,
                "check_steps": 1, "n_check": 4, "model_name_or_path": folder / "policy"}  # fmt: skip
    argv = ["train", "policy", "--config", str(path), "--output_dir", str(tmp_path / "out"), *arguments(settings)]
    assert main(argv) == 0
