"""A folder that appears when it is whole, and replaces nothing that it should not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError


def check_destination(out: str | os.PathLike, overwrite: bool) -> None:
    """Refuses to replace anything but a dataset folder, and that only when asked to."""
    out = Path(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"`{out}` is a file: name a folder to make")
    if not any(out.iterdir()):
        return
    if not (out / "build.json").is_file():
        raise ConfigError(f"`{out}` holds files that are no dataset folder: name a new folder")
    if not overwrite:
        raise ConfigError(f"`{out}` exists: pass --overwrite to replace it, or name a new folder")


@contextmanager
def new_folder(out: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty folder beside `out`, which becomes `out` if nothing goes wrong and vanishes otherwise.

    What a killed process leaves is a hidden folder, which the next call for the same `out` removes.

    Raises:
        ConfigError: `out` may not be replaced (see `check_destination`), or cannot be written.
    """
    out = Path(out)
    check_destination(out, overwrite)
    work = out.parent / f".{out.name}.building"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        if error.filename and str(work) not in str(error.filename):
            raise
        raise ConfigError(f"cannot write `{out}`: {error.strerror or error}. Choose another folder") from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if out.exists():
        old = out.parent / f".{out.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        work.rename(out)
        shutil.rmtree(old)
    else:
        work.rename(out)
