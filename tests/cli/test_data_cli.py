"""The `data` commands as they are typed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from pluralrlhf.cli import main
from pluralrlhf.cli.data_build import _one_item, build_parser
from pluralrlhf.data.sources import SOURCES, source_class

ROWS = "annotator,question,better,worse\n" + "".join(
    f"u{u},Question {q}?,Answer {u % 2},Other {q % 3}\n" for u in range(30) for q in range(12)
)
FLAGS = ["--map", "user_id=annotator", "prompt=question", "chosen=better", "rejected=worse", "--no_progress"]


@pytest.fixture
def votes(tmp_path) -> Path:
    (tmp_path / "votes.csv").write_text(ROWS)
    return tmp_path / "votes.csv"


def run(*argv: object) -> int:
    try:
        return main(["data", *map(str, argv)])
    except SystemExit as done:  # -h
        return int(done.code or 0)


def test_list_names_every_source_without_loading_anything_heavy(capfd):
    assert run("list") == 0
    shown = capfd.readouterr().out
    assert all(name in shown and source_class(name).summary.split()[0] in shown for name in SOURCES)
    assert run("list", "--json") == 0
    assert list(json.loads(capfd.readouterr().out)) == list(SOURCES)
    script = (
        "import sys; sys.argv = ['pluralrlhf', 'data', 'list']\n"
        "from pluralrlhf.cli import main; main()\n"
        "print(sorted({'torch', 'datasets', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", SOURCES)
def test_help_of_every_source_shows_its_settings_and_an_example(name, capfd):
    assert run("build", name, "-h") == 0
    shown = capfd.readouterr().out
    assert "example:" in shown and f"data build {name} {source_class(name).example}".strip() in shown
    for flag in ("--out", "--seed", "--skip_invalid", "--placebo", "--n_user_folds"):
        assert flag in shown
    for action in build_parser(source_class(name), "x")._actions:
        assert action.help, f"{action.dest} has no help"


def test_help_of_the_other_commands(capfd):
    for command in (["build"], ["inspect"], ["list"]):
        assert run(*command, "-h") == 0
        assert "example" in capfd.readouterr().out


@pytest.mark.parametrize("name", SOURCES)
def test_every_example_is_understood(name):
    cls = source_class(name)
    parsed = vars(build_parser(cls, "x").parse_args([*shlex.split(cls.example), "--out", "d"]))
    assert parsed["out"] == "d"


def test_the_examples_of_table_and_inspect_run(tmp_path):
    source = source_class("table")
    command = f"{source.example_setup}\npluralrlhf data build table {source.example} --out data_table\n"
    command += "pluralrlhf data inspect data_table --examples 2\n"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pairs of 30 users" in done.stdout
    assert "Leaks" in done.stdout and "Question" in done.stdout


@pytest.mark.parametrize(
    ("typed", "meant"), [("tabel", "table"), ("polarised_issues", "polarized_issues"), ("PETS", "pets")]
)
def test_a_misspelled_source_suggests_the_right_one(typed, meant, capfd):
    assert run("build", typed, "--out", "x") == 2
    assert f"Did you mean `{meant}`" in capfd.readouterr().err


def test_mistakes_are_one_line(tmp_path, votes, capfd):
    for argv, says in (
        (["build", "table", "--path", votes], "--out"),
        (["build", "--path", votes], "the first argument is the source"),
        (["build", "table", "--out", tmp_path / "o"], "--path"),
        (["build", "table", "--out", tmp_path / "o", "--path", votes, "--seed", "x"], "--seed"),
        (["build", "table", "--out", tmp_path / "o", "--path", votes, "--placebos"], "--placebo"),
        (["inspect", tmp_path / "absent"], "does not exist"),
        (["inspect", tmp_path], "no build.json"),
        (["inspect", votes], "a file, not a dataset folder"),
        (["inspect", tmp_path, "--examples", "-1"], "-1"),
    ):
        assert run(*argv) == 2
        message = capfd.readouterr().err
        assert message.startswith("error: ") and says in message and message.count("\n") == 1


def test_build_says_what_it_made_and_does_not_overwrite(tmp_path, votes, capfd):
    out = tmp_path / "data"
    assert run("build", "table", "--path", votes, *FLAGS, "--out", out) == 0
    shown = capfd.readouterr()
    assert "pairs of 30 users" in shown.out and "test_unseen_users_unseen_items" in shown.out and not shown.err
    assert run("build", "table", "--path", votes, *FLAGS, "--out", out) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert run("build", "table", "--path", votes, *FLAGS, "--out", out, "--overwrite", "--seed", "3") == 0
    assert json.loads((out / "build.json").read_text())["seed"] == 3


def test_a_config_file_holds_any_setting_and_flags_override_it(tmp_path, votes, capfd):
    config = tmp_path / "votes.yaml"
    lines = [
        f"path: {votes}",
        "map: {user_id: annotator, prompt: question, chosen: better, rejected: worse}",
        "test_users: 0.4",
        "seed: 5",
        "progress: false",
        "placebo: false",
        "min_pairs_per_user: 3",
    ]
    config.write_text("\n".join(lines))
    assert run("build", "table", "--config", config, "--out", tmp_path / "a", "--test_users", "0.3") == 0
    build = json.loads((tmp_path / "a" / "build.json").read_text())
    assert (build["seed"], build["parameters"]["test_users"], build["parameters"]["min_pairs_per_user"]) == (5, 0.3, 3)
    for line, says in (
        ("tset_users: 0.3", "Did you mean test_users"),
        ("test_users: many", "many"),
        ("- a", "name: value"),
        ("a: [", "YAML"),
    ):
        config.write_text(line)
        assert run("build", "table", "--config", config, "--out", tmp_path / "b") == 2
        assert says in capfd.readouterr().err
    assert run("build", "table", "--config", tmp_path / "absent.yaml", "--out", tmp_path / "b") == 2


def test_inspect_prints_tables_or_json(tmp_path, votes, capfd):
    out = tmp_path / "data"
    run("build", "table", "--path", votes, *FLAGS, "--out", out)
    capfd.readouterr()
    assert run("inspect", out, "--no_progress") == 0
    shown = capfd.readouterr().out
    for title in ("Splits", "Pairs a user", "Context", "Disagreement", "What one answer for everybody", "Leaks"):
        assert title in shown
    assert "Question" not in shown, "no user text unless asked for"
    assert run("inspect", out, "--json", "--no_progress") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["splits"]["all"]["users"] == 30 and report["leaks"]["items_on_both_sides"] == 0


def test_examples_cannot_write_to_the_terminal_what_is_not_text(tmp_path, capfd):
    odd = "[bold]not markup[/] \u202e\u009b31m"
    table = [
        {"user_id": f"u{n % 30}", "prompt": f"Q{n // 30}", "chosen": odd, "rejected": "x" * 5000} for n in range(300)
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    assert run("build", "table", "--path", path, "--out", tmp_path / "out", "--no_progress") == 0
    capfd.readouterr()
    assert run("inspect", tmp_path / "out", "--examples", "2", "--no_progress") == 0
    shown = capfd.readouterr().out
    assert (
        "[bold]not markup[/]" in shown and "\u202e" not in shown and "\u009b" not in shown and "x" * 500 not in shown
    )


def test_long_builds_say_how_far_they_are(tmp_path, votes, monkeypatch, capfd):
    from pluralrlhf.data import progress

    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_CHECK_EVERY", 50)
    assert run("build", "table", "--path", votes, *FLAGS[:-1], "--out", tmp_path / "data") == 0
    lines = capfd.readouterr().err.splitlines()
    assert any("pairs in" in line and "left" in line and "%" in line for line in lines)
    ratings = tmp_path / "ratings.csv"
    ratings.write_text(
        "user_id,prompt,response,rating\n" + "".join(f"u{n % 30},Q{n % 7},R{n},{n // 30 % 5}\n" for n in range(600))
    )
    assert run("build", "table", "--path", ratings, "--out", tmp_path / "rated") == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("0 pairs in") and "%" in lines[0], "also while ratings are read"


def test_a_table_with_one_prompt_is_told_to_take_responses_for_items(tmp_path, capsys):
    rows = [f"u{i % 30},Which one?,yes {i % 7} a,no {i % 5} b" for i in range(600)]
    (tmp_path / "votes.csv").write_text("\n".join(["user_id,prompt,chosen,rejected", *rows]))
    build = ["data", "build", "table", "--path", str(tmp_path / "votes.csv"), "--no_progress", "--out"]
    assert main([*build, str(tmp_path / "a")]) == 0
    assert "--items responses" in capsys.readouterr().out
    assert main([*build, str(tmp_path / "b"), "--items", "responses"]) == 0
    assert "--items responses" not in capsys.readouterr().out


@pytest.mark.parametrize("others, one", [(["q"], True), (["q", "r"], False), (["r"], False)])
def test_one_prompt_is_that_of_all_splits(monkeypatch, others, one):
    splits = {"train": ["q", "q"], "validation": others}
    made = {name: Dataset.from_dict({"item_ids": [[item] for item in items]}) for name, items in splits.items()}
    monkeypatch.setattr("pluralrlhf.data.load_pairs", lambda folder: made)
    assert _one_item("x") is one
