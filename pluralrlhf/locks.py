"""Locks between processes that share a folder: byte ranges of one file, given back by the system when a process dies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: without locks two processes may do the same work, each of them whole
    fcntl = None


class FileLocks:
    """Many numbered locks in one file; held by the process, not by the object or the thread.

    Args:
        path: The file; it and its folder are made when a lock is first taken.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: int | None = None

    def acquire(self, number: int, wait: bool = True) -> bool:
        """Takes a lock; true if it was taken, or if this system or disk has no locks."""
        if fcntl is None:
            return True
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN) and not wait:
                return False
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        return True

    def release(self, number: int) -> None:
        """Gives a lock back."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def release_all(self) -> None:
        """Gives all locks back, so that an interrupted run does not keep other processes waiting."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 0, 0)

    def close(self) -> None:
        """Gives all locks back and closes the file, which drops those of other objects of this process on it, too."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def lock_number(name: str) -> int:
    """A number from 1 that stands for a name; 0 is left for what has none."""
    return 1 + int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % (2**62)
