"""A backbone-route model through the commands: trained, evaluated with its controls, asked for every user."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from tiny import tiny_config, tiny_tokenizer
from transformers import Qwen2Model

from pluralrlhf.cli import main


@pytest.mark.parametrize("form", ["cluster", "individual"])
def test_train_and_evaluate(tmp_path, form):
    data, backbone, out = tmp_path / "pets", tmp_path / "backbone", tmp_path / "model"
    common = ["--n_users", "20", "--no_progress", "--validation_users", "0.2", "--pairs_per_user", "6"]
    common += ["--unseen_pairs_per_user", "3", "--n_pairs", "30"]
    assert main(["data", "build", "pets", "--out", str(data), *common]) == 0
    Qwen2Model(tiny_config(max_position_embeddings=1024)).save_pretrained(backbone)
    tiny_tokenizer().save_pretrained(backbone)
    command = ["train", "reward", "--data", str(data), "--model_name_or_path", str(backbone), "--output_dir", str(out)]
    command += [
        "--user_model",
        "soft_tokens",
        "--user_model_kwargs",
        json.dumps({"form": form, "n_tokens": 2, "n_clusters": 2, "steps": 1}),
    ]
    command += ["--max_steps", "2", "--n_context", "2", "--eval_n_context", "0", "2", "--save_strategy", "no"]
    command += ["--max_eval_pairs_per_user", "2", "--per_device_train_batch_size", "4", "--max_length", "48"]
    command += ["--disable_tqdm", "true", "--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false"]
    assert main([*command, "--report_to", "none"]) == 0
    assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    results = tmp_path / "results"
    command = ["eval", "reward", "--model", str(out), "--data", str(data), "--n_context", "0", "2", "--output_dir"]
    assert main([*command, str(results), "--splits", "test_unseen_users_unseen_items", "--no_report"]) == 0
    found = json.loads((results / "results.json").read_text())["controls"]["test_unseen_users_unseen_items"]["2"]
    assert found["permutation_max_diff"]["value"] < 1e-4
    controls = set(pq.read_table(results / "per_pair.parquet")["control"].to_pylist())
    assert {"none", "flipped", "wrong_user", "empty_context", "coin_flip", "permuted"} <= controls
    assert ("random_state" in controls) == (form == "cluster")
