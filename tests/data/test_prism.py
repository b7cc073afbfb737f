"""PRISM: choices among models' responses in the origin's schema; the survey as the user's profile."""

import json

import numpy as np
import pytest
from origins import errors, good, jsonl, text

from pluralrlhf.data import load_pairs, load_users, read_build
from pluralrlhf.data.placebo import DROPPED
from pluralrlhf.data.sources.prism import Prism
from pluralrlhf.data.writer import build_dataset
from pluralrlhf.errors import ConfigError, DataError


def said(turn, content):
    return {"turn": turn, "role": "user", "content": content}


def reply(turn, number, content, score, chosen, model="command"):
    return {
        "turn": turn,
        "role": "model",
        "content": content,
        "model_provider": "cohere",
        "model_name": model,
        "score": score,
        "if_chosen": chosen,
        "within_turn_id": number,
    }


def conversation(user, number, *history, opening="How do I rest?"):
    return {
        "conversation_id": f"c{number}",
        "user_id": user,
        "conversation_type": "unguided",
        "opening_prompt": opening,
        "conversation_turns": 1 + max(entry["turn"] for entry in history),
        "conversation_history": list(history),
        "performance_attributes": {"values": 50},
        "choice_attributes": {"values": 50},
        "open_feedback": "fine",
        "generated_datetime": "2023-12-01 10:00:00",
        "timing_duration_s": 60.0,
        "timing_duration_mins": 1.0,
        "included_in_balanced_subset": True,
    }


def person(user):
    return {
        "user_id": user,
        "survey_only": False,
        "num_completed_conversations": 6,
        "consent": "Yes, I consent to take part",
        "lm_familiarity": "Somewhat familiar",
        "self_description": "I like walks.",
        "system_string": "Be brief.",
        "age": "25-34 years old",
        "gender": "Female",
        "religion": {"self_described": "none", "simplified": "No Affiliation"},
        "stated_prefs": {"values": 50, "factuality": 90},
        "generated_datetime": "2023-12-01 09:00:00",
        "timing_duration_s": 500.0,
        "included_in_US_REP": False,
    }


CONVERSATION = conversation(
    "u1",
    1,
    said(0, "How do I rest?"),
    reply(0, 0, "Sleep.", 80, True, "command"),
    reply(0, 1, "Walk.", 40, False, "claude"),
    reply(0, 2, "Sit.", 80, False, "gpt-4"),
    reply(0, 3, "EMPTY STRING", 1, False, "palm"),
    said(1, "How long?"),
    reply(1, 0, "Eight hours.", 70, False),
    reply(1, 1, "Nine hours.", 60, True),
)


def write(folder, conversations, people=()):
    jsonl(folder / "conversations.jsonl", conversations)
    jsonl(folder / "survey.jsonl", people)
    return str(folder)


def test_choices_become_pairs(tmp_path):
    path = write(tmp_path, [CONVERSATION])
    source = Prism(path=path, construction="published")
    rows = good(source.rows())
    assert [(text(r["chosen"]), text(r["rejected"])) for r in rows] == [
        ("Sleep.", "Walk."),
        ("Sleep.", "Sit."),
        ("Nine hours.", "Eight hours."),
    ]
    assert [m["content"] for m in rows[2]["prompt"]] == ["How do I rest?", "Sleep.", "How long?"]
    assert {tuple(r["item_ids"]) for r in rows} == {("c1",)}
    assert source.dropped == {"empty_response": 1}

    strict = Prism(path=path)
    rows = good(strict.rows())
    assert [text(r["rejected"]) for r in rows] == ["Walk."]
    assert strict.dropped == {"empty_response": 1, "tie": 1, "chosen_was_rated_lower": 1}
    assert len(good(Prism(path=path, construction="published", turns="first").rows())) == 2
    assert not good(Prism(path=path, min_gap=41).rows())


def test_ids_do_not_tell_the_choice(tmp_path):
    other = json.loads(json.dumps(CONVERSATION))
    for entry in other["conversation_history"]:
        if "if_chosen" in entry and entry["turn"] == 1:
            entry["if_chosen"] = not entry["if_chosen"]
    ids = [
        [r["pair_id"] for r in good(Prism(path=write(tmp_path / name, [c]), construction="published").rows())]
        for name, c in (("a", CONVERSATION), ("b", other))
    ]
    assert ids[0] == ids[1] and len(set(ids[0])) == 3


