"""A public dataset that lies on the Hub: its files at one revision, or a local copy of them, read strictly and streamed."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError
from ..schema import RowError, composed, kind
from ..splits import hash64
from . import Source
from .origin import check_folder, read_json, read_jsonl, sha256

Wanted = str | tuple[str, ...]  # a pattern, or alternative ones

_SHOWN = 6  # file names that an error gives at most
_SKIP = "Correct it, or drop such rows with --skip_invalid"


@dataclass
class HubSource(Source):
    """A source whose files are on the Hub. Subclasses name the repository and turn records into pairs.

    Attributes:
        repository: `owner/name` on the Hub.
        revision: Commit, tag or branch of it; subclasses make it a setting.
        licence, attribution, title: For the dataset card.
        files: File name -> sha256 of what was read.
        commits: Repository -> commit that was read, where it came from the Hub.
        missing: Names of the origin's files that were wanted and that the local copy lacks, in order.
        one_file: Whether the source reads one thing only, so that `path` may be a file.
    """

    repository: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    attribution: ClassVar[str] = ""
    title: ClassVar[str] = ""

    path: str | None = field(
        default=None, metadata={"help": "local copy of the origin's files: the folder (default: from the Hub)"}
    )
    revision: ClassVar[str] = "main"
    one_file: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.files: dict[str, str] = {}
        self.commits: dict[str, str] = {}
        self.missing: dict[str, None] = {}

    @property
    def label(self) -> str:
        return self.path or self.repository

    def describe(self) -> dict[str, Any]:
        versions = [f"{repository}@{commit}" for repository, commit in sorted(self.commits.items())]
        return {
            "source": self.name,
            "title": self.title,
            "origin": f"https://huggingface.co/datasets/{self.repository}",
            **({"version": ", ".join(versions)} if versions else {}),
            "sha256": dict(sorted(self.files.items())),
            **({"missing_files": list(self.missing)} if self.missing else {}),
            "parameters": {
                f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("path", "origin_url")
            },
            "licence": self.licence,
            "attribution": self.attribution,
            "notes": self.notes(),
        }

    def notes(self) -> str:
        """Sentences for the dataset card."""
        return ""

    def find(self, *wanted: Wanted, repository: str | None = None, revision: str | None = None) -> list[Path]:
        """The files that are wanted, in this order, from the local copy or the Hub; each is hashed for `build.json`.

        Args:
            wanted: Paths in the repository, with `*`, each also with `.gz`. A tuple names alternative layouts of the same
                rows: all files of the first that is there count.
            repository, revision: Another dataset than this source's own.

        Raises:
            DataError: None of them is there, or `path` is a file where the source reads several.
        """
        repository, revision = repository or self.repository, revision or self.revision
        if self.path is not None:
            found = self._local(wanted)
            self.missing.update(dict.fromkeys(_layouts(one)[0] for one in wanted if not self._local((one,))))
        else:
            found, self.commits[repository] = hub_files(repository, revision, wanted)
        if not found:
            patterns = [f"`{pattern}`" for one in wanted for pattern in _layouts(one)]
            looked_for = " or ".join(patterns[:_SHOWN]) + " or …" * (len(patterns) > _SHOWN)
            remedy = "Point `--path` at a folder in the origin's layout" if self.path else "Check `--revision`"
            raise DataError(f"no {looked_for} here", remedy, file=self.path or f"{repository}@{revision}")
        for file in found:
            if (name := self._name(file)) not in self.files:
                self.files[name] = sha256(file)
        return found

    def records(self, files: Sequence[Path]) -> Iterator[tuple[Path, int, dict[str, Any] | RowError]]:
        """`(file, row number, record or the error in its place)` of JSON Lines, JSON and parquet files."""
        for file in files:
            json = file.name.removesuffix(".gz").endswith(".json")
            read = read_parquet if file.suffix == ".parquet" else read_json if json else read_jsonl
            for number, record in read(file):
                self.tick()
                yield file, number, record.at(str(file), number) if isinstance(record, RowError) else record

    def _local(self, wanted: Sequence[Wanted]) -> list[Path]:
        if self.one_file and Path(self.path).is_file():
            return [Path(self.path)]
        return local_files(self.path, wanted)

    def _name(self, file: Path) -> str:
        """The file's name below the copy, without `.gz` (whose packing does not count)."""
        if self.path is not None and Path(self.path).is_dir():
            return file.relative_to(self.path).as_posix().removesuffix(".gz")
        parts = file.parts
        below = parts[parts.index("snapshots") + 2 :] if "snapshots" in parts else parts[-1:]
        return "/".join(below).removesuffix(".gz")


