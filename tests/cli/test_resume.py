"""Which checkpoint a training goes on from, and that it does so only with what the checkpoint was made from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pluralrlhf.cli import main
from pluralrlhf.cli.resume import checkpoint_to_resume
from pluralrlhf.errors import ConfigError


def arguments(out, **changed):
    settings = {"output_dir": str(out), "resume_from_checkpoint": None, "seed": 0, "learning_rate": 1e-3}
    return SimpleNamespace(**(settings | changed))


@pytest.fixture
def out(tmp_path):
    """A training that was interrupted after two checkpoints."""
    folder = tmp_path / "run"
    assert checkpoint_to_resume(arguments(folder), False) is None
    for step in (20, 40):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    return folder


def test_the_last_checkpoint_or_the_one_that_is_named(out):
    assert checkpoint_to_resume(arguments(out), True) == str(out / "checkpoint-40")
    named = str(out / "checkpoint-20")
    assert checkpoint_to_resume(arguments(out, resume_from_checkpoint=named), False) == named
    assert checkpoint_to_resume(arguments(out, resume_from_checkpoint="true"), False) == str(out / "checkpoint-40")


def test_a_training_that_starts_anew_says_what_it_replaces(out, capsys):
    assert checkpoint_to_resume(arguments(out), False) is None
    assert "holds an earlier training's checkpoints, which are replaced" in capsys.readouterr().err


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
