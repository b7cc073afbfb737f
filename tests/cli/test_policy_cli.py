"""`train policy` and `eval policy` from the command line, and mistakes that are named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from pluralrlhf.cli import main
from pluralrlhf.environments.exercise_start import vocabulary
from pluralrlhf.environments.tiny import tiny_policy, tiny_tokenizer
from pluralrlhf.user_models.beliefs import ClassifierBelief, ClassifierBeliefConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--num_generations", "2", "--max_new_tokens", "5"]
TINY += [
    "--check_steps",
    "1",
    "--n_check",
    "4",
    "--save_strategy",
    "no",
    "--disable_tqdm",
    "true",
    "--use_cpu",
    "true",
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    tokenizer = tiny_tokenizer(vocabulary())
    tiny_policy(tokenizer, hidden_size=16, layers=1, heads=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_train_then_evaluate(start, tmp_path, capsys):
    config = str(RECIPES / "exercise" / "diff_log_acc.yaml")
    out, results = tmp_path / "policy", tmp_path / "eval"
    argv = ["train", "policy", "--config", config, "--model_name_or_path", str(start), "--output_dir", str(out)]
    (out / "checkpoint-900").mkdir(parents=True)
    assert main([*argv, *TINY, "--world_kwargs", '{"n_users": 8, "n_questions": 2}']) == 0
    assert (out / "_earlier" / "checkpoint-900").is_dir() and not (out / "checkpoint-900").exists()
    assert (out / "best" / "config.json").is_file() and json.loads((out / "history.json").read_text())
    assert main(["eval", "policy", "--model", str(out), "--output_dir", str(results), "--n", "8"]) == 0
    report = json.loads((results / "results.json").read_text())
    assert set(report["checkpoints"]) == {"start", "best", "final"} and set(report["gap"]) == {
        "start",
        "best",
        "final",
    }
    final = report["checkpoints"]["final"]["test"]
    assert len(final["belief_accuracy"]) == 4 and final["shares"]["types"][0] == "trail running"
    assert len((results / "conversations.jsonl").read_text().splitlines()) == 72
    page = (results / "report.html").read_text()
    assert page.count('class="talk"') == 18 and 'class="bars"' in page
    assert page.count("<table") == 3 and "calibration error" in page and page.count("; success ") == 18
    assert "success" in capsys.readouterr().out and report["belief"] == "exact"
    talk = [{"role": "assistant", "content": "?"}, {"role": "user", "content": "rock ."}]
    learned = ClassifierBelief.fit(
        [talk, talk[:1]], [0, 1], ClassifierBeliefConfig(6, hidden=4, steps=2, batch_size=2)
    )
    learned.save(tmp_path / "belief")
    by_it = ["--belief", str(tmp_path / "belief"), "--splits", "test", "--n", "1"]
    assert main(["eval", "policy", "--model", str(out), "--output_dir", str(tmp_path / "learned"), *by_it]) == 0
    assert "(one user)" in capsys.readouterr().out
    page = (tmp_path / "learned" / "report.html").read_text()
    assert "one user" in page and f"<code>{tmp_path / 'belief'}</code>" in page
    (out / "config.json").write_text("damaged")
    before = (results / "conversations.jsonl").read_bytes()
    assert main(["eval", "policy", "--model", str(out), "--output_dir", str(results), "--n", "8"]) == 2
    assert "holds no model" in capsys.readouterr().err
    assert (results / "conversations.jsonl").read_bytes() == before


@pytest.mark.parametrize("n_types", [2, 6])
def test_the_tutor_world_trains_and_evaluates(tmp_path, n_types):
    from pluralrlhf.environments.tutor import CUE, PLAN, REACTIONS, STYLES, TOPICS

    lines = [PLAN, CUE, *(text for _, text in STYLES), *(s for group in REACTIONS for kind in group for s in kind)]
    lines += [style for style, _ in STYLES] + [topic for group in TOPICS.values() for topic in group]
    tokenizer = tiny_tokenizer([line.replace("{topic}", "").replace("{style}", "") for line in lines])
    for part in (tokenizer, tiny_policy(tokenizer, hidden_size=16, layers=1, heads=2)):
        part.save_pretrained(tmp_path / "start")
    argv = ["train", "policy", "--world", "tutor", "--model_name_or_path", str(tmp_path / "start"), *TINY]
    argv += ["--output_dir", str(tmp_path / "policy"), "--report_to", "none", "--logging_steps", "1"]
    assert main([*argv, "--world_kwargs", f'{{"n_types": {n_types}, "n_users": 12, "n_trials": 2}}']) == 0
    argv = ["eval", "policy", "--model", str(tmp_path / "policy"), "--output_dir", str(tmp_path / "eval"), "--n", "12"]
    assert main(argv) == 0
    final = json.loads((tmp_path / "eval" / "results.json").read_text())["checkpoints"]["final"]["test"]
    assert len(final["shares"]["types"]) == n_types and len(final["belief_accuracy"]) == 4


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["train", "policy", "--world", "chess", "--output_dir", "x", "--report_to", "none"], "world"),
        (["train", "policy", "--output_dir", "x", "--report_to", "none", "--world_kwargs", '{"size": 1}'], "size"),
        (["train", "policy", "--output_dir", "x", "--report_to", "none", "--curiosity", "nosy"], "reward"),
        (["eval", "policy", "--model", "nowhere", "--output_dir", "x"], "policy.json"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(argv, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error


@pytest.mark.parametrize("recipe", sorted((RECIPES / "exercise").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_parses(recipe, tmp_path):
    from trl import ModelConfig, TrlParser

    from pluralrlhf.cli.arguments import parse
    from pluralrlhf.cli.train_policy import PolicyArguments
    from pluralrlhf.trainers.multi_turn_config import MultiTurnGRPOConfig

    parser = TrlParser((PolicyArguments, MultiTurnGRPOConfig, ModelConfig))
    policy, args, _ = parse(parser, ["--config", str(recipe), "--output_dir", str(tmp_path)])
    assert policy.world == "exercise" and args.max_steps == 300
