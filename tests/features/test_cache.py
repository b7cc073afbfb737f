"""The feature cache: no text encoded twice, the same bits fresh and cached, whatever happens to the process or disk."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_backbone, make_tokenizer

from pluralrlhf.errors import ConfigError, DataError, PluralRLHFError
from pluralrlhf.features import FeatureCache, TextEncoder, load_encoder
from pluralrlhf.features.store import ShardStore

# An encoder without a model, so that subprocesses start at once. It logs what it encodes.
FAKE_ENCODER = textwrap.dedent(
    """
    import hashlib, os, time
    import numpy as np

    class FakeEncoder:
        name, dim, pooling, max_length, truncated = "fake", 8, "mean", 20, 0

        def __init__(self, fingerprint="f" * 32, log=None, delay=0.0):
            self.fingerprint, self.log, self.delay = fingerprint, log, delay
            self.seen = []

        def encode_with_flags(self, texts, on_batch=None):
            self.seen += texts
            time.sleep(self.delay)
            if self.log:
                with open(self.log, "a") as file:
                    file.write("".join(text + "\\n" for text in texts))
            rows = [np.frombuffer(hashlib.blake2b(t.encode(), digest_size=8).digest(), np.uint8) / 7 for t in texts]
            return np.array(rows, dtype=np.float32), np.array([len(text) > self.max_length for text in texts])
    """
)
exec(FAKE_ENCODER)

TEXTS = [f"text number {i} " + "x" * (i % 13) for i in range(100)]


def expected(texts) -> np.ndarray:
    return FakeEncoder().encode_with_flags(texts)[0].astype(np.float16).astype(np.float32)  # noqa: F821


def fake(**kwargs):
    return FakeEncoder(**kwargs)  # noqa: F821


def embed(root, texts=TEXTS, encoder=None, **kwargs):
    return FeatureCache(root).embed(texts, encoder or fake(), progress=False, **{"shard_size": 10, **kwargs})


def features(table) -> np.ndarray:
    return table.gather(table.index)


def shards(root) -> list[Path]:
    return sorted(Path(root).glob("*/shards/*.safetensors"))


def contents(root) -> dict[str, str]:
    """Shards by the hash of their keys (their number says only in which order they were written)."""
    return {path.stem.split("-")[1]: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards(root)}


# What a table is


def test_each_distinct_text_is_encoded_once(tmp_path):
    encoder = fake()
    texts = ["b", "a", "b", "c", "a", "a"]
    table = embed(tmp_path, texts, encoder)
    assert table.index.tolist() == [0, 1, 0, 2, 1, 1] and table.index.dtype == np.int64
    assert len(table) == 3 and sorted(encoder.seen) == ["a", "b", "c"]
    np.testing.assert_array_equal(features(table), expected(texts))
    assert table.gather([[0, 2, 1], [1, 1, 1]]).shape == (2, 3, 8) and table.gather(0).shape == (8,)
    assert table.gather([0]).dtype == np.float32 and table.table.dtype == np.float16
    np.testing.assert_array_equal(table.table[table.index], features(table).astype(np.float16))


def test_fresh_and_cached_features_are_the_same_bits(tmp_path):
    encoder = TextEncoder.from_model(make_backbone("qwen2"), make_tokenizer())
    fresh = features(embed(tmp_path, encoder=encoder))
    np.testing.assert_array_equal(features(embed(tmp_path, encoder=encoder)), fresh)
    np.testing.assert_allclose(fresh, encoder.encode(TEXTS), rtol=2e-3, atol=1e-3)


def test_only_missing_texts_are_encoded(tmp_path):
    embed(tmp_path, TEXTS[:60])
    encoder = fake()
    table = embed(tmp_path, TEXTS[::-1], encoder)
    assert sorted(encoder.seen) == sorted(TEXTS[60:])
    np.testing.assert_array_equal(features(table), expected(TEXTS[::-1]))
    again = fake()
    embed(tmp_path, TEXTS, again)
    assert not again.seen


def test_any_iterable_and_any_order(tmp_path):
    a = features(embed(tmp_path / "a", iter(TEXTS)))
    b = features(embed(tmp_path / "b", TEXTS[::-1]))
    np.testing.assert_array_equal(a, b[::-1])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert embed(tmp_path / "a", []).gather(np.empty((0, 2), int)).shape == (0, 2, 8)


def test_unicode_and_odd_texts(tmp_path):
    texts = ["", " ", "é", "e\u0301", "🙂", "a\0", "a", "line\nbreak", "x" * 100_000]
    np.testing.assert_array_equal(features(embed(tmp_path, texts)), expected(texts))


def test_encoders_do_not_share_features(tmp_path):
    embed(tmp_path, encoder=fake(fingerprint="a" * 32))
    other = fake(fingerprint="b" * 32)
    embed(tmp_path, encoder=other)
    assert len(other.seen) == len(TEXTS)


def test_cut_texts_are_counted_from_the_cache_too(tmp_path):
    texts = ["short", "long " * 10, "longer " * 10, "long " * 10]
    assert embed(tmp_path, texts).truncated == 2
    assert embed(tmp_path, texts).truncated == 2


def test_a_large_spool_goes_through_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("pluralrlhf.features.spool._SPOOL_MEMORY", 100)
    monkeypatch.setattr("pluralrlhf.features.cache._SCAN_BLOCK", 7)
    encoder = fake()
    np.testing.assert_array_equal(features(embed(tmp_path, TEXTS * 3, encoder)), expected(TEXTS * 3))
    assert len(encoder.seen) == len(TEXTS)


def test_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "there"))
    assert FeatureCache().root == tmp_path / "there" / "features"


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="text 1 is a NoneType"):
        embed(tmp_path, ["a", None])
    with pytest.raises(DataError, match="one string"):
        embed(tmp_path, "a")
    with pytest.raises(ConfigError, match="`shard_size`: found 0"):
        embed(tmp_path, shard_size=0)
    with pytest.raises(ConfigError, match="`num_proc`: found 0"):
        embed(tmp_path, num_proc=0)


def test_features_beyond_half_precision_are_an_error(tmp_path):
    encoder = fake()
    encoder.encode_with_flags = lambda texts, on_batch=None: (
        np.full((len(texts), 8), 1e6),
        np.zeros(len(texts), bool),
    )
    with pytest.raises(PluralRLHFError, match="half precision cannot hold"):
        embed(tmp_path, encoder=encoder)
    assert not shards(tmp_path)


@pytest.mark.slow
def test_several_processes_encode_the_same_features(tmp_path):
    encoder = TextEncoder.from_model(make_backbone("qwen2"), make_tokenizer(), max_length=12)
    one = embed(tmp_path / "one", encoder=encoder)
    two = embed(tmp_path / "two", encoder=encoder, num_proc=2)
    np.testing.assert_array_equal(features(one), features(two))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one.truncated == two.truncated > 0


# Kills, company, damage, a full disk


def run_in_background(root, log, *, delay=0.0, first=0):
    code = FAKE_ENCODER + textwrap.dedent(
        f"""
        from pluralrlhf.features.cache import FeatureCache
        texts = {TEXTS!r}
        table = FeatureCache({str(root)!r}).embed(
            texts, FakeEncoder(log={str(log)!r}, delay={delay}), progress=False, shard_size=10
        )
        assert np.array_equal(table.gather(table.index), FakeEncoder().encode_with_flags(texts)[0].astype(np.float16))
        """
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    process = run_in_background(tmp_path / "killed", tmp_path / "log", delay=0.1)
    wait_for(lambda: len(shards(tmp_path / "killed")) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    finished = len(shards(tmp_path / "killed"))
    assert 3 <= finished < 10
    done = {key for path in shards(tmp_path / "killed") for key in ShardKeys(path)}

    encoder = fake()
    table = embed(tmp_path / "killed", encoder=encoder)
    assert len(encoder.seen) == len(TEXTS) - 10 * finished
    assert not {hashlib.blake2b(text.encode(), digest_size=16).digest() for text in encoder.seen} & done
    np.testing.assert_array_equal(features(table), features(embed(tmp_path / "whole")))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def ShardKeys(path):
    from safetensors.numpy import load_file

    return [bytes(row) for row in load_file(path)["keys"]]


@pytest.mark.slow
def test_a_killed_run_of_a_real_encoder_ends_with_the_same_bits(tmp_path):
    encoder = load_encoder("offline", device="cpu")
    texts = [f"{text} {text[i % 7 :]}" for i, text in enumerate(TEXTS)]
    whole = features(embed(tmp_path / "whole", texts, encoder))

    class Stop(Exception):
        pass

    original, calls = encoder.encode_with_flags, []

    def stop_after_three(*args):
        calls.append(1)
        if len(calls) > 3:
            raise Stop
        return original(*args)

    encoder.encode_with_flags = stop_after_three
    with pytest.raises(Stop):
        embed(tmp_path / "stopped", texts, encoder)
    encoder.encode_with_flags = original
    np.testing.assert_array_equal(features(embed(tmp_path / "stopped", texts, encoder)), whole)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_two_processes_share_the_work_and_leave_one_correct_cache(tmp_path):
    processes = [run_in_background(tmp_path / "both", tmp_path / f"log{i}", delay=0.05) for i in range(2)]
    for process in processes:
        assert process.wait(120) == 0, process.stderr.read()
        process.stderr.close()
    logs = [(tmp_path / f"log{i}").read_text().splitlines() if (tmp_path / f"log{i}").exists() else [] for i in (0, 1)]
    assert sorted(logs[0] + logs[1]) == sorted(TEXTS), "a text was encoded twice, or never"
    whole = embed(tmp_path / "whole")
    assert contents(tmp_path / "both") == contents(tmp_path / "whole")
    np.testing.assert_array_equal(features(embed(tmp_path / "both")), features(whole))
    assert not list((tmp_path / "both").glob("*/tmp/*"))


def test_writers_without_locks_still_leave_a_correct_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("pluralrlhf.locks.fcntl", None)
    first, second = FeatureCache(tmp_path), FeatureCache(tmp_path)
    a = first.embed(TEXTS[:50], fake(), progress=False, shard_size=10)
    # A writer that looked before the other one wrote: overlapping shards of other texts.
    monkeypatch.setattr(ShardStore, "refresh", lambda self: None)
    with pytest.raises(PluralRLHFError, match="disappeared"):
        second.embed(TEXTS[25:75], fake(), progress=False, shard_size=7)
    monkeypatch.undo()
    np.testing.assert_array_equal(features(embed(tmp_path, TEXTS[:75])), expected(TEXTS[:75]))
    np.testing.assert_array_equal(features(a), expected(TEXTS[:50]))


@pytest.mark.parametrize("damage", ["cut", "vectors", "keys", "header", "empty"])
def test_a_damaged_shard_is_noticed_and_made_again(tmp_path, caplog, damage):
    whole = features(embed(tmp_path))
    path = shards(tmp_path)[4]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-5:]
    elif damage == "vectors":
        content[-5] ^= 1
    elif damage == "keys":
        content[8 + int.from_bytes(content[:8], "little") + 3] ^= 1
    elif damage == "header":
        content[20] ^= 0xFF
    else:
        content.clear()
    path.write_bytes(content)
    encoder = fake()
    with caplog.at_level(logging.WARNING):
        table = embed(tmp_path, encoder=encoder)
    assert len(encoder.seen) == 10 and "is damaged" in caplog.text and path.name in caplog.text
    np.testing.assert_array_equal(features(table), whole)
    encoder = fake()
    embed(tmp_path, encoder=encoder)
    assert not encoder.seen


def test_a_disk_that_is_too_small_is_known_before_encoding(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    encoder = fake()
    with pytest.raises(PluralRLHFError, match=r"No room .*0\.0 MB more .*PLURALRLHF_CACHE.*data cache prune"):
        embed(tmp_path, encoder=encoder)
    assert not encoder.seen


def test_a_disk_that_fills_up_keeps_what_was_finished(tmp_path):
    code = FAKE_ENCODER + textwrap.dedent(
        f"""
        import resource, sys
        from pluralrlhf.errors import PluralRLHFError
        from pluralrlhf.features.cache import FeatureCache
        from pluralrlhf.features.store import ShardStore
        write = ShardStore.write
        def write_until_full(self, *args):
            if len(self.files()) == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # the system now refuses larger files
            return write(self, *args)
        ShardStore.write = write_until_full
        try:
            FeatureCache({str(tmp_path)!r}).embed({TEXTS!r}, FakeEncoder(), progress=False, shard_size=10)
        except PluralRLHFError as error:
            sys.exit(str(error))
        """
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"No room for features in {tmp_path}" in result.stderr and "PLURALRLHF_CACHE" in result.stderr
    assert len(shards(tmp_path)) == 2 and not list(tmp_path.glob("*/tmp/*"))
    encoder = fake()
    np.testing.assert_array_equal(features(embed(tmp_path, encoder=encoder)), expected(TEXTS))
    assert len(encoder.seen) == len(TEXTS) - 20


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PluralRLHFError, match="cannot be written"):
        embed(tmp_path / "file")


def test_memory_does_not_grow_with_the_texts(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr("pluralrlhf.features.spool._SPOOL_MEMORY", 2**20)
    monkeypatch.setattr("pluralrlhf.features.cache._SCAN_CHARACTERS", 2**20)

    def texts(n):
        return (f"{i} " + "y" * 1000 for i in range(n))

    peaks = []
    for n in (5_000, 25_000):
        tracemalloc.start()
        table = embed(tmp_path / str(n), texts(n), QuietEncoder(), shard_size=1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(table) == n
    assert peaks[1] - peaks[0] < 20_000 * 300, "20 MB more of texts were kept in memory"


class QuietEncoder:
    name, dim, pooling, max_length, truncated, fingerprint = "quiet", 8, "mean", None, 0, "e" * 32

    def encode_with_flags(self, texts, on_batch=None):
        return np.zeros((len(texts), self.dim), np.float32), np.zeros(len(texts), bool)