def _layouts(wanted: Wanted) -> tuple[str, ...]:
    return (wanted,) if isinstance(wanted, str) else wanted


def _choose(wanted: Sequence[Wanted], matching: Callable[[str], Iterable[str]]) -> list[str]:
    """Names of the files of the first layout of each that has any; a plain file hides its own `.gz`."""
    chosen: dict[str, None] = {}
    for one in wanted:
        for pattern in _layouts(one):
            plain = sorted(matching(pattern))
            packed = sorted(name for name in matching(f"{pattern}.gz") if name.removesuffix(".gz") not in plain)
            if plain or packed:
                chosen.update(dict.fromkeys(plain + packed))
                break
    return list(chosen)


def local_files(path: str, wanted: Sequence[Wanted]) -> list[Path]:
    """The files below a folder that are wanted (see `HubSource.find`)."""
    check_folder(path)
    root = Path(path)

    def matching(pattern: str) -> list[str]:
        return [file.relative_to(root).as_posix() for file in root.glob(pattern) if file.is_file()]

    return [root / name for name in _choose(wanted, matching)]


def hub_files(repository: str, revision: str, wanted: Sequence[Wanted]) -> tuple[list[Path], str]:
    """Downloads what matches, or finds it in the Hub's cache; gives the files and the commit they belong to.

    No code of the repository is run: the files are read as they are.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().dataset_info(repository, revision=revision)
        names = sorted(sibling.rfilename for sibling in info.siblings or [])
        chosen = _choose(wanted, lambda pattern: fnmatch.filter(names, pattern))
        download = {"repo_id": repository, "repo_type": "dataset", "revision": info.sha}
        return [Path(hf_hub_download(filename=name, **download)) for name in chosen], info.sha
    except Exception as error:  # of the network, the Hub, its permissions: always the reader's to fix
        message = str(error).strip().partition("\n")[0][:200]
        found = f"the Hub dataset cannot be read ({type(error).__name__}: {message})"
        remedy = "Check the connection and `--revision`, or download it and point `--path` at the folder"
        raise DataError(found, remedy, file=f"{repository}@{revision}") from None


def read_parquet(path: Path, rows: int = 256) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(row, record)` of a parquet file, some hundred rows in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(rows):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        found = f"the file is damaged or no parquet ({type(error).__name__})"
        raise DataError(found, "Fetch it again", file=str(path), row=number + 1) from None


def cell(record: dict, column: str, types: type | tuple[type, ...], path: Path, row: int) -> Any:
    """A record's value (`a.b` looks into an object) that must be of a type; raises the `RowError` to yield."""
    where = {"raw": record, "file": str(path), "row": row, "column": column}
    value: Any = record
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            raise RowError("missing_column", "the column is missing", _SKIP, **where)
        value = value[part]
    types = types if isinstance(types, tuple) else (types,)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        names = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}
        expected = " or ".join(names.get(one, one.__name__) for one in types)
        raise RowError("wrong_type", f"{kind(value)} where {expected} is expected", _SKIP, **where)
    return value


def wording(prefix: str, *texts: str) -> str:
    """Id of texts by their wording: case, white space and Unicode's coding do not count."""
    return f"{prefix}-{hash64(*(' '.join(composed(text).casefold().split()) for text in texts)):016x}"


def share_out(names: Sequence[str], per_name: int, *key: object) -> str:
    """One of `per_name` users of each of `names` (or of all together, where several are given), drawn by hash."""
    number = hash64("user", *key) % (per_name * len(names))
    return f"{names[number // per_name]}-{number % per_name:04d}"
