"""Files from the Hub: which are fetched, at which commit, and what is said when they cannot be."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from origins import errors, good, jsonl, parquet

from pluralrlhf.data import read_build
from pluralrlhf.data.sources import SOURCES, source_class
from pluralrlhf.data.sources.hub import HubSource, hub_files, local_files, share_out
from pluralrlhf.data.sources.mt_bench_human import MTBenchHuman
from pluralrlhf.data.writer import build_dataset
from pluralrlhf.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEW = ("prism", "mt_bench_human", "tldr", "hh_rlhf", "ultrafeedback_p", "personalllm")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub in a folder: the real client's two calls, answered from `tmp_path`."""
    root = tmp_path / "cache" / "snapshots" / COMMIT
    asked = []

    def info(self, repository, revision=None):
        asked.append((repository, revision))
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo_id, repo_type, revision, filename: str(root / filename)
    )
    return SimpleNamespace(root=root, asked=asked)


def test_files_and_commit_are_recorded(hub):
    from test_mt_bench_human import judgment

    parquet(hub.root / "data" / "human-00000-of-00001-x.parquet", [judgment("a"), judgment("b")])
    parquet(hub.root / "data" / "gpt4_pair-00000-of-00001-x.parquet", [judgment("gpt4")])
    source = MTBenchHuman(revision="v1")
    assert {r["user_id"] for r in good(source.rows())} == {"a", "b"}
    described = source.describe()
    assert hub.asked == [("lmsys/mt_bench_human_judgments", "v1")]
    assert described["version"] == f"lmsys/mt_bench_human_judgments@{COMMIT}"
    assert list(described["sha256"]) == ["data/human-00000-of-00001-x.parquet"]


def test_what_is_missing_is_said(hub, monkeypatch):
    jsonl(hub.root / "other.jsonl", [{}])
    with pytest.raises(DataError, match=r"data/human.*--revision"):
        list(MTBenchHuman().rows())
    monkeypatch.undo()
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *a, **k: (_ for _ in ()).throw(OSError("no route"))
    )
    with pytest.raises(DataError, match=r"no route.*--path"):
        hub_files("a/b", "main", ["*.jsonl"])


