"""The commands around summaries: recipes parse, chat logs become pairs, forgetting forgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pluralrlhf.cli import COMMANDS, main
from pluralrlhf.cli.user_files import read_history, read_responses
from pluralrlhf.cli.user_forget import forget
from pluralrlhf.errors import ConfigError, DataError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PLUS = sorted(RECIPES.glob("*/plus*.yaml"))
CONTEXTS = sorted((RECIPES / "contexts").glob("*.yaml"))


@pytest.mark.parametrize("path", PLUS, ids=lambda p: str(p.relative_to(RECIPES)))
def test_summarizer_recipes_have_no_unknown_key(path):
    from trl import ModelConfig, TrlParser

    from pluralrlhf.cli.arguments import parse
    from pluralrlhf.cli.train_summarizer import SummarizerArguments
    from pluralrlhf.trainers.summarizer_config import SummarizerConfig
    from pluralrlhf.trainers.summarizer_start import TinyStartConfig
    from pluralrlhf.user_models import build_config

    parser = TrlParser((SummarizerArguments, SummarizerConfig, ModelConfig))
    own, args, _ = parse(parser, ["--config", str(path), "--output_dir", "x"])
    assert args.method == "plus"
    if own.tiny_start is not None:
        build_config(TinyStartConfig, {"topics": args.topics, **own.tiny_start}, "tiny_start")
    with pytest.raises(ConfigError, match="n_contexts"):
        parse(parser, ["--config", str(path), "--output_dir", "x", "--n_contexts", "3"])


@pytest.mark.parametrize("path", CONTEXTS, ids=lambda p: p.name)
def test_recipes_of_other_contexts_parse(path):
    from trl import ModelConfig, TrlParser

    from pluralrlhf.cli.arguments import parse
    from pluralrlhf.cli.train_reward import DataArguments
    from pluralrlhf.trainers.reward_config import PersonalizedRewardConfig

    _, args, _ = parse(
        TrlParser((DataArguments, PersonalizedRewardConfig, ModelConfig)), ["--config", str(path), "--output_dir", "x"]
    )
    assert args.user_model_kwargs["source"] == path.stem


@pytest.mark.parametrize(
    ("command", "sub"), [("user", sub) for sub in COMMANDS["user"]] + [("eval", "summarizer"), ("eval", "transfer")]
)
def test_help_shows_an_example(command, sub, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, sub, "-h"])
    assert exit.value.code == 0
    assert f"pluralrlhf {command} {sub} " in capsys.readouterr().out


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def log(text: str, rating: str | None, prompt: str = "Which pet?"):
    answer = {"role": "assistant", "content": text} | ({"rating": rating} if rating else {})
    return {"user_id": "anna", "messages": [{"role": "user", "content": prompt}, answer]}


def test_thumbs_become_pairs(tmp_path):
    rows = [log("A cat.", "up"), log("A dog.", "down"), log("A fish.", None), log("Kittens.", "up", "What else?")]
    pairs = read_history(write(tmp_path / "h.jsonl", rows))
    said = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]
    # Answers to the same question are set against each other; what has no rival takes a disliked one from elsewhere.
    assert said == [("A cat.", "A dog."), ("Kittens.", "A dog.")]
    assert len({pair["pair_id"] for pair in pairs}) == 2


def test_a_history_of_several_users_is_read_for_one(tmp_path):
    rows = [
        {**log(text, rating), "user_id": user}
        for user, text, rating in (
            ("anna", "A cat.", "up"), ("bob", "A dog.", "up"), ("anna", "A fish.", "down"), ("bob", "A cat.", "down"),
        )
    ]  # fmt: skip
    path = write(tmp_path / "all.jsonl", rows)
    for user, liked, disliked in (("anna", "A cat.", "A fish."), ("bob", "A dog.", "A cat.")):
        (pair,) = read_history(path, user)
        assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (liked, disliked)
    with pytest.raises(DataError, match="of 2 users"):
        read_history(path)
    with pytest.raises(DataError, match="no row is of the user"):
        read_history(path, "carl")
    assert len(read_history(write(tmp_path / "one.jsonl", rows[::2]))) == 1
    assert len(read_history(write(tmp_path / "none.jsonl", [log("A cat.", "up"), log("A dog.", "down")]), "anna")) == 1


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no rows"),
        ([{"prompt": "p", "chosen": "c"}], "column `rejected`"),
        ([log("A cat.", "up")], "rated down"),
        ([log("A cat.", "sideways")], "`rating` is 'sideways'"),
        ([3], "found int, not an object"),
        ([{"messages": ["x"]}], "not a list of messages"),
    ],
)
def test_a_bad_history_is_said_with_its_row(tmp_path, rows, match):
    with pytest.raises(DataError, match=match):
        read_history(write(tmp_path / "h.jsonl", rows))


def test_broken_json_names_the_row(tmp_path):
    (tmp_path / "h.jsonl").write_text('{"prompt": "p"}\n{oops\n')
    with pytest.raises(DataError, match="row 2"):
        read_history(str(tmp_path / "h.jsonl"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_history(str(tmp_path / "absent.jsonl"))


def test_responses_are_read_one_or_several_a_row(tmp_path):
    rows = [{"prompt": "p", "responses": ["a", "b"]}, {"prompt": "q", "response": "c"}]
    assert read_responses(write(tmp_path / "r.jsonl", rows)) == (["p", "p", "q"], ["a", "b", "c"])
    with pytest.raises(DataError, match="row 1"):
        read_responses(write(tmp_path / "r.jsonl", [{"prompt": "p"}]))


def test_forgetting_removes_one_user_and_says_what(tmp_path, capsys):
    state = {"schema": 1, "method": "plus", "summary": "likes cats", "user_id": "anna"}
    (tmp_path / "anna.json").write_text(json.dumps(state))
    (tmp_path / "bob.json").write_text(json.dumps(state | {"user_id": "bob"}))
    history = tmp_path / "history.jsonl"
    write(history, [{"user_id": "anna", "x": 1}, {"user_id": "bob"}, {"user_id": "anna"}])
    before = history.read_bytes()
    command = ["user", "forget", "--users", str(tmp_path), "--user_id", "anna"]
    assert main([*command, "--dry_run"]) == 0
    assert (tmp_path / "anna.json").exists() and history.read_bytes() == before
    capsys.readouterr()
    assert main(command) == 0
    removed = json.loads(capsys.readouterr().out)["removed"]
    assert [(Path(entry["file"]).name, entry["kind"], entry["rows"]) for entry in removed] == [
        ("anna.json", "state", 1),
        ("history.jsonl", "history", 2),
    ]
    left = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "anna" not in left and "bob" in left
    assert main(command) == 2


HERS, OTHERS = {"user_id": 7, "x": 1}, {"user_id": "bob", "x": 2}


@pytest.mark.parametrize(
    ("name", "content", "left"),
    [
        ("a.jsonl", [HERS, OTHERS], [OTHERS]),
        ("a.json", [HERS, OTHERS, HERS], [OTHERS]),
        ("a.json", [HERS], None),
        ("a.json", {"pairs": [HERS, OTHERS]}, {"pairs": [OTHERS]}),
        ("a.json", {"user_id": 7, "pairs": [{"x": 1}, {"x": 2}]}, None),
        ("7.json", {"pairs": [{"x": 1}, OTHERS]}, {"pairs": [OTHERS]}),
        ("7.json", [{"x": 1}], None),
        ("7.jsonl", [{"x": 1}, OTHERS], [OTHERS]),
        ("a.json", {"user_id": 7, "state": {}}, None),
    ],
)
def test_everything_that_is_read_of_a_user_is_forgotten(name, content, left, tmp_path):
    """Numbers are ids as well as texts, in whatever form a history may have."""
    path = tmp_path / name
    write(path, content) if name.endswith("l") else path.write_text(json.dumps(content))
    (tmp_path / "bob.json").write_text(json.dumps({"pairs": [{"x": 3}]}))
    assert forget(str(tmp_path), "7")
    if left is None:
        assert not path.exists()
    else:
        text = path.read_text()
        assert ([json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)) == left
    assert (tmp_path / "bob.json").exists()
    with pytest.raises(ConfigError, match="nothing of user '7'"):
        forget(str(tmp_path), "7")


def test_what_a_killed_writing_left_of_a_user_is_forgotten(tmp_path):
    mine = [tmp_path / "7.json.part", tmp_path / "a.json.part", tmp_path / "b.jsonl.part"]
    for path, text in zip(
        mine, ('{"summary": "lik', '{"user_id": 7, "summ', '{"user_id": "bob"}\n{"user_id": "7", "x')
    ):
        path.write_text(text)
    other = tmp_path / "c.json.part"
    other.write_text('{"user_id": "70", "x')
    assert {entry["kind"] for entry in forget(str(tmp_path), "7")} == {"unfinished"}
    assert other.exists() and not any(path.exists() for path in mine)


def test_export_gives_the_message_that_any_model_takes(tmp_path, capsys):
    state = {"schema": 1, "method": "plus", "summary": "likes cats", "user_id": "anna"}
    (tmp_path / "anna.json").write_text(json.dumps(state))
    assert main(["user", "export", "--users", str(tmp_path), "--user_id", "anna", "--format", "message"]) == 0
    (message,) = json.loads(capsys.readouterr().out)
    assert message["role"] == "system" and message["content"].endswith("likes cats")


def test_start_is_asked_for_in_one_way(tmp_path, capsys):
    assert main(["train", "summarizer", "--output_dir", str(tmp_path), "--data", "x"]) == 2
    assert "--tiny_start" in capsys.readouterr().err
