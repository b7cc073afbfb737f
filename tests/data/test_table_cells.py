"""What is in a table's cells: texts, choices, numbers."""

import json
import warnings
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import as_csv, build, jsonl, read, rows, write

from pluralrlhf.data.sources.table_values import written_messages


@pytest.mark.parametrize("written", [str, json.dumps])
def test_messages_written_as_text_are_no_text(written, tmp_path, capsys):
    table = [{**row, "chosen": written([{"role": "assistant", "content": row["chosen"]}])} for row in rows()]
    path = write(tmp_path / "a.csv", as_csv(table))
    assert build(tmp_path, path=path)[0]
    said = capsys.readouterr().err
    assert "column `chosen`: a message list that is written as one text" in said and "JSONL or parquet" in said


def test_texts_that_look_like_messages_stay_texts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in (
            "[{",
            "[{x}] as a set",
            "[{'role': 'user'}]",
            "[{'a': 1}, 2]",
            "[{" * 100_000,
            "[{'\\d': 1}]",
            "[]",
        ):
            assert not written_messages(text)
    assert written_messages(" [{'role': 'user', 'content': 'it\\'s'}]\n")


@pytest.mark.parametrize("encoding", ["idna", "hex", "base64", "rot13", "undefined", "no-such", "\0"])
def test_what_is_no_encoding_is_refused(encoding, tmp_path, capsys):
    path = write(tmp_path / "a.csv", as_csv(rows()))
    assert build(tmp_path, "--encoding", encoding, path=path)[0]
    assert "which is no encoding of texts: known are utf-8" in capsys.readouterr().err


def test_wrong_encodings_name_others(tmp_path, capsys):
    table = [{**row, "prompt": f"質問 {row['prompt']}"} for row in rows()]
    plain = as_csv(table).decode()
    path = write(tmp_path / "a.csv", plain.encode("utf-16-le"))
    assert build(tmp_path, "--encoding", "utf-16", path=path)[0] and "utf-16-le" in capsys.readouterr().err
    assert not build(tmp_path, "--encoding", "utf-16-le", path=path)[0]
    path = write(tmp_path / "b.csv", plain.encode("cp932"))
    capsys.readouterr()
    assert build(tmp_path, path=path, out="b")[0] and "cp932" in capsys.readouterr().err
    # Every byte is a character of Latin-1, but these are control characters, which nobody wrote.
    assert build(tmp_path, "--encoding", "latin-1", path=path, out="b")[0]
    assert "bytes that are not latin-1" in capsys.readouterr().err
    assert not build(tmp_path, "--encoding", "cp932", path=path, out="b")[0]
    # In UTF-8 they are what somebody wrote, or pasted.
    path = write(tmp_path / "c.csv", as_csv([{**row, "prompt": f"\x96 {row['prompt']}"} for row in rows()]))
    assert not build(tmp_path, path=path, out="c")[0]


def test_numbers_are_what_they_were_before_they_were_decimals(tmp_path):
    choices = [
        {"user_id": r["user_id"], "prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"]}
        for r in rows()
    ]
    made = []
    for name, one, zero in (("int", 1, 0), ("text", "1.0", "0.0"), ("decimal", Decimal("1.00"), Decimal("0.00"))):
        table = [{**row, "user_id": n % 20, "choice": (zero, one)[n % 2]} for n, row in enumerate(choices)]
        if name == "decimal":
            table = [{**row, "user_id": Decimal(row["user_id"])} for row in table]
            path = tmp_path / "a.parquet"
            pq.write_table(pa.Table.from_pylist(table), path)
        else:
            path = write(tmp_path / f"{name}.csv", as_csv(table))
        status, out = build(tmp_path, path=path, out=f"out-{name}")
        assert not status
        made.append(read(out))
    assert made[0] == made[1] == made[2] and len(made[0]) > 100


def test_decimal_ratings_and_margins(tmp_path, capsys):
    made = []
    for number in (float, Decimal):
        table = [{**row, "margin": number(n) / 4} for n, row in enumerate(rows())]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
        ratings = [
            {"user_id": f"u{n % 9}", "response": f"T{n // 9}", "rating": number(n * n % 7) / 4} for n in range(900)
        ]
        pq.write_table(pa.Table.from_pylist(ratings), tmp_path / "b.parquet")
        outs = [build(tmp_path, path=tmp_path / f"{x}.parquet", out=f"{x}{number.__name__}")[1] for x in "ab"]
        made.append([read(out) for out in outs])
    assert made[0] == made[1]
    ratings[5]["rating"] = "1,5"
    path = write(tmp_path / "c.jsonl", jsonl([{**row, "rating": str(row["rating"])} for row in ratings]))
    assert build(tmp_path, path=path, out="c")[0] and "decimal point, as 1.5" in capsys.readouterr().err


def test_a_dataset_saved_to_disk_is_not_its_metadata(tmp_path, capsys):
    import datasets

    table = datasets.Dataset.from_list(rows())
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "several")
    for path in (tmp_path / "one", tmp_path / "several", next((tmp_path / "one").glob("*.arrow"))):
        assert build(tmp_path, path=path)[0] and "to_parquet" in capsys.readouterr().err


def test_a_malformed_csv_row_is_written_aside_as_it_was(tmp_path):
    lines = as_csv(rows()).decode().splitlines(keepends=True)
    lines[5] = 'user1,"Question" 4?,A,B\r\n'
    path = write(tmp_path / "a.csv", "".join(lines).encode())
    status, out = build(tmp_path, "--skip_invalid", path=path)
    (entry,) = [json.loads(line) for line in (out / "skipped.jsonl").open()]
    assert not status and entry["reason"] == "malformed_csv" and entry["raw"] == lines[5]