def test_a_file_in_two_forms_is_read_once(tmp_path):
    from test_mt_bench_human import judgment

    rows = [judgment("a"), judgment("b")]
    for shard, row in enumerate(rows):
        parquet(tmp_path / "data" / f"human-{shard:05d}-of-00002-x.parquet", [row])
    jsonl(tmp_path / "judgments.jsonl", [judgment("of the other layout")])
    source = MTBenchHuman(path=str(tmp_path))
    assert [r["user_id"] for r in good(source.rows())] == ["a", "b"], "every shard of the first layout that is there"
    assert set(source.files) == {f"data/human-0000{n}-of-00002-x.parquet" for n in (0, 1)}
    # A plain file hides its own .gz, and no other's.
    for name in ("a.jsonl", "a.jsonl.gz", "b.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in local_files(str(tmp_path), ["[ab].jsonl"])] == ["a.jsonl", "b.jsonl.gz"]


def test_what_a_copy_lacks_is_recorded_and_said(tmp_path, capsys):
    from pluralrlhf.cli import main

    lacks = {
        "tldr": (["batch4.json", "batch5.json"], ["--batches", "3-5"]),
        "hh_rlhf": (["helpful-base/test.jsonl", "harmless-base/test.jsonl"], ["--users_per_labeller", "5"]),
        "prism": ([], []),
    }
    for name, (missing, flags) in lacks.items():
        copy_of(name, tmp_path / name)
        out = tmp_path / f"out-{name}"
        assert not main(["data", "build", name, "--path", str(tmp_path / name), "--out", str(out), *flags])
        assert read_build(out).get("missing_files", []) == missing
        said = f"lacks 2 files of the origin's ({', '.join(missing)})"
        assert (said in capsys.readouterr().out) == bool(missing)


@pytest.mark.parametrize("name", NEW)
def test_only_a_source_of_one_file_takes_a_file(tmp_path, name):
    settings = copy_of(name, tmp_path / "in")
    files = sorted(file for file in (tmp_path / "in").rglob("*") if file.is_file())
    source = source_class(name)(path=str(files[0]), **settings)
    if name in ("mt_bench_human", "tldr"):
        assert good(source.rows())
        return
    with pytest.raises(DataError, match=r"a file, not a folder.*folder that it lies in"):
        list(source.rows())


@pytest.mark.parametrize("name", ["polis", "polarized_issues", "ukp_convincing"])
def test_no_other_public_source_takes_a_file(tmp_path, name):
    settings = {"conversation": "all"} if name == "polis" else {}
    for path, found in ((jsonl(tmp_path / "x.jsonl", []), "a file, not a folder"), (tmp_path / "y", "does not exist")):
        with pytest.raises(DataError, match=found):
            list(source_class(name)(path=str(path), **settings).rows())


def test_a_json_file_is_an_array_or_has_a_row_a_line(tmp_path):
    from test_mt_bench_human import judgment

    rows = [judgment("a"), "no object", judgment("b")]
    for name, write in (("human_judgments.json", open), ("human_judgments.json.gz", gzip.open)):
        for text in (json.dumps(rows, indent=1), "".join(json.dumps(row) + "\n" for row in rows)):
            with write(tmp_path / name, "wt", encoding="utf-8-sig") as file:
                file.write(text)
            read = list(MTBenchHuman(path=str(tmp_path)).rows())
            assert [r["user_id"] for r in good(read)] == ["a", "b"]
            assert [(e.reason, e.row, Path(e.file).name) for e in errors(read)] == [("wrong_type", 2, name)]
        with write(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(json.dumps(rows)[:-20])
        with pytest.raises(DataError, match=r"human_judgments.*cut off"):
            list(MTBenchHuman(path=str(tmp_path)).rows())
        (tmp_path / name).unlink()


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "human-0.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"human-0\.parquet.*damaged"):
        list(MTBenchHuman(path=str(tmp_path)).rows())


def copy_of(name, folder):
    """A small local copy of an origin in its own layout, of which every user has pairs; settings to read it by."""
    import test_hh_rlhf
    import test_mt_bench_human
    import test_personalllm
    import test_prism
    import test_tldr
    import test_ultrafeedback_p as uf

    numbers, users = range(30), [f"u{n}" for n in range(30)]
    if name == "prism":
        turns = [
            [test_prism.said(0, f"Q{n}?"), *(test_prism.reply(0, i, f"{n}-{i}", 9 - i, i == 0) for i in (0, 1))]
            for n in numbers
        ]
        talks = [test_prism.conversation(u, f"{u}-{n}", *turns[n]) for u in users for n in numbers]
        test_prism.write(folder, talks, [test_prism.person(u) for u in users])
    elif name == "mt_bench_human":
        rows = [test_mt_bench_human.judgment(u, question=n) for u in users for n in numbers]
        parquet(folder / "data" / "human-00000-of-00001-abc.parquet", rows)
    elif name == "tldr":
        jsonl(folder / "batch3.json", [test_tldr.comparison(u, post=f"Story {n}.") for u in users for n in numbers])
    elif name == "hh_rlhf":
        for kind in ("helpful", "harmless"):
            rows = [test_hh_rlhf.row(f"Yes {n}", "No", f"\n\nHuman: {kind} {n}?\n\nAssistant:") for n in range(200)]
            jsonl(folder / f"{kind}-base" / "train.jsonl", rows)
        return {"users_per_labeller": 5}
    elif name == "ultrafeedback_p":
        both = [("A", "5", "1", "2", "3"), ("B", "1", "5", "4", "3")]
        uf.write(folder, [uf.record(f"Q{n}?", *(uf.completion(*each) for each in both)) for n in range(200)])
        return {"pairs": "drawn", "contested": "published", "users_per_persona": 5}
    else:
        test_personalllm.write(folder)
        return {"n_users": 30}
    return {}


@pytest.mark.parametrize("name", NEW)
def test_every_source_can_be_built(tmp_path, name):
    settings = copy_of(name, tmp_path / "in")
    source = source_class(name)(path=str(tmp_path / "in"), **settings)
    build = read_build(build_dataset(source, tmp_path / "out", progress=False))
    assert build["counts"]["splits"]["train"]["pairs"] > 50
    assert "other_split" not in build["dropped"] and "path" not in build["parameters"]


def test_a_source_leaves_the_writer_s_fields_alone():
    with pytest.raises(TypeError, match="Mine has a field `split`"):

        class Mine(HubSource):
            split: str = "all"


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = copy_of("hh_rlhf", tmp_path / "hh")
    source = source_class("hh_rlhf")(path="~/hh", **settings)
    assert good(source.rows()) and set(source.files) == {"helpful-base/train.jsonl", "harmless-base/train.jsonl"}


@pytest.mark.parametrize("name", NEW)
def test_sources_say_where_they_come_from(name):
    cls = source_class(name)
    assert name in SOURCES and issubclass(cls, HubSource) and cls.name == name
    assert cls.repository.count("/") == 1 and cls.licence and cls.attribution and cls.summary and cls.title


def test_users_get_even_shares():
    from collections import Counter

    counts = Counter(share_out(["a", "b"], 4, n) for n in range(8000))
    assert len(counts) == 8 and min(counts.values()) > 850
    assert {share_out(["a"], 4, n).partition("-")[0] for n in range(50)} == {"a"}
