"""What an evaluation refuses, and that a call which is refused leaves earlier results as they were."""

from __future__ import annotations

import json

import pytest

from pluralrlhf.cli import main
from pluralrlhf.data import load_pairs
from pluralrlhf.data.schema import TEXT_COLUMNS
from pluralrlhf.data.seen import write_sketch
from pluralrlhf.errors import ConfigError
from pluralrlhf.evaluation.scorers import check_distinct
from pluralrlhf.modeling import PersonalizedRewardModel


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset, two models, and an evaluation of them."""
    root = tmp_path_factory.mktemp("evaluate")
    assert not main(["data", "build", "pets", "--out", str(root / "pets"), "--n_users", "20", "--no_progress"])
    for name in ("vpl", "btl"):
        PersonalizedRewardModel.from_encoder("offline", name).save_pretrained(str(root / name))
    assert not evaluate(root, "--model", "vpl", "--n_context", "0", "2")
    assert not evaluate(root, "--model", "btl", "--seed", "3", output="btl-eval")
    return root


def evaluate(root, *arguments, output="eval"):
    more = [str(root / word) if word in ("vpl", "btl", "nope", "eval", "btl-eval") else word for word in arguments]
    common = ["--data", str(root / "pets"), "--output_dir", str(root / output), "--n_bootstrap", "10", "--no_report"]
    return main(["eval", "reward", "--no_controls", "--splits", "validation", *common, *more])


def files(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "vpl", "--baseline", "nope"], "the folder does not exist"),
        (["--model", "vpl", "nope"], "the folder does not exist"),
        (["--model", "vpl", "--splits", "tset"], "`splits` names tset"),
        (["--model", "vpl", "--baseline", "btl-eval"], "was evaluated with seed 3; `seed` is 0"),
        (["--model", "btl", "--baseline", "vpl"], "which uses the user"),
        (["--model", "vpl", "--baseline", "eval"], "is `output_dir`, whose results are replaced"),
    ],
)
def test_a_call_that_is_refused_leaves_earlier_results(root, arguments, named, capsys):
    before = files(root / "eval")
    capsys.readouterr()
    assert len(before) > 3 and evaluate(root, *arguments) == 2
    error = capsys.readouterr().err
    assert named in error and "which is replaced" not in error
    assert files(root / "eval") == before


@pytest.mark.parametrize(
    "command",
    [
        ["summarizer", "--model", "vpl"],
        ["elicitation", "--model", "nope"],
        ["transfer", "--model", "nope", "--writer", "a", "--judge", "b"],
    ],
    ids=lambda words: words[0],
)
def test_other_evaluations_leave_what_is_not_theirs(root, command, capsys):
    before = files(root / "eval")
    name, *rest = [str(root / word) if word in ("vpl", "nope") else word for word in command]
    assert main(["eval", name, *rest, "--data", str(root / "pets"), "--output_dir", str(root / "eval")]) == 2
    assert files(root / "eval") == before, capsys.readouterr().err


def test_a_model_that_is_given_twice_is_no_second_seed(root, capsys):
    roundabout = str(root / "pets" / ".." / "vpl")
    (root / "link").symlink_to(root / "vpl")
    for arguments in (["--baseline", "vpl"], ["vpl"], [roundabout], ["--baseline", str(root / "link")]):
        assert evaluate(root, "--model", "vpl", *arguments, output="twice") == 2
        assert "vpl is given twice" in capsys.readouterr().err
    summarizer = ["eval", "summarizer", "--model", str(root / "vpl"), roundabout, "--data", str(root / "pets")]
    assert main([*summarizer, "--output_dir", str(root / "twice")]) == 2
    assert "vpl is given twice" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is given twice"):
        check_distinct([root / "vpl"] * 2)


def test_gains_are_counted_from_the_baseline_that_is_named(root):
    PersonalizedRewardModel.from_encoder("offline", "dpl").save_pretrained(str(root / "dpl"))
    for arguments, baseline in (
        (["--model", "vpl", str(root / "dpl"), "--baseline", "btl"], "btl"),
        (["--model", "vpl", "btl", "--baseline", str(root / "dpl")], "dpl"),
        (["--model", "vpl", str(root / "dpl"), "btl"], "btl"),
        (["--model", "vpl", str(root / "dpl")], "dpl"),
    ):
        assert not evaluate(root, *arguments, output="from")
        results = json.loads((root / "from" / "results.json").read_text())["results"]
        assert {result["baseline"] for result in results} == {baseline}


def test_diagnostics_of_a_context_that_was_not_evaluated_are_refused(root, capsys):
    command = ["eval", "diagnostics", "--results", str(root / "eval"), "--data", str(root / "pets"), "--split"]
    assert main([*command, "validation", "--n_context", "5"]) == 2
    error = capsys.readouterr().err
    assert "`n_context` is 5" in error and "has 0, 2 for split 'validation'" in error
    assert not (root / "eval" / "diagnostics").exists()


def test_results_of_another_dataset_are_not_replaced(root, capsys):
    before = files(root / "eval")
    others = root / "others"
    assert not main(["data", "build", "pets", "--out", str(others), "--n_users", "20", "--seed", "1", "--no_progress"])
    assert evaluate(root, "--model", "vpl", "--data", str(others)) == 2
    assert "holds the evaluation of another dataset" in capsys.readouterr().err
    assert files(root / "eval") == before


def test_users_whom_the_model_was_trained_on_are_not_unseen(root, capsys):
    model, again, splits = root / "trained", root / "again-pets", load_pairs(root / "pets")
    PersonalizedRewardModel.from_encoder("offline", "vpl").save_pretrained(str(model))
    write_sketch(splits["train"], model)
    assert not evaluate(root, "--model", str(model), "--n_context", "0", output="own")
    # The same users and choices, the users divided otherwise.
    folder = ["--path", str(root / "pets.jsonl"), "--out", str(again), "--seed", "5", "--validation_users", "0.5"]
    rows = [row for split in splits.values() for row in split.select_columns(["user_id", *TEXT_COLUMNS])]
    (root / "pets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert not main(["data", "build", "table", *folder, "--no_progress"])
    unseen = [split for name, split in load_pairs(again).items() if name == "validation" or "unseen_users" in name]
    new = {user for split in unseen for user in split["user_id"]}
    assert (met := new & set(splits["train"]["user_id"])), "some users change sides"
    capsys.readouterr()
    assert evaluate(root, "--model", str(model), "--data", str(again), output="fooled") == 2
    error = capsys.readouterr().err
    assert (
        f"{len(met)} of the {len(new)} users of `validation`" in error
        and "made choices that it was trained on" in error
    )
    assert not (root / "fooled" / "results.json").exists()


def test_a_call_that_is_sound_replaces_earlier_results(root, capsys):
    assert not evaluate(root, "--model", "btl", "--n_context", "0", output="again")
    assert "which is replaced" not in capsys.readouterr().err
    assert not evaluate(root, "--model", "vpl", "--n_context", "0", output="again")
    assert "holds an earlier evaluation, which is replaced" in capsys.readouterr().err
    assert json.loads((root / "again" / "results.json").read_text())["method"] == "vpl"
