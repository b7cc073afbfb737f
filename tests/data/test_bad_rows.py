"""Malformed input: an error that names file, row, column and remedy, or dropped and counted; never a traceback."""

from __future__ import annotations

import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import as_csv, build, jsonl, read, rows, write

GOOD = rows()
AT = 5  # the bad row's place: row 6 of a JSONL file, row 7 of a CSV file (the header is row 1)
SECRET = "This is what the user wrote and nobody else should read in a log"


def row(**changes):
    changed = {**GOOD[AT], "chosen": f"{SECRET} 1", "rejected": f"{SECRET} 2", **changes}
    return {name: value for name, value in changed.items() if value is not ...}


def lines(*bad):
    return jsonl([*GOOD[:AT], *bad, *GOOD[AT + 1 :]])


# name: (the bad row or line, column that the error names, reason it is counted under)
BAD_ROWS = {
    "no_user": (row(user_id=...), "user_id", "missing_column"),
    "no_prompt": (row(prompt=...), "prompt", "missing_column"),
    "no_chosen": (row(chosen=...), "chosen", "missing_column"),
    "no_rejected": (row(rejected=...), "rejected", "missing_column"),
    "misspelled_column": (row(chosen=..., choosen="x"), "chosen", "missing_column"),
    "null_user": (row(user_id=None), "user_id", "missing_user_id"),
    "empty_user": (row(user_id=""), "user_id", "empty_user_id"),
    "blank_user": (row(user_id=" \t"), "user_id", "empty_user_id"),
    "float_user": (row(user_id=3.5), "user_id", "wrong_type_user_id"),
    "float_user_that_may_be_two": (row(user_id=2.0**53), "user_id", "wrong_type_user_id"),
    "nan_user": (row(user_id=math.nan), "user_id", "missing_user_id"),
    "bool_user": (row(user_id=True), "user_id", "wrong_type_user_id"),
    "list_user": (row(user_id=["u"]), "user_id", "wrong_type_user_id"),
    "object_user": (row(user_id={"id": 3}), "user_id", "wrong_type_user_id"),
    "huge_int_user": (row(user_id=10**600), "user_id", "too_long_user_id"),
    "long_user": (row(user_id="u" * 10_000), "user_id", "too_long_user_id"),
    "line_break_in_user": (row(user_id="u\n1"), "user_id", "control_character"),
    "nul_in_user": (row(user_id="u\x00"), "user_id", "control_character"),
    "null_prompt": (row(prompt=None), "prompt", "missing_text"),
    "empty_prompt": (row(prompt=""), "prompt", "empty_text"),
    "blank_chosen": (row(chosen=" \n "), "chosen", "empty_text"),
    "null_chosen": (row(chosen=None), "chosen", "missing_text"),
    "number_chosen": (row(chosen=7), "chosen", "wrong_type"),
    "bool_rejected": (row(rejected=False), "rejected", "wrong_type"),
    "equal": (row(chosen=SECRET, rejected=SECRET), "rejected", "equal_responses"),
    "equal_but_for_space": (row(chosen=SECRET, rejected=f" {SECRET}\n"), "rejected", "equal_responses"),
    "nul_in_text": (row(chosen=f"{SECRET}\x00"), "chosen", "control_character"),
    "escape_in_text": (row(rejected=f"\x1b[31m{SECRET}"), "rejected", "control_character"),
    "half_surrogate": (row(chosen=f"{SECRET}\ud800"), "chosen", "control_character"),
    "ten_megabytes": (row(chosen="x" * 10_000_000), "chosen", "too_long"),
    "list_of_texts": (row(chosen=["a", "b"]), "chosen", "wrong_type"),
    "message_without_role": (row(chosen=[{"content": SECRET}]), "chosen", "wrong_type"),
    "message_without_content": (row(chosen=[{"role": "assistant"}]), "chosen", "wrong_type"),
    "unknown_role": (row(chosen=[{"role": "gpt", "content": SECRET}]), "chosen", "unknown_role"),
    "role_of_wrong_type": (row(chosen=[{"role": 5, "content": SECRET}]), "chosen", "unknown_role"),
    "user_has_last_word": (row(chosen=[{"role": "user", "content": SECRET}]), "chosen", "unknown_role"),
    "null_content": (row(chosen=[{"role": "assistant", "content": None}]), "chosen", "missing_text"),
    "nested_content": (row(chosen=[{"role": "assistant", "content": [SECRET]}]), "chosen", "wrong_type"),
    "empty_content": (row(chosen=[{"role": "assistant", "content": ""}]), "chosen", "empty_text"),
    "no_messages": (row(chosen=[]), "chosen", "empty_text"),
    "list_of_lists": (row(chosen=[[{"role": "assistant", "content": SECRET}]]), "chosen", "wrong_type"),
    "margin_in_one_row_only": (row(margin=1.0), "margin", "missing_margin"),
    "truncated_json": (json.dumps(row())[:-9], None, "malformed_json"),
    "single_quotes": ("{'user_id': 'u1'}", None, "malformed_json"),
    "two_objects_in_a_line": (json.dumps(row()) * 2, None, "malformed_json"),
    "array_line": ("[1, 2]", None, "wrong_type"),
    "number_line": ("7", None, "wrong_type"),
    "null_line": ("null", None, "wrong_type"),
    "repeated_key": ('{"user_id": "a", "user_id": "b"}', "user_id", "malformed_json"),
    "endless_number": ('{"user_id": ' + "9" * 5000 + "}", None, "malformed_json"),
    "nested_too_deeply": ("[" * 100_000, None, "malformed_json"),
}


