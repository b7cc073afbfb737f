"""`pluralrlhf score`: every candidate for every user, in files that survive a kill."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import tiny_backbone, tiny_tokenizer

from pluralrlhf.cli import main
from pluralrlhf.data import load_pairs
from pluralrlhf.errors import DataError
from pluralrlhf.evaluation import candidates as module
from pluralrlhf.modeling import PersonalizedRewardModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    assert not main(["data", "build", "pets", "--out", str(folder / "pets"), "--n_users", "20", "--no_progress"])
    PersonalizedRewardModel.from_encoder("offline", "vpl").save_pretrained(str(folder / "vpl"))
    icl = PersonalizedRewardModel.from_backbone(tiny_backbone(), "icl", tokenizer=tiny_tokenizer(), max_length=200)
    icl.save_pretrained(str(folder / "icl"))
    rows = [{"prompt": f"question {i} ?", "responses": [f"the cat is {i} .", f"the dog is {i} ."]} for i in range(7)]
    rows.append({"prompt": "last ?", "response": "a bird ."})
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(
        pa.table({"prompt": [r["prompt"] for r in rows], "responses": [r.get("responses") or [r["response"]] for r in rows]}),
        folder / "answers.parquet",
    )  # fmt: skip
    return folder


def score(folder, out, *more, model="vpl", file="answers.jsonl"):
    return main(
        ["score", "--model", str(folder / model), "--data", str(folder / "pets"), "--candidates", str(folder / file),
         "--out", str(out), "--no_progress", *more]
    )  # fmt: skip


def read(out):
    return pa.concat_tables(
        [pq.read_table(f).cast(module.SCORES_SCHEMA) for f in sorted(out.glob("scores-*.parquet"))]
    )


@pytest.mark.parametrize("model", ["vpl", "icl"])
def test_scores_are_those_of_the_model(folder, tmp_path, model):
    assert (
        score(folder, tmp_path / "out", "--block_size", "4", "--n_context", "3", "--splits", "validation", model=model)
        == 0
    )
    found = read(tmp_path / "out").to_pandas()
    validation = load_pairs(folder / "pets")["validation"]
    users = sorted(set(validation["user_id"]))
    assert len(found) == 15 * len(users) and len(list((tmp_path / "out").glob("*.parquet"))) == 4
    loaded = PersonalizedRewardModel.from_pretrained(str(folder / model)).eval()
    user = users[0]
    history = module.UserHistory({"validation": validation})
    rows = np.flatnonzero(history.user == history.users.index(user))
    rows = rows[np.argsort(module.mix(history.pair_key[rows], module.stable_hash("score")))][:3]
    state = loaded.encode_user([validation[int(row)] for row in rows])
    expected = loaded.score(["question 2 ?"] * 2, ["the cat is 2 .", "the dog is 2 ."], state)
    own = found[(found["user_id"] == user) & (found["candidate"] == 2)].sort_values("response")
    torch.testing.assert_close(torch.tensor(own["reward"].to_numpy()), expected, atol=2e-3, rtol=2e-3)
    assert found.groupby("candidate")["reward"].std().max() > 0, "users differ"


def test_a_stopped_call_goes_on_and_ends_the_same(folder, tmp_path, monkeypatch):
    assert score(folder, tmp_path / "whole", "--block_size", "4") == 0
    written, write = [], module._write

    def stops(file, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file.name)
        write(file, *rest)

    monkeypatch.setattr(module, "_write", stops)
    assert score(folder, tmp_path / "parts", "--block_size", "4") == 130
    assert not list((tmp_path / "parts").glob("*.part")) and len(list((tmp_path / "parts").glob("*.parquet"))) == 2
    again = []
    monkeypatch.setattr(module, "_write", lambda file, *rest: (again.append(file.name), write(file, *rest)))
    assert score(folder, tmp_path / "parts", "--block_size", "4") == 0
    assert len(again) == 2 and not set(again) & set(written)
    assert read(tmp_path / "parts").equals(read(tmp_path / "whole"))
    assert score(folder, tmp_path / "parts", "--block_size", "4") == 0 and len(again) == 2, "nothing is left to do"


def test_parquet_and_jsonl_give_the_same(folder, tmp_path):
    for file in ("answers.jsonl", "answers.parquet"):
        assert score(folder, tmp_path / file, file=file) == 0
    assert read(tmp_path / "answers.jsonl").equals(read(tmp_path / "answers.parquet"))


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    assert score(folder, tmp_path / "out") == 0
    capsys.readouterr()
    for arguments, message in (
        ((tmp_path / "out", "--n_context", "2"), "scores of another call (n_context differ)"),
        ((tmp_path / "new", "--splits", "tset"), "`splits` names tset"),
        ((tmp_path / "new", "--block_size", "0"), "`block_size` 0"),
    ):
        assert score(folder, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
    (folder / "bad.jsonl").write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p"}\n')
    for size in ("1", "1000"):
        assert score(folder, tmp_path / "bad", "--block_size", size, file="bad.jsonl") == 2
        assert "row 2" in capsys.readouterr().err
    assert score(folder, tmp_path / "bad", file="none.jsonl") == 2
    assert "there is no file" in capsys.readouterr().err


def test_a_call_that_came_to_nothing_leaves_the_folder_to_others(folder, tmp_path, capsys):
    (folder / "late.jsonl").write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p"}\n')
    assert score(folder, tmp_path, "--block_size", "1", file="late.jsonl") == 2
    assert score(folder, tmp_path, model="pets") == 2
    assert score(folder, tmp_path, "--n_context", "2") == 0, capsys.readouterr().err
    assert json.loads((tmp_path / module.MANIFEST).read_text())["n_context"] == 2


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([1], "the row is a list"),
        ({"response": "a"}, "`prompt` is missing"),
        ({"prompt": "?"}, "`response`, or `responses`, is missing"),
        ({"prompt": "?", "responses": "a"}, "`responses` is a str, not a list"),
        ({"prompt": "?", "responses": []}, "`responses` is empty"),
        ({"prompt": "?", "responses": ["a", ""]}, "response 1 (from 0) is empty"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path, row, found):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": "", "response": "a"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=re.escape(found)) as error:
        list(module.read_candidates(path))
    assert "row 2" in str(error.value)
