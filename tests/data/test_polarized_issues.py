"""Polarized issues: votes a and b become pairs, the others are counted, and nobody judges their own answer."""

import csv
import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from pluralrlhf.data.schema import RowError, validate_pair, validate_user
from pluralrlhf.data.sources.polarized_issues import TOPICS, PolarizedIssues, placebo_choices
from pluralrlhf.errors import ConfigError, DataError


def write(folder, votes, people):
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(v) + "\n" for v in votes), encoding="utf-8")
    (folder / "users.jsonl").write_text("".join(json.dumps(p) + "\n" for p in people), encoding="utf-8")
    return str(folder)


def vote(user, choice, a="Yes, always.", b="No, never.", prompt="Should it?"):
    return {"topic": "t", "user_id": user, "prompt": prompt, "response_a": a, "response_b": b, "vote": choice}


def person(user, topic="t", **answers):
    own = [{"question": "Should it?", "answer": answers["own"]}] if "own" in answers else []
    return {"topic": topic, "user_id": user, "profile": {"What is your age?": "30-39"}, "own_answers": own}


def text(message):
    return message[0]["content"]


def test_clear_votes_become_pairs_and_the_rest_is_counted(tmp_path):
    votes = [vote("u", "a"), vote("v", "b"), *(vote("w", c) for c in ("neither", "both", "unsure", "similar"))]
    votes += [vote("u", "a", a="Same", b=" same "), vote("v", "a", b="Yes, always.", a="No, never.")]
    source = PolarizedIssues(path=write(tmp_path / "d", votes, [person("u")]))
    rows = [validate_pair(r) for r in source.rows()]
    assert [(r["user_id"], text(r["chosen"])) for r in rows] == [("u", "Yes, always."), ("v", "No, never.")]
    assert rows[0]["item_ids"] == rows[1]["item_ids"], "the order of the ids does not tell the choice"
    assert source.dropped == {
        **{f"vote_{c}": 1 for c in ("neither", "both", "unsure", "similar")},
        "identical_responses": 1,
        "repeated_judgment": 1,
    }


def test_a_users_own_answer_is_not_among_the_responses(tmp_path):
    votes = [vote("u", "a"), vote("v", "a"), vote("u", "a", prompt="And why?")]
    source = PolarizedIssues(path=write(tmp_path / "d", votes, [person("u", own="no, NEVER. ")]))
    assert [(r["user_id"], text(r["prompt"])) for r in source.rows()] == [("v", "Should it?"), ("u", "And why?")]
    assert source.dropped["own_answer_among_the_responses"] == 1


def test_items_are_the_prompt_or_the_responses(tmp_path):
    path = write(tmp_path / "d", [vote("u", "a"), vote("v", "a", a="Maybe.")], [])
    for items, shared in (("prompt", 1), ("responses", 1)):
        ids = [set(r["item_ids"]) for r in PolarizedIssues(path=path, items=items).rows()]
        assert len(ids[0] & ids[1]) == shared and len(ids[0]) == (1 if items == "prompt" else 2)
    with pytest.raises(ConfigError, match="items"):
        PolarizedIssues(path=path, items="users")


def test_a_user_of_two_topics_is_one_user(tmp_path):
    people = [person("u", own="Never mind."), person("v"), person("u", topic="other", own="Of course.")]
    users = [validate_user(u) for u in PolarizedIssues(path=write(tmp_path / "d", [vote("u", "a")], people)).users()]
    assert [u["user_id"] for u in users] == ["u", "v"]
    assert json.loads(users[0]["attributes"])["topics"] == ["other", "t"]
    assert "Never mind." in users[0]["profile"] and "Of course." in users[0]["profile"]
    assert len(json.loads(users[0]["conversations"])) == 2


def test_placebo_keeps_who_judged_what_and_the_answers_standing():
    rng = np.random.default_rng(0)
    # Two camps that prefer opposite answers, and answers that all prefer: only the latter may survive.
    votes = []
    for user in range(120):
        for pair in range(12):
            camp = user % 2 if pair < 8 else 0
            number = int(rng.integers(30)) if pair % 2 else 0  # half of the pairs have many judges, half are rare
            sides = (f"p{pair}-{number} x", f"p{pair}-{number} y")
            votes.append((str(user), f"question {pair}", *(sides if camp == 0 else sides[::-1])))
    fake = placebo_choices(votes, seed=0)
    assert [(v[0], v[1], frozenset(v[2:])) for v in fake] == [(v[0], v[1], frozenset(v[2:])) for v in votes]
    assert fake == placebo_choices(votes, seed=0) != placebo_choices(votes, seed=1)

    def camps_apart(votes):
        wins = defaultdict(list)
        for user, question, chosen, _ in votes:
            if int(question.split()[1]) < 8:
                wins[int(user) % 2].append(chosen.endswith("x"))
        return abs(np.mean(wins[0]) - np.mean(wins[1]))

    agreed = np.mean([v[2].endswith("x") for v in fake if int(v[1].split()[1]) >= 8])
    assert camps_apart(votes) == 1 and camps_apart(fake) < 0.1 and agreed > 0.9