def check_message(capfd, *expected):
    """The message on stderr: one line, no traceback, no text of a user's."""
    found = capfd.readouterr().err
    assert found.startswith("error: ") and "Traceback" not in found
    assert found.count("\n") == 1
    for text in expected:
        assert text in found
    assert SECRET not in found and len(found) < 1000
    return found


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_an_error_or_skipped_and_counted(name, tmp_path, capfd):
    bad, column, reason = BAD_ROWS[name]
    path = write(tmp_path / "votes.jsonl", lines(bad))
    status, folder = build(tmp_path, path=path)
    assert status == 2 and not folder.exists()
    check_message(capfd, f"{path}, row {AT + 1}", f"column `{column}`" if column else "row", "--skip_invalid")

    assert build(tmp_path, "--skip_invalid", path=path)[0] == 0
    assert json.loads((folder / "build.json").read_text())["skipped_invalid"] == {reason: 1}
    skipped = json.loads((folder / "skipped.jsonl").read_text())
    assert (skipped["file"], skipped["row"], skipped["column"]) == (str(path), AT + 1, column)
    assert skipped["reason"] == reason and (skipped["raw"] is not None or bad == "null")
    assert f"{reason} 1" in capfd.readouterr().out


def with_column(name, bad, good=None):
    table = [{**r, name: f"{i}" if good is None else good} for i, r in enumerate(GOOD)]
    return [*table[:AT], {**table[AT], name: bad}, *table[AT + 1 :]]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("margin", math.nan, "bad_margin"),
        ("margin", math.inf, "bad_margin"),
        ("margin", None, "bad_margin"),
        ("margin", "big", "bad_margin"),
        ("margin", True, "bad_margin"),
        ("margin", 10**400, "bad_margin"),
        ("pair_id", "4", "duplicate_pair_id"),
        ("pair_id", None, "missing_pair_id"),
        ("pair_id", 1.5, "wrong_type_pair_id"),
    ],
)
def test_bad_optional_columns(name, value, reason, tmp_path, capfd):
    path = write(tmp_path / "votes.jsonl", jsonl(with_column(name, value, 1.0 if name == "margin" else None)))
    assert build(tmp_path, path=path)[0] == 2
    check_message(capfd, f"{path}, row {AT + 1}, column `{name}`", "--skip_invalid")
    status, folder = build(tmp_path, "--skip_invalid", path=path)
    assert status == 0 and json.loads((folder / "build.json").read_text())["skipped_invalid"] == {reason: 1}


