"""Dataset folders: the same call gives the same bytes, `datasets` reads the right splits, a kill leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import read

from pluralrlhf.data import build_dataset, data_sha256, load_pairs, load_users, messages, read_build, shards
from pluralrlhf.data.schema import SPLITS, RowError
from pluralrlhf.data.sources import Source, source_class
from pluralrlhf.errors import ConfigError, DataError


def pair(user: str, item: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "pair_id": f"{user}-{item}-{number}",
        "item_ids": [item],
        "prompt": messages(f"About {item}?", "user"),
        "chosen": messages(f"yes {number}"),
        "rejected": messages(f"no {number}"),
        **more,
    }


PAIRS = [pair(f"u{u}", f"i{i}", n) for u in range(40) for i in range(25) for n in range(2)]


@dataclass
class Given(Source):
    """Rows as they are handed over."""

    name: ClassVar[str] = "given"
    given: list = field(default_factory=lambda: PAIRS)
    profiles: list = field(default_factory=list)
    true: list | None = None

    def rows(self):
        yield from self.given

    def users(self):
        yield from self.profiles

    def truth(self):
        return None if self.true is None else iter(self.true)

    def truth_info(self):
        return {"noise": 0.1}

    def describe(self):
        return {"source": self.name, "version": "1", "parameters": {}, "licence": "CC BY 4.0", "attribution": "By us."}


def make(tmp_path, given=None, name="out", **settings):
    source = settings.pop("source", None) or Given(PAIRS if given is None else given)
    return build_dataset(source, tmp_path / name, progress=False, **settings)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_call_gives_the_same_bytes(tmp_path):
    settings = {
        "profiles": [{"user_id": "u3", "profile": "cats"}],
        "true": [{"pair_id": p["pair_id"], "p": 1.0} for p in PAIRS],
    }
    first = make(tmp_path, name="a", source=Given(PAIRS, **settings))
    second = make(tmp_path, name="b", source=Given(PAIRS, **settings))
    assert files_of(first) == files_of(second) and len(files_of(first)) == 11
    assert data_sha256(first) == data_sha256(second)
    assert data_sha256(first) != data_sha256(make(tmp_path, name="c", seed=1))


def test_splits_are_stable_under_reordering_and_appending(tmp_path):
    def split_of(folder):
        return {row["pair_id"]: row["split"] for row in read(folder)}

    original = split_of(make(tmp_path, name="a"))
    reordered = split_of(make(tmp_path, PAIRS[::-1], name="b"))
    more = [pair(f"u{u}", f"i{i}", 7) for u in range(60) for i in range(40)]
    appended = split_of(make(tmp_path, PAIRS + more, name="c"))
    assert original == reordered
    assert original == {pair_id: appended[pair_id] for pair_id in original}


def test_datasets_reads_both_configs_with_exactly_the_right_splits(tmp_path):
    folder = make(tmp_path, source=Given(PAIRS, [{"user_id": "u1", "profile": "birds"}, {"user_id": "nobody"}]))
    pairs = datasets.load_dataset(str(folder), "pairs")
    rows = read(folder)
    assert set(pairs) == set(SPLITS) == {row["split"] for row in rows}
    for split in SPLITS:
        assert [r["pair_id"] for r in pairs[split]] == [r["pair_id"] for r in rows if r["split"] == split]
    assert datasets.load_dataset(str(folder)).keys() == pairs.keys(), "`pairs` is the default"
    users = datasets.load_dataset(str(folder), "users")
    assert list(users) == ["users"]
    assert sorted(users["users"]["user_id"]) == sorted({row["user_id"] for row in rows})
    assert {u["user_id"]: u["profile"] for u in users["users"]}["u1"] == "birds"
    assert json.loads((folder / "build.json").read_text())["counts"]["users_without_pairs"] == 1


def test_a_second_build_of_the_same_name_is_not_answered_from_the_cache(tmp_path):
    loaded = []
    for seed in (0, 1):
        folder = make(tmp_path, seed=seed, overwrite=True)
        loaded.append(datasets.load_dataset(str(folder), "pairs")["train"]["pair_id"][:])
        assert loaded[-1] == [r["pair_id"] for r in read(folder) if r["split"] == "train"]
        users = datasets.load_dataset(str(folder), "users")["users"]["user_id"][:]
        assert sorted(users) == sorted({r["user_id"] for r in read(folder)})
        assert load_pairs(folder)["train"]["pair_id"][:] == loaded[-1]
    assert loaded[0] != loaded[1]


def test_our_readers_agree_with_datasets(tmp_path):
    folder = make(tmp_path)
    theirs, ours = datasets.load_dataset(str(folder), "pairs"), load_pairs(folder)
    assert list(ours) == list(SPLITS)
    assert all(ours[split].to_list() == theirs[split].to_list() for split in SPLITS)
    assert load_users(folder).to_list() == datasets.load_dataset(str(folder), "users")["users"].to_list()


def test_users_and_items_are_disjoint_where_the_splits_say_so(tmp_path):
    rows = read(make(tmp_path))

    def values(column, *splits):
        return {v for r in rows if r["split"] in splits for v in (r[column] if column == "item_ids" else [r[column]])}

    train, validation, *tests = SPLITS
    seen_users, unseen_users = values("user_id", train, *tests[:2]), values("user_id", *tests[2:])
    assert not seen_users & unseen_users and not values("user_id", validation) & (seen_users | unseen_users)
    assert not values("item_ids", train, validation, tests[0], tests[2]) & values("item_ids", tests[1], tests[3])


def test_counts_and_what_was_dropped_add_up(tmp_path):
    mixed = [pair("u1", "i1", 100 + n, item_ids=["i1", f"j{n}"]) for n in range(50)]
    folder = make(tmp_path, PAIRS + mixed)
    build = json.loads((folder / "build.json").read_text())
    assert build["counts"]["pairs"] == len(read(folder)) == sum(s["pairs"] for s in build["counts"]["splits"].values())
    assert build["counts"]["pairs"] + sum(build["dropped"].values()) == len(PAIRS) + len(mixed)
    assert build["dropped"]["mixed_items"] > 0 and build["dropped"]["unseen_items_of_validation_users"] > 0


def test_the_card_names_licence_counts_and_losses(tmp_path):
    text = (make(tmp_path) / "README.md").read_text()
    for expected in ("license: cc-by-4.0", "By us.", "| `train` |", "unseen items of validation users"):
        assert expected in text
    assert str(tmp_path) not in text


def test_margin_is_a_column_only_if_given(tmp_path):
    assert "margin" not in load_pairs(make(tmp_path, name="a"))["train"].column_names
    with_margin = [{**p, "margin": 0.5} for p in PAIRS]
    assert set(load_pairs(make(tmp_path, with_margin, name="b"))["train"]["margin"]) == {0.5}


@pytest.mark.parametrize("name", ["prism", "polarized_issues"])
def test_skip_invalid_covers_the_users(tmp_path, name):
    from test_hub import copy_of
    from test_polarized_issues import person, vote
    from test_polarized_issues import write as write_issues

    if name == "prism":
        copy_of(name, tmp_path / "in")
        survey = tmp_path / "in" / "survey.jsonl"
    else:
        votes = [vote(f"u{u}", "ab"[n % 2], a=f"Yes {n}", prompt=f"Q{n}?") for u in range(30) for n in range(12)]
        write_issues(tmp_path / "in", votes, [person(f"u{u}") for u in range(30)])
        survey = tmp_path / "in" / "users.jsonl"
    lines = survey.read_text().splitlines(keepends=True)
    lines[3], lines[5] = "no json\n", lines[5].replace('"user_id"', '"user"')
    survey.write_text("".join(lines))
    source = lambda: source_class(name)(path=str(tmp_path / "in"))  # noqa: E731
    with pytest.raises(RowError, match="row 4: malformed JSON"):
        build_dataset(source(), tmp_path / "out", progress=False)
    build = read_build(build_dataset(source(), tmp_path / "out", skip_invalid=True, progress=False))
    assert build["skipped_invalid"] == {"malformed_json": 1, "missing_column": 1}
    assert build["counts"]["users"] == 30
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").open()]
    assert [entry["row"] for entry in skipped] == [4, 6] and skipped[0]["raw"] == "no json\n"


def test_truth_is_kept_apart_and_only_of_pairs_that_are_there(tmp_path):
    folder = make(tmp_path, source=Given(PAIRS, true=[{"pair_id": p["pair_id"], "p": 0.9} for p in PAIRS]))
    truth = pq.read_table(folder / "truth" / "pairs.parquet")
    assert set(truth["pair_id"].to_pylist()) == {row["pair_id"] for row in read(folder)}
    assert json.loads((folder / "truth" / "truth.json").read_text()) == {"noise": 0.1}
    assert "truth" not in (folder / "README.md").read_text()
    assert not (make(tmp_path, name="b") / "truth").exists()


def test_a_population_decides_item_sides_and_who_is_split_together(tmp_path):
    rows = [
        {**p, "_test_item": p["item_ids"][0] < "i12", "_split_key": f"couple{int(p['user_id'][1:]) // 2}"}
        for p in PAIRS
    ]
    built = read(make(tmp_path, rows))
    assert all(("unseen_items" in r["split"]) == (r["item_ids"][0] < "i12") for r in built)
    partition = {
        r["user_id"]: r["split"].replace("test_seen_users_seen_items", "train").split("_users")[0]
        for r in built
        if "unseen_items" not in r["split"]
    }
    assert len(set(partition.values())) == 3
    assert all(partition[f"u{u}"] == partition[f"u{u + 1}"] for u in range(0, 40, 2))


def test_sources_see_the_division(tmp_path):
    class Looks(Given):
        def rows(self):
            assert self.split.test_items == 0.5 and self.split.seed == 3
            yield from super().rows()

    make(tmp_path, source=Looks(), seed=3, test_items=0.5)


def test_few_pairs_and_a_sources_own_choice(tmp_path):
    rows = [*PAIRS, pair("once", "i1", 0)]
    folder = make(tmp_path, rows)  # a source's default: drop and count
    assert "once" not in load_users(folder)["user_id"]

    class Strict(Given):
        min_pairs_per_user = None

    with pytest.raises(DataError, match="single pair"):
        make(tmp_path, source=Strict(rows), name="b")
    assert "once" in load_users(make(tmp_path, rows, name="c", min_pairs_per_user=1))["user_id"]
    with pytest.raises(DataError, match="no pair is left"):
        make(tmp_path, rows, name="d", min_pairs_per_user=1000)


def test_shards(tmp_path, monkeypatch):
    whole = read(make(tmp_path, name="a"))
    monkeypatch.setattr(shards, "GROUP_ROWS", 50)
    monkeypatch.setattr(shards.ShardWriter.__init__, "__defaults__", (100,))
    folder = make(tmp_path, name="b")
    names = sorted(p.name for p in (folder / "pairs").glob("train-*"))
    assert len(names) > 3 and names[0] == f"train-00000-of-{len(names):05d}.parquet"
    assert read(folder) == whole
    loaded = [row for pairs in load_pairs(folder).values() for row in pairs.to_list()]
    assert sorted(loaded, key=lambda row: row["pair_id"]) == sorted(
        ({key: value for key, value in row.items() if key != "split"} for row in whole), key=lambda row: row["pair_id"]
    )
    (folder / "pairs" / names[1]).unlink()
    with pytest.raises(DataError, match="files of split `train`"):
        load_pairs(folder)


def test_long_texts_do_not_pile_up_in_memory(tmp_path):
    writer = shards.ShardWriter(tmp_path / "x", None)
    for number in range(100):
        writer.add({"text": str(number) + "x" * 1_000_000})
        assert len(writer.rows) <= 32
    assert len(writer.close()) == 1


def test_what_stands_in_the_way_is_kept(tmp_path):
    folder = make(tmp_path)
    before = files_of(folder)
    with pytest.raises(ConfigError, match="--overwrite"):
        make(tmp_path)
    with pytest.raises(RuntimeError):
        make(tmp_path, source=Breaks(), overwrite=True)
    assert files_of(folder) == before
    make(tmp_path, seed=1, overwrite=True)
    assert files_of(folder) != before and [p.name for p in tmp_path.iterdir()] == ["out"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="no dataset folder"):
        make(tmp_path, name="thesis", overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        make(other, name="chapter.txt", overwrite=True)


class Breaks(Given):
    def rows(self):
        yield from PAIRS[:100]
        raise RuntimeError("the disk is on fire")


def test_a_kill_leaves_nothing_and_the_next_build_works(tmp_path):
    script = f"""
        import os, signal, sys
        sys.argv = ['pluralrlhf']  # as the command line does: no torch
        sys.path[:0] = {sys.path!r}
        from test_writer import Given, PAIRS, make
        from pathlib import Path
        class Killed(Given):
            def rows(self):
                yield from PAIRS[:1000]
                os.kill(os.getpid(), signal.SIGKILL)
        make(Path({str(tmp_path)!r}), source=Killed())
    """
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_pairs(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no build\.json"):
        load_pairs(tmp_path)
    folder = make(tmp_path)
    with pytest.raises(DataError, match="a file"):
        load_users(folder / "README.md")
    train = next((folder / "pairs").glob("train-*"))
    table = pq.read_table(train)
    pq.write_table(table.drop_columns(["chosen"]), train)
    with pytest.raises(DataError, match="column `chosen`: the column is missing"):
        load_pairs(folder)
    pq.write_table(table.set_column(0, "user_id", pa.array(range(len(table)))), train)
    with pytest.raises(DataError, match="column `user_id`: the column is int64"):
        load_pairs(folder)
    train.write_bytes(b"garbage")
    with pytest.raises(DataError, match="damaged"):
        load_pairs(folder)
    (folder / "build.json").write_text('{"schema": 2}')
    with pytest.raises(DataError, match="schema 2"):
        load_pairs(folder)
    (folder / "build.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        data_sha256(folder)
