"""Locks between processes: one holds, others see it, and a kill gives back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pluralrlhf import locks
from pluralrlhf.locks import FileLocks, lock_number

HOLD = """
import sys, time
from pluralrlhf.locks import FileLocks
held = FileLocks(sys.argv[1])
assert held.acquire(7)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(locks.fcntl is None, reason="this system has no locks")
def test_a_lock_is_anothers_until_that_process_dies(tmp_path):
    path = tmp_path / "new" / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    mine = FileLocks(path)
    assert not mine.acquire(7, wait=False) and mine.acquire(8, wait=False)
    process.kill()
    assert mine.acquire(7), "waits for the dead process's lock, and gets it"
    process.wait()
    mine.close()


def test_without_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    assert FileLocks(tmp_path / "lock").acquire(1, wait=False) and not (tmp_path / "lock").exists()


def test_names_have_numbers_of_their_own():
    numbers = {lock_number(f"train {i}") for i in range(1000)}
    assert len(numbers) == 1000 and min(numbers) > 0 and max(numbers) < 2**63
