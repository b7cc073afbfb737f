"""`pluralrlhf data cache`: looking into the feature cache and making room, without losing or changing a feature."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from pluralrlhf.cli import main
from pluralrlhf.features import FeatureCache
from pluralrlhf.features.maintenance import find_stores
from pluralrlhf.features.store import ShardStore


class HashEncoder:
    name, dim, pooling, max_length, truncated = "hashes", 4, "mean", None, 0

    def __init__(self, fingerprint="a" * 32):
        self.fingerprint, self.seen = fingerprint, []

    def encode_with_flags(self, texts, on_batch=None):
        self.seen += texts
        return np.array([[len(text), ord(text[0]), 1, 2] for text in texts], np.float32), np.zeros(len(texts), bool)


TEXTS = [chr(97 + i % 26) * (i + 1) for i in range(60)]


def embed(root, texts, encoder=None):
    table = FeatureCache(root).embed(texts, encoder or HashEncoder(), progress=False, shard_size=5)
    return table.gather(table.index)


def files(root):
    return ShardStore(root / ("a" * 32)).files()


def data_cache(*args) -> int:
    return main(["data", "cache", *map(str, args)])


def test_list_shows_what_is_there(tmp_path, capsys):
    embed(tmp_path, TEXTS)
    embed(tmp_path, TEXTS[:7], HashEncoder("b" * 32))
    (tmp_path / "not ours").mkdir()
    assert data_cache("list", "--root", tmp_path) == 0
    out = capsys.readouterr().out
    assert "aaaaaaaaaaaa" in out and "bbbbbbbbbbbb" in out and "hashes" in out and "2 encoders" in out
    assert [(info.texts, info.shards) for info in find_stores(tmp_path)] == [(60, 12), (7, 2)]
    assert data_cache("--root", tmp_path / "nowhere") == 0


def test_prune_merges_and_loses_nothing(tmp_path, monkeypatch, capsys):
    before = embed(tmp_path, TEXTS)
    # A writer without a view of the others stores some texts again, in other shards.
    monkeypatch.setattr(ShardStore, "lookup", lambda self, keys: np.full(len(keys), -1))
    with pytest.raises(ValueError, match="disappeared"):
        embed(tmp_path, TEXTS[3:30])
    monkeypatch.undo()
    leftover = files(tmp_path)[0].parent.parent / "tmp" / "left"
    leftover.write_text("x")
    os.utime(leftover, (time.time() - 7200,) * 2)
    reader = FeatureCache(tmp_path).embed(TEXTS, HashEncoder(), progress=False)

    n_files = len(files(tmp_path))
    assert data_cache("prune", "--root", tmp_path) == 0
    assert "freed" in capsys.readouterr().out
    assert len(files(tmp_path)) == 1 < n_files and not leftover.exists()
    assert find_stores(tmp_path)[0].texts == len(TEXTS)
    encoder = HashEncoder()
    np.testing.assert_array_equal(embed(tmp_path, TEXTS, encoder), before)
    assert not encoder.seen
    np.testing.assert_array_equal(reader.gather(reader.index), before)
    assert data_cache("prune", "--root", tmp_path) == 0
    np.testing.assert_array_equal(embed(tmp_path, TEXTS, encoder), before)
    assert not encoder.seen


def test_a_prune_that_is_killed_before_removing_anything_loses_nothing(tmp_path, monkeypatch):
    before = embed(tmp_path, TEXTS)
    first = files(tmp_path)
    monkeypatch.setattr(type(first[0]), "unlink", lambda self, missing_ok=False: None)
    assert data_cache("prune", "--root", tmp_path) == 0
    monkeypatch.undo()
    assert len(files(tmp_path)) == len(first) + 1
    assert data_cache("prune", "--root", tmp_path) == 0
    encoder = HashEncoder()
    np.testing.assert_array_equal(embed(tmp_path, TEXTS, encoder), before)
    assert not encoder.seen


def test_verify_finds_damage_and_prune_removes_it(tmp_path, capsys, caplog):
    before = embed(tmp_path, TEXTS)
    assert data_cache("verify", "--root", tmp_path) == 0
    assert "12 files, 0 damaged" in capsys.readouterr().out
    path = files(tmp_path)[3]
    path.write_bytes(path.read_bytes()[:-1])
    assert data_cache("verify", "--root", tmp_path) == 1
    assert f"damaged: {path}" in capsys.readouterr().out and path.exists()
    assert data_cache("prune", "--root", tmp_path) == 0
    assert not path.exists() and data_cache("verify", "--root", tmp_path) == 0
    np.testing.assert_array_equal(embed(tmp_path, TEXTS), before)


def test_clear_deletes_only_what_was_asked_for(tmp_path, capsys):
    embed(tmp_path, TEXTS)
    embed(tmp_path, TEXTS, HashEncoder("b" * 32))
    (tmp_path / "mine.txt").write_text("keep")
    old = tmp_path / ("b" * 32) / "encoder.json"
    os.utime(old, (time.time() - 10 * 86_400,) * 2)
    assert data_cache("clear", "--root", tmp_path, "--unused_days", 5) == 0
    assert [info.path.name[0] for info in find_stores(tmp_path)] == ["a"]
    assert data_cache("clear", "--root", tmp_path, "--encoder", "aaa") == 0
    assert not find_stores(tmp_path) and (tmp_path / "mine.txt").exists()
    assert data_cache("clear", "--root", tmp_path, "--encoder", "aaa") == 2
    assert "holds no features of 'aaa'" in capsys.readouterr().err
