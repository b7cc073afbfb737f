"""Which columns of a table are used, and what is said of those that cannot be."""

import pytest
from tables import build, jsonl, read, rows, write


def with_shared_ids():
    return [{**row, "pair_id": row["prompt"], "margin": -1 if n % 2 else None} for n, row in enumerate(rows())]


def test_an_optional_column_can_be_left_unused(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", jsonl(with_shared_ids()))
    assert build(tmp_path, path=path)[0] and "leave the column out with --map margin=" in capsys.readouterr().err
    assert build(tmp_path, "--map", "margin=", path=path)[0]
    assert "leave the column out with --map pair_id=" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text("map: {margin: , pair_id: ''}")
    for number, flags in enumerate((("--map", "margin=", "pair_id="), ("--config", str(tmp_path / "c.yaml")))):
        status, out = build(tmp_path, *flags, path=path, out=f"out{number}")
        assert not status and len(read(out)) == len({r["pair_id"] for r in read(out)}) > 100
        assert "margin" not in read(out)[0]
    # A placebo reads the table twice, and says the same.
    assert build(tmp_path, "--map", "margin=", "--placebo", path=path)[0]
    assert "--map pair_id=" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["user_id", "chosen", "rating"])
def test_a_needed_column_cannot(name, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", jsonl(rows()))
    assert build(tmp_path, "--map", f"{name}=", path=path)[0]
    assert f"`--map {name}=` names no column" in capsys.readouterr().err
    assert build(tmp_path, "--choice_values", "a=", "b=2", path=path)[0] and "KEY=VALUE" in capsys.readouterr().err


def test_remedies_name_the_tables_own_column(tmp_path, capsys):
    table = [{"annotator": None if n == 3 else row.pop("user_id"), **row} for n, row in enumerate(rows())]
    table[3].pop("user_id", None)
    path = write(tmp_path / "a.jsonl", jsonl(table))
    assert build(tmp_path, "--map", "user_id=annotator", path=path)[0]
    said = capsys.readouterr().err
    assert "Give every row an id in `annotator`" in said and "user_id" not in said


def nested(row, prompt):
    votes = [[{"user": f"u{(row + k) % 9}", "stars": 1 + (row * k + a) % 5} for k in range(2 + a)] for a in range(2)]
    return {"prompt": prompt, "answers": [{"text": f"{prompt} {a}", "votes": votes[a]} for a in range(2)]}


NESTED = ("--map", "response=answers.text", "rating=answers.votes.stars", "--min_pairs_per_user", "1")


def test_nested_votes_are_those_of_the_users_beside_them(tmp_path, capsys):
    table = [nested(n, f"Question {n}?") for n in range(60)]
    path = write(tmp_path / "a.jsonl", jsonl(table))
    flat = [
        {"prompt": row["prompt"], "response": answer["text"], "user_id": vote["user"], "rating": vote["stars"]}
        for row in table
        for answer in row["answers"]
        for vote in answer["votes"]
    ]
    status, out = build(tmp_path, *NESTED, "--map", "user_id=answers.votes.user", path=path)
    assert not status and "places in a list" not in capsys.readouterr().out
    flat_path = write(tmp_path / "flat.jsonl", jsonl(flat))
    assert not build(tmp_path, "--min_pairs_per_user", "1", path=flat_path, out="flat")[0]
    assert read(out) == read(tmp_path / "flat") and len(read(out)) > 30
    # One user short: said, without the advice to leave the users out.
    table[0]["answers"][1]["votes"].append({"stars": 3, "user": None})
    table[0]["answers"][0]["votes"] = {"stars": [1, 2], "user": ["u1"]}
    path = write(tmp_path / "b.jsonl", jsonl(table))
    assert build(tmp_path, *NESTED, "--map", "user_id=answers.votes.user", path=path, out="b")[0]
    assert "2 judgments for 1 users. Give a list of users of the same length" in capsys.readouterr().err


@pytest.mark.parametrize("ragged", [False, True])
def test_raters_by_position_are_said(ragged, tmp_path, capsys):
    table = [
        {
            "prompt": f"Q{n}?",
            "response": [f"{n} a", f"{n} b"],
            "rating": [[1, 2, 3][: 3 - ragged * (n % 2)], [3, 1, 2]],
        }
        for n in range(60)
    ]
    assert not build(tmp_path, path=write(tmp_path / "a.jsonl", jsonl(table)))[0]
    said = capsys.readouterr().out
    assert "users are places in a list" in said and ("the lists hold 2 to 3 judgments" in said) == ragged


@pytest.mark.parametrize("items", ["prompt", "topic"])
def test_a_single_item_is_told_from_a_bad_draw(items, tmp_path, capsys):
    """Whichever side the one item falls on, the remedy is another kind of item."""
    said = set()
    for item in range(12):
        table = [{**row, "chosen": f"{row['prompt']} {row['chosen']}", "prompt": f"Q{item}"} for row in rows()]
        table = [
            {**row, "topic": f"T{item}", "prompt": row["prompt"] + str(n) * (items == "topic")}
            for n, row in enumerate(table)
        ]
        path = write(tmp_path / "a.jsonl", jsonl(table))
        failed, _ = build(tmp_path, "--items", items, "--test_items", "0.5", path=path, out=f"{item}")
        text = "".join(capsys.readouterr())
        assert "all pairs are of one item" in text and "--items responses, or another column" in text
        said.add(failed != 0)
    assert said == {False, True}
