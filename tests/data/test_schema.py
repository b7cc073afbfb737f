"""The row contract: what passes unchanged, what is an error and what that error says."""

from __future__ import annotations

import math

import pytest

from pluralrlhf.data.schema import (
    MAX_CHARS,
    PAIR_COLUMNS,
    SPLITS,
    USER_COLUMNS,
    USERS_SCHEMA,
    RowError,
    kind,
    messages,
    pairs_schema,
    validate_pair,
    validate_user,
)
from pluralrlhf.errors import DataError


def pair(**changes):
    row = {
        "user_id": "u",
        "pair_id": "1",
        "item_ids": ["p"],
        "prompt": messages("Why?", "user"),
        "chosen": messages("So."),
        "rejected": messages("No."),
    }
    return {**row, **changes}


def test_a_good_row_passes_unchanged():
    assert validate_pair(pair()) == pair()
    assert validate_pair(pair(margin=2))["margin"] == 2.0
    conversation = [*messages("a"), *messages("b", "user"), *messages("c")]
    assert validate_pair(pair(chosen=conversation))["chosen"] == conversation


def test_ids_are_texts_or_whole_numbers():
    row = validate_pair(pair(user_id=7, pair_id=-3, item_ids=[1, "b", "1"]))
    assert (row["user_id"], row["pair_id"], row["item_ids"]) == ("7", "-3", ["1", "b"])
    assert validate_pair(pair(user_id=" u\t", item_ids=["p", "p "])) == pair()
    assert validate_user({"user_id": "u "})["user_id"] == "u"
    assert validate_pair(pair(user_id=3.0))["user_id"] == "3"
    for bad in (
        True,
        3.5,
        2.0**53,
        math.inf,
        math.nan,
        None,
        "",
        "  ",
        b"u",
        ["u"],
        "a\x00",
        "a\nb",
        "x" * 1000,
        10**6000,
    ):
        with pytest.raises(RowError, match="user_id"):
            validate_pair(pair(user_id=bad))


def test_origin_is_named_and_text_is_not():
    secret = "What I told nobody"
    with pytest.raises(DataError) as caught:
        validate_pair(pair(chosen=messages(secret), rejected=messages(secret)), file="votes.csv", row_number=12)
    assert str(caught.value).startswith("votes.csv, row 12, column `rejected`: ")
    assert secret not in str(caught.value) and caught.value.reason == "equal_responses"


@pytest.mark.parametrize("column", PAIR_COLUMNS)
def test_every_column_is_needed(column):
    row = pair()
    del row[column]
    with pytest.raises(RowError, match=f"column `{column}`: there is no `{column}`"):
        validate_pair(row)


def test_unknown_columns_are_errors_and_private_ones_are_not():
    with pytest.raises(RowError, match="unknown"):
        validate_pair(pair(score=1))
    assert validate_pair(pair(_file="f", _row=1, _test_item=True)) == pair()


@pytest.mark.parametrize("margin", [math.nan, math.inf, None, "1", True, 10**400, [1]])
def test_margins_are_finite_numbers(margin):
    with pytest.raises(RowError, match="margin"):
        validate_pair(pair(margin=margin))


def test_texts_have_a_greatest_length():
    validate_pair(pair(chosen=messages("x" * MAX_CHARS)))
    with pytest.raises(RowError, match="1,000,001 characters"):
        validate_pair(pair(chosen=messages("x" * (MAX_CHARS + 1))))


@pytest.mark.parametrize("text", ["tab\tand\nlines\r\n", "ünïcødé 中文 🦜", "zero\u200bwidth", "<|im_end|>"])
def test_ordinary_texts_pass(text):
    assert validate_pair(pair(chosen=messages(text)))["chosen"][0]["content"] == text


@pytest.mark.parametrize("text", ["a\x00b", "\x1b[2J", "\x08", "\ud83d", "\x7f"])
def test_control_characters_do_not(text):
    with pytest.raises(RowError, match=r"U\+"):
        validate_pair(pair(chosen=messages(text)))


def test_an_error_can_be_placed_and_renamed():
    error = RowError("empty_text", "empty", "Fill it in", column="chosen", raw={"a": 1})
    placed = error.at("f.csv", 3, names={"chosen": "better"})
    assert str(placed) == "f.csv, row 3, column `better`: empty. Fill it in"
    assert (placed.reason, placed.raw) == ("empty_text", {"a": 1})


def test_users():
    assert validate_user({"user_id": 3}) == {
        "user_id": "3",
        "profile": None,
        "attributes": None,
        "conversations": None,
    }
    row = validate_user({"user_id": "u", "profile": "likes cats", "attributes": {"b": 1, "a": [2]}})
    assert row["attributes"] == '{"a": [2], "b": 1}'
    for bad in ({"profile": "x"}, {"user_id": "u", "profile": 3}, {"user_id": "u", "age": 3}):
        with pytest.raises(RowError):
            validate_user(bad)


def test_schemas_hold_the_contracts_columns():
    assert set(pairs_schema().names) == set(PAIR_COLUMNS)
    assert set(pairs_schema(with_margin=True).names) == {*PAIR_COLUMNS, "margin"}
    assert tuple(USERS_SCHEMA.names) == USER_COLUMNS
    assert len(SPLITS) == 6


def test_kinds_are_words():
    values = (None, True, math.nan, -math.inf, "x", 1, 1.5, {}, [], b"x")
    assert [kind(value) for value in values] == [
        "null",
        "true or false",
        "NaN",
        "infinity",
        "a text",
        "an integer",
        "a decimal number",
        "an object",
        "a list",
        "a value of type bytes",
    ]


def test_one_word_in_two_codings_is_one():
    from pluralrlhf.data.schema import clean_id
    from pluralrlhf.data.sources.hub import wording
    from pluralrlhf.data.sources.table_map import item_key

    two = ["Zoë", "Zoe\u0308"]
    assert two[0] != two[1] and clean_id(two[1], "user_id") == two[0]
    assert len({wording("w", text) for text in two}) == 1
    assert len({item_key([{"role": "user", "content": text}]) for text in two}) == 1
