"""From the command line: build, train, resume, evaluate; mistakes are one line and exit status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pluralrlhf.cli import main
from pluralrlhf.evaluation.suite_spec import load_suite

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*/*.yaml")) if "\nuser_model:" in path.read_text()]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pets"
    assert main(["data", "build", "pets", "--out", str(folder), "--n_users", "60", "--no_progress"]) == 0
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipes_parse_strictly_and_say_what_they_are(path):
    from trl import ModelConfig, TrlParser

    from pluralrlhf.cli.train_reward import DataArguments
    from pluralrlhf.trainers.reward_config import PersonalizedRewardConfig

    parser = TrlParser((DataArguments, PersonalizedRewardConfig, ModelConfig))
    _, args, model = parser.parse_args_and_config(args=["--config", str(path), "--output_dir", "x"])
    assert (args.encoder is None) != (model.model_name_or_path is None)
    assert path.read_text().startswith("#")


def test_polis_settings_are_the_same_everywhere():
    for method in ("btl", "vpl"):
        polis = yaml.safe_load((ROOT / "recipes" / "polis" / f"{method}.yaml").read_text())
        for other in ("polarized_issues", "ukp_convincing"):
            assert yaml.safe_load((ROOT / "recipes" / other / f"{method}.yaml").read_text()) == polis
        settings = load_suite(ROOT / "evals" / "polis.yaml").methods[method]
        assert settings == {key: value for key, value in polis.items() if key != "seed"}


def test_train_resume_and_evaluate(tmp_path, pets, capsys, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "vpl"
    command = ["train", "reward", "--config", str(ROOT / "recipes/pets/vpl.yaml"), "--data", str(pets)]
    command += ["--output_dir", str(out), "--max_steps", "60", "--disable_tqdm", "true", "--save_steps", "30"]
    assert main([*command, "--eval_steps", "30"]) == 0
    assert {"README.md", "config.json", "model.safetensors", "training_args.json"} <= {p.name for p in out.iterdir()}
    before = (out / "model.safetensors").read_bytes()
    assert main([*command, "--eval_steps", "30", "--resume", "true"]) == 0
    assert (out / "model.safetensors").read_bytes() == before
    results = tmp_path / "results"
    command = ["eval", "reward", "--model", str(out), "--data", str(pets), "--n_context", "0", "4", "--output_dir"]
    assert main([*command, str(results), "--splits", "test_unseen_users_unseen_items", "--no_report"]) == 0
    found = json.loads((results / "results.json").read_text())
    assert "test_unseen_users_unseen_items" in json.dumps(found)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output_dir", "x"], "`--data` is missing"),
        (["--data", "nowhere", "--output_dir", "x", "--encoder", "offline"], "the folder does not exist"),
        (["--data", "PETS", "--output_dir", "x"], "Give `--encoder`"),
        (["--data", "PETS", "--output_dir", "x", "--encoder", "offline", "--user_model", "vlp"], "Did you mean `vpl`"),
        (
            ["--data", "PETS", "--output_dir", "x", "--encoder", "offline", "--eval_splits", "dev"],
            "`eval_splits` names",
        ),
        (
            ["--data", "PETS", "--output_dir", "x", "--encoder", "offline", "--user_model", "soft_tokens"],
            "`encoder` is 'offline', but `soft_tokens` changes what a backbone computes",
        ),
        (["--config", "missing.yaml", "--output_dir", "x"], "there is no file 'missing.yaml'"),
        (["--config", "BAD", "--output_dir", "x"], "`learnig_rate`. Did you mean `learning_rate`"),
        (["--max_stepz", "3", "--output_dir", "x"], "Did you mean `max_steps`"),
        (["--max_steps", "lots", "--output_dir", "x"], "invalid int value: 'lots'"),
        (["--data", "PETS", "--output_dir", "x", "--learning_rate", "-1"], "`learning_rate` is -1.0"),
        (["--data", "PETS", "--output_dir", "PETS", "--encoder", "offline"], "is a dataset folder; name another"),
        (["--data", "PETS", "--output_dir", "/proc/none/x", "--encoder", "offline"], "no such file or directory"),
        (["--data", "PETS", "--output_dir", "x", "--encoder", "nowhere/model"], "could not be loaded"),
        (
            ["--data", "PETS", "--output_dir", "x", "--encoder", "offline", "--attn_implementation", "sdpa"],
            "`model_init_kwargs` holds attn_implementation; an `encoder` takes",
        ),
        (
            ["--data", "PETS", "--output_dir", "x", "--model_name_or_path", "/tmp/not/there"],
            "`model_name_or_path`: there is no folder '/tmp/not/there' here",
        ),
        (
            ["--data", "PETS", "--output_dir", "x", "--encoder", "offline", "--user_model_kwargs", "dim=1"],
            "`user_model_kwargs` is 'dim=1', not settings by name. Write JSON",
        ),
        (
            ["--data", "PETS", "--output_dir", "x", "--encoder", "offline", "--user_model_kwargs", '{"hidden": "x"}'],
            "`user_model_kwargs` of `ours`: `hidden` is 'x'; give a whole number",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, pets, capsys, arguments, message):
    bad = tmp_path / "bad.yaml"
    bad.write_text("learnig_rate: 1\n")
    replace = {"PETS": str(pets), "BAD": str(bad), "x": str(tmp_path / "x")}
    try:
        status = main(["train", "reward", *[replace.get(argument, argument) for argument in arguments]])
    except SystemExit as exit:  # argparse's own way out
        status = exit.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error and "Traceback" not in error


def test_data_without_validation_users_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "cache"))
    table = [f"u{u},Q{q}?,A{(u + q) % 2},B{(u + q) % 2}" for u in range(2) for q in range(12)]
    (tmp_path / "votes.csv").write_text("\n".join(["user_id,prompt,chosen,rejected", *table]))
    data = str(tmp_path / "two")
    build = ["data", "build", "table", "--path", str(tmp_path / "votes.csv"), "--out", data, "--no_progress"]
    assert main([*build, "--validation_users", "0"]) == 0
    command = ["train", "reward", "--config", str(ROOT / "recipes/table/btl.yaml"), "--data", data]
    command += ["--output_dir", str(tmp_path / "x"), "--max_steps", "2", "--disable_tqdm", "true"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "has no validation users" in error and "more users" in error
    remedy = "--eval_strategy no --load_best_model_at_end false"
    assert f"add `{remedy}`" in error
    assert main([*command, *remedy.split()]) == 0


@pytest.mark.parametrize(
    ("command", "recipe"), [("reward", "pets/vpl"), ("summarizer", "pets/plus"), ("policy", "exercise/diff_log_acc")]
)
def test_help_shows_an_example_and_what_a_recipe_is(command, recipe, capsys):
    with pytest.raises(SystemExit):
        main(["train", command, "-h"])
    shown = capsys.readouterr().out
    assert f"pluralrlhf train {command} --config recipes/{recipe}.yaml" in shown
    told = " ".join(shown.split())
    assert "`--config FILE` reads the settings below from a YAML file" in told
    assert "`--resume true` finds the last one itself" in told
    assert "accelerate launch" not in shown or "accelerate launch --multi_gpu" in shown
