"""TL;DR comparisons by worker, in the origin's batch files."""

import pytest
from origins import errors, good, jsonl, parquet, text

from pluralrlhf.data.placebo import DROPPED
from pluralrlhf.data.sources.tldr import TLDR
from pluralrlhf.errors import ConfigError, DataError


def comparison(
    worker, choice=1, post="A long story.", summaries=("Short one.", " Short two."), identifier="t3_a", **change
):
    return {
        "info": {"id": identifier, "post": post, "title": "A title", "subreddit": "advice"},
        "summaries": [{"text": s, "policy": "ref", "note": None} for s in summaries],
        "choice": choice,
        "worker": worker,
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": 8},
        **change,
    }


def read(folder, rows, **settings):
    jsonl(folder / "batch3.json", rows)
    return TLDR(path=str(folder), **settings)


def test_comparisons_become_pairs(tmp_path):
    rows = [comparison("w1"), comparison("w2", 0)]
    one, two = good(read(tmp_path, rows).rows())
    assert text(one["chosen"]) == " Short two." and text(two["chosen"]) == "Short one."
    assert one["item_ids"] == two["item_ids"] and one["pair_id"] != two["pair_id"]
    assert "r/advice" in text(one["prompt"]) and "A title" in text(one["prompt"])
    published = good(read(tmp_path, rows, construction="published").rows())
    assert text(published[0]["prompt"]) == "A long story." and published[0]["item_ids"] == ["t3_a"]


def test_repeats(tmp_path):
    rows = [
        comparison("same"),
        comparison("same", 0, summaries=("Short two.", "Short one.")),
        comparison("torn", 0),
        comparison("torn", 1),
        comparison("torn", 1, identifier="t3_b", post="Another."),
        comparison("same", identifier="t3_c", post="a LONG  story."),
    ]
    source = read(tmp_path, rows)
    assert [r["user_id"] for r in good(source.rows())] == ["same", "torn"]
    assert source.dropped == {"repeated_judgment": 2, "contradictory_repeat": 2}
    published = good(read(tmp_path, rows, construction="published").rows())
    assert len(published) == len({r["pair_id"] for r in published}) == 6


def test_what_makes_no_pair_is_counted(tmp_path):
    news = comparison("w", info={"id": "x", "site": "dailymail", "title": "T", "article": "News.", "post": None})
    source = read(
        tmp_path,
        [
            news,
            comparison("w", summaries=("Same.", " Same.")),
            comparison("w", summaries=("", "Other.")),
            comparison("w", split="valid1"),
            comparison("w"),
        ],
        origin_split="train",
    )
    assert len(good(source.rows())) == 1
    assert source.dropped == {"news_article": 1, "identical_responses": 1, "empty_text": 1, "other_split": 1}


def test_batches_from_the_origin(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "cache"))
    for number in (3, 4, 22):
        jsonl(tmp_path / "origin" / f"batch{number}.json", [comparison(f"w{number}")])
    source = TLDR(origin_url=(tmp_path / "origin").as_uri() + "/", batches="3-4,22")
    assert [r["user_id"] for r in good(source.rows())] == ["w3", "w4", "w22"]
    assert set(source.describe()["sha256"]) == {"batch3.json", "batch4.json", "batch22.json"}
    assert "origin_url" not in source.describe()["parameters"]
    with pytest.raises(DataError, match="--path"):
        list(TLDR(origin_url=(tmp_path / "origin").as_uri() + "/", batches="5").rows())
    for batches in ("three", "all", "20-3", ""):
        with pytest.raises(ConfigError, match="batches"):
            TLDR(batches=batches)


def test_the_hub_s_parquet(tmp_path):
    rows = [comparison(f"w{n}", batch=f"batch{n}") for n in (3, 4, 11)]
    file = parquet(tmp_path / "comparisons" / "train" / "0000.parquet", rows)
    for path in (tmp_path, file):
        assert len(good(TLDR(path=str(path)).rows())) == 3
        source = TLDR(path=str(path), batches="3-10")
        assert [r["user_id"] for r in good(source.rows())] == ["w3", "w4"] and source.dropped == {"other_batch": 1}
    jsonl(tmp_path / "batch3.json", rows[:1])
    assert len(good(TLDR(path=str(tmp_path)).rows())) == 1, "the batches' own files come before their conversion"


def test_placebo(tmp_path):
    rows = [comparison(f"w{n}", n % 2) for n in range(40)] + [comparison("alone", post="Else.")]
    source = read(tmp_path, rows, placebo=True)
    made = good(source.rows())
    assert len(made) == 40 and source.dropped[DROPPED] == 1
    assert sum(text(r["chosen"]) == "Short one." for r in made) == 20


def test_bad_rows(tmp_path):
    rows = [
        comparison("a"),
        comparison(None),
        comparison("a", 2),
        comparison("a", summaries=("one",)),
        comparison("a", info={"post": "x"}),
    ]
    found = list(read(tmp_path, rows).rows())
    assert [e.column for e in errors(found)] == ["worker", "choice", "summaries", "info.id"]
    assert [e.row for e in errors(found)] == [2, 3, 4, 5] and len(good(found)) == 1