def test_people_who_open_alike_share_an_item_in_strict(tmp_path):
    other = {**CONVERSATION, "user_id": "u2", "conversation_id": "c2"}
    other["conversation_history"] = [dict(e) for e in CONVERSATION["conversation_history"]]
    other["conversation_history"][0]["content"] = "  how do I REST?"
    path = write(tmp_path, [CONVERSATION, other])
    assert len({tuple(r["item_ids"]) for r in good(Prism(path=path).rows())}) == 1
    assert len({tuple(r["item_ids"]) for r in good(Prism(path=path, construction="published").rows())}) == 2


def test_a_build_has_profiles_and_hashes(tmp_path):
    conversations = [
        conversation(
            f"u{u}",
            u * 10 + n,
            said(0, f"Question {u * 10 + n}?"),
            reply(0, 0, "Yes.", 90, True),
            reply(0, 1, "No.", 10, False, "claude"),
        )
        for u in range(20)
        for n in range(6)
    ]
    path = write(tmp_path / "in", conversations, [person(f"u{u}") for u in range(21)])
    out = build_dataset(Prism(path=path), tmp_path / "out", progress=False)
    build = read_build(out)
    assert set(build["sha256"]) == {"conversations.jsonl", "survey.jsonl"} and "NC" in build["licence"]
    assert build["counts"]["users"] == 20 and build["counts"]["users_without_pairs"] == 1
    assert build["parameters"]["revision"] and "path" not in build["parameters"]
    assert load_pairs(out)["train"].num_rows
    user = load_users(out)[0]
    assert user["profile"] == "I like walks.\nBe brief."
    attributes = json.loads(user["attributes"])
    assert attributes["stated_prefs"] == {"values": 50, "factuality": 90} and "timing_duration_s" not in attributes
    assert "consent" not in attributes and "included_in_US_REP" not in attributes


def test_placebo_permutes_within_pairs_of_models(tmp_path):
    conversations = [
        conversation(
            f"u{n % 40}",
            n,
            said(0, f"Question {n}?"),
            # Even users always choose the first model, odd ones the second.
            reply(0, 0, f"Yes {n}.", 50 + (n % 2 == 0), n % 2 == 0, "alpha"),
            reply(0, 1, f"No {n}.", 50 + (n % 2), n % 2 == 1, "beta"),
        )
        for n in range(400)
    ]
    lone = conversation("u0", 999, said(0, "Q?"), reply(0, 0, "a", 9, True, "x"), reply(0, 1, "b", 1, False, "y"))
    path = write(tmp_path, [*conversations, lone])
    source = Prism(path=path, placebo=True)
    rows = good(source.rows())
    assert len(rows) == 400 and source.dropped == {DROPPED: 1}
    first = np.array([text(r["chosen"]).startswith("Yes") for r in rows])
    even = np.array([int(r["user_id"][1:]) % 2 == 0 for r in rows])
    assert first.mean() == 0.5 and abs((first == even).mean() - 0.5) < 0.1


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"user_id": None}, "user_id"),
        ({"conversation_history": "text"}, "conversation_history"),
        ({"conversation_history": [{"turn": 0, "role": "bot", "content": "x"}]}, "conversation_history"),
        ({"conversation_history": [said(0, "Q"), {**reply(0, 0, "a", 5, True), "if_chosen": 1}]}, "if_chosen"),
        ({"conversation_history": [said(0, "Q"), reply(0, 0, "a", "5", True), reply(0, 1, "b", 1, False)]}, "score"),
    ],
)
def test_bad_rows_name_file_row_and_column(tmp_path, change, column):
    path = write(tmp_path, [CONVERSATION, {**CONVERSATION, "conversation_id": "c2", **change}])
    rows = list(Prism(path=path).rows())
    (error,) = errors(rows)
    assert error.file.endswith("conversations.jsonl") and error.row == 2 and error.column == column
    assert len(good(rows)) == 1


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match=r"conversations\.jsonl"):
        list(Prism(path=str(tmp_path)).rows())
    jsonl(tmp_path / "half" / "conversations.jsonl", [CONVERSATION])
    with pytest.raises(DataError, match=r"survey\.jsonl"):
        next(iter(Prism(path=str(tmp_path / "half")).rows()))
    with pytest.raises(DataError, match="does not exist"):
        list(Prism(path=str(tmp_path / "nowhere")).rows())
    with pytest.raises(ConfigError, match="min_gap"):
        Prism(min_gap=0)