def test_errors_name_the_tables_own_columns(tmp_path, capfd):
    table = [{"who": r["user_id"], "q": r["prompt"], "a": r["chosen"], "b": r["rejected"]} for r in GOOD]
    table[AT]["b"] = ""
    path = write(tmp_path / "votes.jsonl", jsonl(table))
    assert build(tmp_path, "--map", "user_id=who", "prompt=q", "chosen=a", "rejected=b", path=path)[0] == 2
    check_message(capfd, f"row {AT + 1}, column `b`: the text is empty")


def choices(value):
    table = [
        {**r, "response_a": r["chosen"], "response_b": r["rejected"], "choice": "ab"[i % 2]}
        for i, r in enumerate(GOOD)
    ]
    table = [{k: v for k, v in r.items() if k not in ("chosen", "rejected")} for r in table]
    table[AT]["choice"] = value
    return table


def ratings(value):
    table = [
        {"user_id": r["user_id"], "prompt": r["prompt"], "response": r[c], "rating": n}
        for r in GOOD
        for n, c in enumerate(("rejected", "chosen"))
    ]
    table[AT]["rating"] = value
    return table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "the choices are only 1: which number"),
        ([1, -1], "the choices are 1, -1: which number"),
        ([1, 4, 7, 4], "the choices are 1, 4, 7: which number"),
        ([4, 7, 1], "the choices are 1, 4: which number"),
        ([0, 1, 0, -1], "the choices are 0, 1, -1: which number"),
        ([0, 1, 2], "the choices are 0, 1 and 2: which"),
    ],
)
def test_choices_that_are_not_known_are_listed_with_what_is(values, message, tmp_path, capsys):
    table = [{**r, "choice": values[i % len(values)]} for i, r in enumerate(choices("a"))]
    status, _ = build(tmp_path, path=write(tmp_path / "t.jsonl", jsonl(table)))
    error = capsys.readouterr().err
    assert status == 2 and message in error
    assert "Known are a and b, left and right, 0 and 1, 1 and 2, and tie; say what others mean" in error
    flags = ["--choice_values", "a=1,2,3,0", "tie=4", "b=-1,5,6,7,2"]
    assert build(tmp_path, *flags, path=tmp_path / "t.jsonl")[0] == 0


@pytest.mark.parametrize("with_users", [True, False])
@pytest.mark.parametrize("cell", ["[1,2,3]", "1;2;3", "1 | 2"])
def test_a_list_in_a_csv_cell_is_called_one(cell, with_users, tmp_path, capsys):
    table = [{k: v for k, v in r.items() if with_users or k != "user_id"} for r in ratings(3)]
    status, _ = build(tmp_path, path=write(tmp_path / "t.csv", as_csv([{**r, "rating": cell} for r in table])))
    error = capsys.readouterr().err
    assert status == 2 and "column `rating`: a list that is written as one text" in error
    assert "needs JSON, JSONL or parquet" in error and "--map" not in error


@pytest.mark.parametrize(
    ("make", "column", "value", "reason"),
    [
        (choices, "choice", "c", "unknown_choice"),
        (choices, "choice", "", "unknown_choice"),
        (choices, "choice", None, "missing_choice"),
        (choices, "choice", math.nan, "missing_choice"),
        (choices, "choice", 7, "unknown_choice"),
        (choices, "choice", True, "unknown_choice"),
        (choices, "choice", ["a"], "wrong_type"),
        (ratings, "rating", None, "missing_rating"),
        (ratings, "rating", "", "missing_rating"),
        (ratings, "rating", "good", "bad_rating"),
        (ratings, "rating", math.nan, "bad_rating"),
        (ratings, "rating", -math.inf, "bad_rating"),
        (ratings, "rating", True, "bad_rating"),
        (ratings, "rating", [1, 2], "wrong_type"),
        (ratings, "rating", {"u": 1}, "wrong_type"),
    ],
)
def test_bad_judgments(make, column, value, reason, tmp_path, capfd):
    path = write(tmp_path / "votes.jsonl", jsonl(make(value)))
    assert build(tmp_path, path=path)[0] == 2
    check_message(capfd, f"{path}, row {AT + 1}, column `{column}`", "--skip_invalid")
    status, folder = build(tmp_path, "--skip_invalid", path=path)
    assert status == 0 and json.loads((folder / "build.json").read_text())["skipped_invalid"] == {reason: 1}


