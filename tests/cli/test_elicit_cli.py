"""The terminal interview with scripted answers: it learns, saves, resumes, stops, and survives odd input."""

from __future__ import annotations

import io
import json

import pytest
from tiny import pets_trainer

from pluralrlhf import PersonalizedRewardModel
from pluralrlhf.cli import main
from pluralrlhf.errors import ConfigError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elicit")
    trainer = pets_trainer(folder, "bayes_head", {"dim": 4, "hidden": 32}, learning_rate=3e-3, max_steps=60)
    trainer.save_model(str(folder / "model"))
    words = ["nice", "soft", "loyal", "calm", "loud", "funny"]
    rows = [
        {"prompt": f"which pet is {w} ?", "responses": [f"the {w} cat is best .", f"the {w} dog is best ."]}
        for w in words
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def elicit(monkeypatch, folder, out, answers: str, *more: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    command = ["user", "elicit", "--model", str(folder / "model"), "--pairs", str(folder / "pairs.jsonl")]
    return main([*command, "--out", str(out), *more])


def test_an_interview_learns_what_its_user_likes(saved, tmp_path, monkeypatch, capsys):
    states = {}
    for animal, letter in (("cat", "a"), ("dog", "b")):
        out = tmp_path / f"{animal}.json"
        assert elicit(monkeypatch, saved, out, f"{letter}\n" * 4, "--max_questions", "4", "--sure_below", "0") == 0
        text = capsys.readouterr().out
        assert "a) the" in text and "4 questions are asked: 4 choices in all" in text
        content = json.loads(out.read_text())
        assert len(content["pairs"]) == 4 and content["model_sha256"] and content["method"] == "bayes_head"
        assert all(animal in pair["chosen"] for pair in content["pairs"])
        states[animal] = out
    model = PersonalizedRewardModel.from_pretrained(str(saved / "model"))
    responses = ["the small cat is best .", "the small dog is best ."]
    for animal, out in states.items():
        cat, dog = model.score(["which pet is small ?"] * 2, responses, model.load_state(out)).tolist()
        assert (cat > dog) == (animal == "cat")


def test_it_stops_when_sure(saved, tmp_path, monkeypatch, capsys):
    assert elicit(monkeypatch, saved, tmp_path / "u.json", "a\n" * 6, "--sure_below", "0.6") == 0
    assert "The model is sure enough: " in capsys.readouterr().out


def test_skip_undo_odd_input_and_the_end_of_input(saved, tmp_path, monkeypatch, capsys):
    out = tmp_path / "u.json"
    assert elicit(monkeypatch, saved, out, "u\nmaybe\nA\ns\na\nu\nb\n", "--sure_below", "0") == 0
    text = capsys.readouterr().out
    assert "nothing can be taken back" in text and "Please answer a, b" in text and "is taken back" in text
    assert text.rstrip().endswith(f"Saved to {out}.") and "Ended: 2 choices" in text
    pairs = json.loads(out.read_text())["pairs"]
    assert "cat" in pairs[0]["chosen"] and "dog" in pairs[1]["chosen"]


def test_undo_says_what_it_takes_back(saved, tmp_path, monkeypatch, capsys):
    assert elicit(monkeypatch, saved, tmp_path / "u.json", "a\ns\nu\nu\nq\n", "--sure_below", "0") == 0
    said = [line for line in capsys.readouterr().out.replace("> ", "").splitlines() if "is taken back" in line]
    assert said == ["The skip is taken back.", "The last answer is taken back."]


@pytest.mark.parametrize("answers", ["q\n", "s\nq\n", "a\nu\nq\n", ""])
def test_without_a_choice_nothing_is_saved(answers, saved, tmp_path, monkeypatch, capsys):
    assert elicit(monkeypatch, saved, tmp_path / "u.json", answers, "--sure_below", "0") == 0
    assert "Ended: no choices, so that nothing is saved." in capsys.readouterr().out
    assert not (tmp_path / "u.json").exists()


def test_it_resumes_without_asking_again(saved, tmp_path, monkeypatch, capsys):
    out = tmp_path / "u.json"
    assert elicit(monkeypatch, saved, out, "a\na\nq\n", "--sure_below", "0") == 0
    assert elicit(monkeypatch, saved, out, "a\n") == 2
    assert "--resume" in capsys.readouterr().err
    assert elicit(monkeypatch, saved, out, "a\n" * 9, "--sure_below", "0", "--resume", "--acquisition", "random") == 0
    assert "These were all the questions: 6 choices in all" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert len({pair["pair_id"] for pair in content["pairs"]}) == 6 == len(content["pair_ids"])
    # The state is that of the same choices given at once.
    model = PersonalizedRewardModel.from_pretrained(str(saved / "model"))
    at_once = model.encode_user(content["pairs"])["weights"][0].tolist()
    assert content["state"]["weights"] == pytest.approx(at_once, abs=1e-4)


def test_its_state_is_used_from_the_command_line(saved, tmp_path, monkeypatch, capsys):
    out = tmp_path / "users" / "ann.json"
    assert elicit(monkeypatch, saved, out, "a\n" * 4, "--max_questions", "4", "--sure_below", "0") == 0
    capsys.readouterr()
    command = ["user", "score", "--model", str(saved / "model"), "--responses", str(saved / "pairs.jsonl")]
    assert main([*command, "--user", str(out)]) == 0
    rewards = [row["reward"] for row in json.loads(capsys.readouterr().out)["rewards"]]
    assert all(cat > dog for cat, dog in zip(rewards[::2], rewards[1::2]))
    assert main([*command, "--summary", "likes cats"]) == 2
    assert "are no texts" in capsys.readouterr().err
    export = ["user", "export", "--users", str(out.parent), "--user_id", "ann"]
    assert main(export) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
    assert main([*export, "--format", "message"]) == 2
    other = pets_trainer(tmp_path / "other", "bayes_head", {"dim": 4, "hidden": 32}, learning_rate=3e-3, max_steps=1)
    with pytest.raises(ConfigError, match="was made by another"):
        other.reward_model.load_state(out)


def test_it_is_exported_and_forgotten_by_the_name_of_its_file_or_of_its_user(saved, tmp_path, monkeypatch, capsys):
    users = tmp_path / "users"
    assert elicit(monkeypatch, saved, users / "ann.json", "a\nq\n", "--sure_below", "0") == 0
    assert elicit(monkeypatch, saved, users / "2.json", "a\nq\n", "--sure_below", "0", "--user_id", "bob") == 0
    (users / "old.json").write_text('{"state": {}, "pairs": []}')  # without a `user_id`
    for name, file in (("ann", "ann.json"), ("bob", "2.json"), ("old", "old.json")):
        assert main(["user", "forget", "--users", str(users), "--user_id", name]) == 0
        assert not (users / file).exists()
    assert not list(users.iterdir())


def test_mistakes_are_one_line(saved, tmp_path, monkeypatch, capsys):
    (saved / "bad.jsonl").write_text('{"prompt": "p", "responses": ["one", "one"]}')
    assert elicit(monkeypatch, saved, tmp_path / "u.json", "", "--pairs", str(saved / "bad.jsonl")) == 2
    assert "the two responses are the same" in capsys.readouterr().err
    assert elicit(monkeypatch, saved, tmp_path / "u.json", "", "--resume") == 2
    assert "there is no" in capsys.readouterr().err
