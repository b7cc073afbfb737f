"""UKPConvArg1: judgments of arguments, ties counted, workers' reasons kept beside the pairs."""

import json

import numpy as np
import pytest

from pluralrlhf.data.placebo import DROPPED
from pluralrlhf.data.schema import RowError, validate_pair, validate_user
from pluralrlhf.data.sources.ukp_convincing import FOLDER, MAX_REASONS, TOPICS, UKPConvincing, read_xml
from pluralrlhf.errors import DataError


def argument(number, words=None, topic="tea_yes"):
    words = words or f"Argument number {number}."
    return {"arg_id": f"{topic}/{number}", "topic": topic, "title": "Tea?", "stance": "Yes", "text": words}


def judgment(user, a, b, vote, reason="because", topic="tea_yes"):
    return {"user_id": user, "a": f"{topic}/{a}", "b": f"{topic}/{b}", "vote": vote, "reason": reason}


def write(folder, arguments, judgments):
    folder.mkdir(exist_ok=True)
    for name, rows in (("arguments", arguments), ("annotations", judgments)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(folder)


def text(message):
    return message[0]["content"]


def test_judgments_become_pairs(tmp_path):
    arguments = [argument(1), argument(2), argument(3), argument(4, "  argument NUMBER 1.")]
    judgments = [
        judgment("u", 1, 2, "a"),
        judgment("v", 2, 1, "a"),
        judgment("u", 1, 3, "tie"),
        judgment("u", 2, 4, "a"),  # 4 is worded like 1: a second judgment of the same pair
        judgment("v", 1, 4, "b"),  # the same wording twice
    ]
    source = UKPConvincing(path=write(tmp_path / "d", arguments, judgments))
    rows = [validate_pair(r) for r in source.rows()]
    assert [(r["user_id"], text(r["chosen"])) for r in rows] == [
        ("u", "Argument number 1."),
        ("v", "Argument number 2."),
    ]
    assert rows[0]["item_ids"] == rows[1]["item_ids"] == ["tea_yes/1", "tea_yes/2"]
    assert text(rows[0]["prompt"]).startswith("Tea?") and "Yes" in text(rows[0]["prompt"])
    assert source.dropped == {"tie": 1, "repeated_judgment": 1, "identical_responses": 1}


def test_reasons_go_to_the_users_config(tmp_path):
    judgments = [
        judgment("u", 1, 2, "a", "clearer"),
        judgment("v", 1, 2, "b", None),
        judgment("u", 2, 1, "tie", "alike"),
    ]
    judgments += [judgment("u", 1, 2, "a", "again") for _ in range(MAX_REASONS)]
    source = UKPConvincing(path=write(tmp_path / "d", [argument(1), argument(2)], judgments))
    (user,) = (validate_user(u) for u in source.users())
    given = json.loads(user["conversations"])
    assert given[0] == {"item_ids": ["tea_yes/1", "tea_yes/2"], "reason": "clearer"}
    assert given[1]["reason"] == "alike" and len(given) == MAX_REASONS


def test_placebo_leaves_pairs_with_one_judge_out(tmp_path):
    judgments = [judgment(f"u{i}", 1, 2, "a" if i % 3 else "b") for i in range(60)] + [judgment("u0", 2, 3, "a")]
    path = write(tmp_path / "d", [argument(n) for n in (1, 2, 3)], judgments)
    real = {r["pair_id"]: text(r["chosen"]) for r in UKPConvincing(path=path).rows()}
    source = UKPConvincing(path=path, placebo=True)
    fake = {r["pair_id"]: text(r["chosen"]) for r in source.rows()}
    assert source.dropped == {DROPPED: 1} and len(fake) == 60
    assert sum(c == "Argument number 1." for c in fake.values()) == 40
    assert 10 < sum(fake[p] != real[p] for p in fake) < 50


def test_the_public_copy(shared_data):
    source = UKPConvincing(path=str(shared_data / "ukpconvarg1"))
    rows = list(source.rows())
    assert len(rows) == 65222 and source.dropped["tie"] == 19105
    assert len(rows) + sum(source.dropped.values()) == 84445
    assert len({r["user_id"] for r in rows}) == 3801
    assert set(source.files) == {"annotations.jsonl", "arguments.jsonl"}


XML = """<?xml version="1.0"?>
<list>
  <annotatedArgumentPair>
    <id>arg1_arg2</id>
    <arg1><author>someone</author><stance>Yes</stance><text>First &amp; best.</text><id>arg1</id></arg1>
    <arg2><author>another</author><stance>Yes</stance><text>Second.</text><id>arg2</id></arg2>
    <debateMetaData><title>Tea?</title></debateMetaData>
    <mTurkAssignments>
      <mTurkAssignment><turkID>WORKER1</turkID><value>a2</value><reason>clearer</reason></mTurkAssignment>
      <mTurkAssignment><turkID>WORKER2</turkID><value>equal</value><reason>alike</reason></mTurkAssignment>
      <mTurkAssignment><turkID>WORKER3</turkID><value>a1</value></mTurkAssignment>
    </mTurkAssignments>
  </annotatedArgumentPair>
</list>
"""


def test_the_origins_xml(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "origin" / FOLDER
    folder.mkdir(parents=True)
    for topic in TOPICS:
        (folder / f"{topic}.xml").write_text(XML, encoding="utf-8")
    local = UKPConvincing(path=str(tmp_path / "origin"))
    remote = UKPConvincing(origin_url=(tmp_path / "origin").as_uri() + "/")
    rows = [validate_pair(r) for r in local.rows()]
    assert rows == list(remote.rows()) and len(rows) == 2 * len(TOPICS)
    assert [text(r["chosen"]) for r in rows[:2]] == ["Second.", "First & best."]
    assert len({r["user_id"] for r in rows}) == 2, "a worker is one user across debates"
    assert not any("WORKER" in json.dumps(r) for r in rows), "ids of Mechanical Turk accounts are hashed"
    assert len(list(remote.users())) == 2 and len(remote.files) == len(TOPICS)
    (folder / "broken.xml").write_text(XML[:700], encoding="utf-8")
    with pytest.raises(DataError, match="malformed XML"):
        list(read_xml(folder / "broken.xml", "topic"))


def test_bad_lines_are_row_errors(tmp_path):
    judgments = [judgment("u", 1, 9, "a"), judgment("u", 1, 2, "maybe"), {"user_id": 3}]
    path = write(tmp_path / "d", [argument(1), argument(2), {"arg_id": "x"}], judgments)
    errors = list(UKPConvincing(path=path).rows())
    assert all(isinstance(e, RowError) for e in errors)
    assert [e.reason for e in errors] == ["missing_column", "unknown_argument", "bad_vote", "wrong_type"]
    with pytest.raises(DataError, match=r"annotations\.jsonl"):
        list(UKPConvincing(path=str(tmp_path)).rows())


def test_placebo_with_few_judges_leaves_nothing_of_the_user(tmp_path):
    """Two camps, four judges a pair: a permutation that may leave a vote in its place would keep a quarter of it."""
    arguments = [argument(n) for n in range(801)]
    rng, judgments = np.random.default_rng(0), []
    for pair in range(400):
        for user in rng.choice(40, 4, replace=False):
            judgments.append(judgment(f"u{user}", 2 * pair, 2 * pair + 1, "ab"[user % 2]))
    source = UKPConvincing(path=write(tmp_path / "d", arguments, judgments), placebo=True)
    first = {f"Argument number {2 * pair}." for pair in range(400)}
    agree = [(text(r["chosen"]) in first) == (int(r["user_id"][1:]) % 2 == 0) for r in source.rows()]
    assert len(agree) == 1600 and abs(sum(agree) / len(agree) - 0.5) < 0.05