def test_a_rating_that_is_no_number_is_shown(tmp_path, capfd):
    assert build(tmp_path, path=write(tmp_path / "votes.jsonl", jsonl(ratings("4/5"))))[0] == 2
    check_message(capfd, "the rating is '4/5', not a number", "--rating_labels")


CSV = as_csv(GOOD)
CSV_LINES = CSV.decode().splitlines(keepends=True)


def csv_with(line):
    return "".join([*CSV_LINES[: AT + 1], line + "\r\n", *CSV_LINES[AT + 2 :]]).encode()


@pytest.mark.parametrize(
    ("name", "content", "column", "reason"),
    [
        ("too_few_cells", csv_with("user1,Question?"), "chosen", "ragged_row"),
        ("too_many_cells", csv_with("user1,Question?,a,b,c"), None, "ragged_row"),
        ("text_after_quote", csv_with('user1,"Question"?,a,b'), None, "malformed_csv"),
        ("empty_cell", csv_with("user1,Question?,,b"), "chosen", "empty_text"),
        ("empty_user", csv_with(",Question?,a,b"), "user_id", "empty_user_id"),
        ("nul_byte", csv_with("user1,Question?,a\x00,b"), "chosen", "control_character"),
        ("latin_1_among_utf_8", CSV.replace(b"Answer B5", b"Answer \xe9", 1), None, "wrong_encoding"),
        ("ten_megabyte_cell", csv_with("user1,Question?," + "x" * 10_000_000 + ",b"), "chosen", "too_long"),
    ],
)
def test_bad_csv_rows(name, content, column, reason, tmp_path, capfd):
    path = write(tmp_path / "votes.csv", content)
    assert build(tmp_path, path=path)[0] == 2
    at = (
        1 + 1 + next(i for i, r in enumerate(GOOD) if "B5" in r["chosen"] + r["rejected"])
        if reason == "wrong_encoding"
        else AT + 2
    )
    check_message(capfd, f"{path}, row {at}", f"column `{column}`" if column else "row", "--skip_invalid")
    status, folder = build(tmp_path, "--skip_invalid", path=path)
    assert status == 0 and json.loads((folder / "build.json").read_text())["skipped_invalid"] == {reason: 1}


def latin(line: bytes) -> bytes:
    return line + b'{"user_id": "u", "prompt": "caf\xe9", "chosen": "a", "rejected": "b"}\n' + jsonl(GOOD)


