"""Which checkpoint a training goes on from, and that it does so only with what the checkpoint was made from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pluralrlhf.cli import main
from pluralrlhf.cli.resume import begin_training, checkpoint_to_resume
from pluralrlhf.errors import ConfigError
from pluralrlhf.trainers.reward_config import PersonalizedRewardConfig


def arguments(out, **changed):
    settings = {"output_dir": str(out), "resume_from_checkpoint": None, "seed": 0, "learning_rate": 1e-3}
    settings |= {"max_steps": -1, "num_train_epochs": 4.0}
    return SimpleNamespace(**(settings | changed))


def interrupted(out, *steps, **changed):
    """A training into `out` that was interrupted after these checkpoints."""
    args = arguments(out, **changed)
    assert checkpoint_to_resume(args, False) is None
    begin_training(args, None)
    for step in steps:
        (out / f"checkpoint-{step}").mkdir()
        (out / f"checkpoint-{step}" / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "epoch": step / 10})
        )
    return out


@pytest.fixture
def out(tmp_path):
    return interrupted(tmp_path / "run", 20, 40)


def test_the_last_checkpoint_or_the_one_that_is_named(out):
    assert checkpoint_to_resume(arguments(out), True) == str(out / "checkpoint-40")
    named = str(out / "checkpoint-20")
    assert checkpoint_to_resume(arguments(out, resume_from_checkpoint=named), False) == named
    assert checkpoint_to_resume(arguments(out, resume_from_checkpoint="true"), False) == str(out / "checkpoint-40")


def test_a_training_that_starts_anew_moves_the_earlier_checkpoints_aside(out, capsys):
    (out / "best").mkdir()
    (out / "checkpoint-notes").mkdir()
    before = {path.name for path in out.iterdir()}
    assert checkpoint_to_resume(arguments(out, learning_rate=1e-2), False) is None
    assert {path.name for path in out.iterdir()} == before, "what is refused later must leave the folder as it was"
    interrupted(out, 20, learning_rate=1e-2)
    assert "which now are in" in (said := capsys.readouterr().err) and "(checkpoint-20, checkpoint-40)" in said
    assert {path.name for path in (out / "_earlier").iterdir()} == {"checkpoint-20", "checkpoint-40", "best"}
    assert {path.name for path in out.iterdir()} == {"checkpoint-20", "checkpoint-notes", "_earlier", "resume.json"}
    # The interrupted training goes on from its own checkpoint, not from the larger number of the one before.
    assert checkpoint_to_resume(arguments(out, learning_rate=1e-2), True) == str(out / "checkpoint-20")
    # A third one replaces what is there of the same name, and nothing else.
    interrupted(out, 10, learning_rate=1e-3)
    earlier = out / "_earlier"
    rates = {path.name: json.loads((path / "resume.json").read_text())["learning_rate"] for path in earlier.glob("c*")}
    assert rates == {"checkpoint-20": 1e-2, "checkpoint-40": 1e-3}


def test_the_model_of_another_method_or_of_other_data_is_not_overwritten(tmp_path):
    out, datasets = tmp_path / "run", [tmp_path / "pets", tmp_path / "others"]
    for seed, folder in enumerate(datasets):
        build = ["data", "build", "pets", "--out", str(folder), "--n_users", "20", "--seed", str(seed)]
        assert not main([*build, "--no_progress"])
    args = arguments(out, user_model="vpl")
    begin_training(args, None, str(datasets[0]))
    (out / "config.json").write_text("{}")
    later = arguments(out, user_model="vpl", learning_rate=1e-2)
    assert checkpoint_to_resume(later, False, str(datasets[0])) is None, "a later version may take its place"
    with pytest.raises(ConfigError, match=r"model of another method \(`vpl`\), which would be overwritten"):
        checkpoint_to_resume(arguments(out, user_model="btl"), False, str(datasets[0]))
    with pytest.raises(ConfigError, match="model of another dataset, which would be overwritten"):
        checkpoint_to_resume(args, False, str(datasets[1]))
    (out / "config.json").unlink()
    assert checkpoint_to_resume(args, False, str(datasets[1])) is None, "nothing was finished there"


def test_what_was_moved_aside_can_be_gone_on_from_with_its_own_settings(out, tmp_path):
    interrupted(out, 40, learning_rate=1e-2)
    moved = str(out / "_earlier" / "checkpoint-20")
    with pytest.raises(ConfigError, match=r"`learning_rate` was 0\.001 and is 0\.01"):
        checkpoint_to_resume(arguments(out, learning_rate=1e-2, resume_from_checkpoint=moved), False)
    args = arguments(out, resume_from_checkpoint=moved)
    assert checkpoint_to_resume(args, False) == moved
    begin_training(args, moved)
    assert not list(out.glob("checkpoint-*")), "another run's checkpoints make way for those of a run from elsewhere"
    (out / "checkpoint-20").mkdir()
    with pytest.raises(ConfigError, match="Name another `output_dir`"):
        checkpoint_to_resume(args, False)


@pytest.mark.parametrize("named", ["nowhere/checkpoint-9", "."])
def test_what_is_no_checkpoint_is_an_error(out, named):
    with pytest.raises(ConfigError, match="is no checkpoint of a training"):
        checkpoint_to_resume(arguments(out, resume_from_checkpoint=named), False)


def test_other_settings_are_refused_and_nothing_is_noted(out):
    before = (out / "resume.json").read_text()
    with pytest.raises(ConfigError, match=r"`learning_rate` was 0\.001 and is 0\.01"):
        checkpoint_to_resume(arguments(out, learning_rate=1e-2), True)
    assert (out / "resume.json").read_text() == before
    # Where it was made by a version that noted nothing, there is nothing to compare with.
    (out / "resume.json").unlink()
    assert checkpoint_to_resume(arguments(out, learning_rate=1e-2), True)


def test_a_training_that_has_nothing_left_to_do_is_refused_or_says_so(out, capsys):
    with pytest.raises(ConfigError, match=r"`max_steps` is 30, but .*checkpoint-40 is at 40"):
        checkpoint_to_resume(arguments(out, max_steps=30), True)
    with pytest.raises(ConfigError, match=r"`num_train_epochs` is 3, but .*checkpoint-40 is at 4"):
        checkpoint_to_resume(arguments(out, num_train_epochs=3), True)
    for end in ({"max_steps": 40}, {"num_train_epochs": 4}, {"max_steps": 50}):
        args = arguments(out, **end)
        begin_training(args, checkpoint_to_resume(args, True))
        assert ("nothing is left to train" in capsys.readouterr().err) == (end != {"max_steps": 50})


def test_other_data_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "cache"))
    for seed in ("0", "1"):
        build = ["data", "build", "pets", "--out", str(tmp_path / seed), "--n_users", "20", "--seed", seed]
        assert main([*build, "--no_progress"]) == 0
    train = ["train", "reward", "--encoder", "offline", "--user_model", "btl", "--output_dir", str(tmp_path / "run")]
    train += ["--max_steps", "4", "--save_steps", "2", "--report_to", "none", "--disable_tqdm", "true", "--data"]
    assert main([*train, str(tmp_path / "0")]) == 0
    found = json.loads((tmp_path / "run" / "resume.json").read_text())
    assert found["user_model"] == "btl" and len(found["data_sha256"]) == 64
    capsys.readouterr()
    assert main([*train, str(tmp_path / "1"), "--resume", "true"]) == 2
    assert "`data_sha256` was" in capsys.readouterr().err
    assert main([*train, str(tmp_path / "0"), "--user_model", "ours", "--resume", "true"]) == 2
    assert "`user_model` was 'btl' and is 'ours'" in capsys.readouterr().err
    named = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2")]
    assert main([*train, str(tmp_path / "0"), *named]) == 0
    # Anew, with fewer steps than before: what a resumed training finds is its own.
    assert main([*train, str(tmp_path / "0"), "--max_steps", "2", "--save_total_limit", "1"]) == 0
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert (tmp_path / "run" / "_earlier" / "checkpoint-4" / "trainer_state.json").is_file()


def test_a_metric_that_was_chosen_by_the_data_is_no_other_setting(tmp_path):
    """The trainer chooses it after the checkpoint was looked for, and before the run is noted."""
    out, asked = tmp_path / "run", {"encoder": "offline", "load_best_model_at_end": True}
    asked |= {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 20, "save_steps": 20}
    args = PersonalizedRewardConfig(str(out), **asked)
    args.choose_metric(50)
    assert args.metric_for_best_model == "validation_log_loss"
    begin_training(args, None)
    (out / "checkpoint-20").mkdir()
    (out / "checkpoint-20" / "trainer_state.json").write_text(json.dumps({"global_step": 20, "epoch": 2}))
    assert checkpoint_to_resume(PersonalizedRewardConfig(str(out), **asked), True) == str(out / "checkpoint-20")
    fewer = PersonalizedRewardConfig(str(out), **asked, max_eval_pairs_per_user=3)
    with pytest.raises(ConfigError, match="`max_eval_pairs_per_user` was None and is 3"):
        checkpoint_to_resume(fewer, True)