def test_the_public_copy(shared_data):
    source = PolarizedIssues(path=str(shared_data / "polarized_issues"))
    rows = list(source.rows())
    assert not any(isinstance(r, RowError) for r in rows)
    assert len({r["pair_id"] for r in rows}) == len(rows) == 16273
    dropped = {"vote_neither": 903, "vote_both": 234, "vote_unsure": 136, "vote_similar": 84}
    assert dropped.items() <= source.dropped.items()
    assert len(rows) + sum(source.dropped.values()) == 18134
    own = {(p["user_id"], text(c[:1]), text(c[1:]).strip()) for p in source.users() for c in p["conversations"]}
    assert not any((r["user_id"], text(r["prompt"]), text(r[s])) in own for r in rows for s in ("chosen", "rejected"))
    fake = list(PolarizedIssues(path=str(shared_data / "polarized_issues"), placebo=True).rows())
    assert Counter(r["pair_id"] for r in fake) == Counter(r["pair_id"] for r in rows)
    before = {r["pair_id"]: text(r["chosen"]) for r in rows}
    assert 0.2 < np.mean([before[r["pair_id"]] != text(r["chosen"]) for r in fake]) < 0.5


def origin(folder):
    """The origin's own layout: three topics, each with votes, answers and participants as CSV after metadata."""
    for topic, name in TOPICS.items():
        (folder / name).mkdir(parents=True)
        head = [["Name", name], ["Date", "June 25, 2024"], ["", ""]]
        tables = {
            "verbatim_map": [
                ["Question ID", "Question Text", "Participant ID", "Thought ID", "Thought Text"],
                ["q", "Branch A - Should it?", "author", "x", f"Yes,\nalways. ({topic})"],
                ["q", "Branch A - Should it?", "u", "y", f"No, never. ({topic})"],
                ["q", "Branch A - Should it?", "other", "z", f"Perhaps. ({topic})"],
            ],
            "preference": [
                ["Question ID", "Participant ID", "Thought A ID", "Thought B ID", "Vote", "Timestamp"],
                ["q", "v", "x", "y", "Thought B", "now"],
                ["q", "u", "x", "y", "Thought A", "now"],
                ["q", "u", "x", "z", "Thought A", "now"],
                ["q", "v", "x", "z", "I’m not sure", "now"],
            ],
            "participants": [
                [
                    *("", "", "Participant Id", "Sample Provider Id", "What is your age?"),
                    *("Branch A - Should it?", "Sentiment", "All (%agree)"),
                    *("Anything else?", "Sentiment", "Categories", "Muted"),
                ],
                ["", "", "u", "", "30-39", f"No, never. ({topic})", "Neutral", "60%", "Fine", "Neutral", "-", "False"],
                ["", "", "v", "", "40-49", "--", "--", "--", "--", "--", "--", "False"],
            ],
        }
        for kind, rows in tables.items():
            with open(folder / name / f"{topic}_{kind}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, quoting=csv.QUOTE_ALL).writerows([*head, *rows])
    return folder


@pytest.mark.parametrize("download", [False, True])
def test_the_origins_own_layout(tmp_path, download, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "cache"))
    folder = origin(tmp_path / "origin")
    source = PolarizedIssues(origin_url=folder.as_uri() + "/") if download else PolarizedIssues(path=str(folder))
    rows = list(source.rows())
    assert [(r["user_id"], text(r["chosen"]).split()[0]) for r in rows] == [("v", "No,"), ("u", "Yes,")] * 3
    assert {text(r["prompt"]) for r in rows} == {"Should it?"}
    assert source.dropped == {"own_answer_among_the_responses": 3, "vote_unsure": 3}
    users = {u["user_id"]: validate_user(u) for u in source.users()}
    assert users["u"]["profile"].startswith("What is your age? 30-39\nAnything else? Fine\nShould it? No, never.")
    assert "60%" not in users["u"]["profile"] and "Neutral" not in users["u"]["profile"]
    assert users["v"]["profile"] == "What is your age? 40-49"
    assert len(source.files) == 9


def test_bad_lines_are_row_errors(tmp_path):
    path = write(tmp_path / "d", [vote("u", "c"), {"user_id": "u"}, vote("u", "a", a="")], [])
    with open(tmp_path / "d" / "pairs.jsonl", "a", encoding="utf-8") as file:
        file.write('[1]\n{"user_id": "u", "vote"')
    errors = list(PolarizedIssues(path=path).rows())
    assert [e.reason for e in errors] == ["bad_vote", "missing_column", "empty_text", "wrong_type", "malformed_json"]
    assert [e.row for e in errors] == [1, 2, 3, 4, 5] and all("pairs.jsonl" in e.file for e in errors)
    with pytest.raises(DataError, match="--path"):
        list(PolarizedIssues(path=str(tmp_path / "nowhere")).rows())
    with pytest.raises(DataError, match=r"users\.jsonl"):
        list(PolarizedIssues(path=str(tmp_path)).rows())