def parquet(**columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


TABLE = {name: [r[name] for r in GOOD] for name in GOOD[0]}

# Files that cannot be read as a whole, with or without --skip_invalid. name: (file, content, what the error says)
BAD_FILES = {
    "empty_jsonl": ("t.jsonl", b"", "there are no rows"),
    "blank_lines": ("t.jsonl", b"\n \n\n", "there are no rows"),
    "empty_csv": ("t.csv", b"", "there are no rows"),
    "header_only": ("t.csv", CSV_LINES[0].encode(), "there are no rows"),
    "empty_json": ("t.json", b"", "there are no rows"),
    "empty_array": ("t.json", b"[]", "there are no rows"),
    "parquet_without_rows": (
        "t.parquet",
        parquet(**{k: pa.array([], pa.string()) for k in TABLE}),
        "there are no rows",
    ),
    "missing_csv_column": ("t.csv", CSV.replace(b"chosen", b"better"), "there is no column `chosen`"),
    "csv_without_header": ("t.csv", "".join(CSV_LINES[1:]).encode(), "chosen"),
    "semicolons": ("t.csv", as_csv(GOOD, delimiter=";"), "--delimiter ';'"),
    "repeated_csv_column": ("t.csv", CSV.replace(b"rejected", b"chosen"), "occurs 2 times"),
    "unclosed_quote": ("t.csv", csv_with('user1,"Question?,a,b'), "never closed"),
    "latin_1_header": ("t.csv", CSV.replace(b"user_id", b"pr\xe9nom"), "--encoding"),
    "utf_16": ("t.csv", CSV.decode().encode("utf-16"), "--encoding utf-16"),
    "cut_off_array": ("t.json", json.dumps(GOOD).encode()[:-40], "cut off"),
    "array_without_comma": ("t.json", json.dumps(GOOD).replace("}, {", "} {", 1).encode(), "a comma is missing"),
    "more_after_array": ("t.json", b"[]\n[]", "more after the array's end"),
    "json_of_columns": ("t.json", json.dumps(TABLE).encode(), "chosen"),
    "truncated_gzip": ("t.jsonl.gz", gzip.compress(jsonl(GOOD))[:-20], "cannot be read"),
    "no_gzip": ("t.jsonl.gz", jsonl(GOOD), "cannot be read"),
    "gzip_without_its_ending": ("t.jsonl", gzip.compress(jsonl(GOOD)), "Add .gz"),
    "spreadsheet_named_csv": ("t.csv", b"PK\x03\x04rest", "save it as CSV"),
    "parquet_named_csv": ("t.csv", parquet(**TABLE), ".parquet"),
    "truncated_parquet": ("t.parquet", parquet(**TABLE)[:-30], "damaged or no parquet"),
    "damaged_parquet": ("t.parquet", parquet(**TABLE)[:40] + b"\x00" * 300 + parquet(**TABLE)[340:], "t.parquet"),
    "csv_named_parquet": ("t.parquet", CSV, "damaged or no parquet"),
    "unknown_ending": ("t.xlsx", b"PK\x03\x04", ".jsonl, .json, .csv"),
    "no_ending": ("votes", jsonl(GOOD), "--format"),
    "all_ties": ("t.jsonl", jsonl([{**r, "choice": "tie"} for r in choices("a")]), "tie 160"),
    "all_rated_alike": ("t.jsonl", jsonl([{**r, "rating": 3} for r in ratings(3)]), "tie 160"),
    "one_user": ("t.jsonl", jsonl([{**r, "user_id": "u"} for r in GOOD]), "belong to one user"),
    "unclear_numbers": (
        "t.jsonl",
        jsonl([{**r, "choice": i % 3} for i, r in enumerate(choices(0))]),
        "--choice_values",
    ),
    "only_ones": ("t.jsonl", jsonl([{**r, "choice": 1} for r in choices(0)]), "--choice_values"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("flags", [[], ["--skip_invalid"]], ids=["strict", "skip"])
def test_a_bad_file_is_an_error_that_names_it(name, flags, tmp_path, capfd):
    file, content, says = BAD_FILES[name]
    path = write(tmp_path / file, content)
    status, folder = build(tmp_path, *flags, path=path)
    assert status == 2 and not folder.exists()
    check_message(capfd, str(path), says) if not (name == "json_of_columns" and flags) else None
    assert sorted(p.name for p in tmp_path.iterdir()) == [file], "nothing half-made is left"


def test_one_pair(tmp_path, capfd):
    path = write(tmp_path / "votes.jsonl", jsonl([row()]))
    assert build(tmp_path, path=path)[0] == 2
    check_message(capfd, f"{path}, row 1, column `user_id`: this user has a single pair", "--min_pairs_per_user")
    assert build(tmp_path, "--skip_invalid", path=path)[0] == 2
    check_message(capfd, "no pair is left (user_without_history 1)")


@pytest.mark.parametrize("user", ["once-only", "once"], ids=["training", "validation, on an item that is unseen"])
def test_a_user_without_history(user, tmp_path, capfd):
    path = write(tmp_path / "votes.jsonl", jsonl([*GOOD, row(user_id=user)]))
    assert build(tmp_path, path=path)[0] == 2
    check_message(capfd, f"{path}, row {len(GOOD) + 1}, column `user_id`", "1 of 21 users", "--min_pairs_per_user 2")

    status, folder = build(tmp_path, "--skip_invalid", path=path)
    found = json.loads((folder / "build.json").read_text())
    assert status == 0 and found["skipped_invalid"] == {"user_without_history": 1}
    assert found["counts"]["pairs"] + sum(found["dropped"].values()) == len(GOOD)
    skipped = json.loads((folder / "skipped.jsonl").read_text())
    assert skipped["row"] == len(GOOD) + 1 and skipped["raw"]["user_id"] == user


def test_how_few_pairs_are_enough_can_be_said(tmp_path):
    path = write(tmp_path / "votes.jsonl", jsonl([*GOOD, row(user_id="once-only")]))
    _, folder = build(tmp_path, "--min_pairs_per_user", "2", path=path, out="dropped")
    found = json.loads((folder / "build.json").read_text())
    assert found["dropped"]["user_below_min_pairs"] == 1 and found["counts"]["users_below_min_pairs"] == 1
    assert "once-only" not in {r["user_id"] for r in read(folder)}
    _, folder = build(tmp_path, "--min_pairs_per_user", "1", path=path, out="kept")
    assert "once-only" in {r["user_id"] for r in read(folder)}


def test_folders(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "notes" / "readme.txt", b"hello")
    write(tmp_path / "mixed" / "a.csv", CSV)
    write(tmp_path / "mixed" / "b.jsonl", jsonl(GOOD))
    for name, says in (("empty", "no data files"), ("notes", ".jsonl, .json, .csv"), ("mixed", "1 csv, 1 jsonl")):
        assert build(tmp_path, path=tmp_path / name)[0] == 2
        check_message(capfd, str(tmp_path / name), says)
    assert build(tmp_path, "--format", "csv", path=tmp_path / "mixed")[0] == 0
    assert build(tmp_path, path=tmp_path / "absent", out="other")[0] == 2
    check_message(capfd, "no such file or folder")
    assert build(tmp_path, path=tmp_path / "out", out="other")[0] == 2
    check_message(capfd, "a dataset folder already")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--map", "user=user_id"], "Did you mean user_id?"),
        (["--map", "user_id"], "KEY=VALUE"),
        (["--map", "user_id=annotator"], "there is no column `annotator`"),
        (["--map", "user_id=a", "user_id=b"], "twice"),
        (["--map", "chosen=a", "rating=b"], "at once"),
        (["--items", "topic"], "there is no column `topic`"),
        (["--choice_values", "a=1", "b=2"], "this table holds pairs"),
        (["--pair_scope", "across"], "this table holds pairs"),
        (["--pair_scope", "sideways"], "sideways"),
        (["--max_pairs_per_user", "-3"], "-3"),
        (["--rating_labels", "good"], "two or more"),
        (["--encoding", "utf-9"], "utf-9"),
        (["--delimiter", "<>"], "one character"),
        (["--test_users", "1.5"], "a share in [0, 1)"),
        (["--test_users", "0.9", "--validation_users", "0.2"], "leave nobody to train"),
        (["--n_user_folds", "5", "--user_fold", "5"], "expected 0 to 4"),
        (["--item_fold", "1"], "n_item_folds"),
        (["--min_pairs_per_user", "0"], "1 keeps everyone"),
        (["--tset_users", "0.1"], "Did you mean --test_users"),
        (["--default_prompt", " "], "empty"),
    ],
)
def test_bad_settings(flags, says, tmp_path, capfd):
    path = write(tmp_path / "votes.jsonl", jsonl(GOOD))
    assert build(tmp_path, *flags, path=path)[0] == 2
    check_message(capfd, says)


def test_many_kinds_of_bad_rows_at_once(tmp_path):
    bad = [value for name, (value, _, _) in BAD_ROWS.items() if name != "ten_megabytes"]
    path = write(tmp_path / "votes.jsonl", lines(*bad))
    status, folder = build(tmp_path, "--skip_invalid", path=path)
    assert status == 0
    found = json.loads((folder / "build.json").read_text())
    assert sum(found["skipped_invalid"].values()) == len(bad)
    assert len((folder / "skipped.jsonl").read_text().splitlines()) == len(bad)
    assert found["counts"]["pairs_read"] == len(GOOD) - 1 + len(bad)
