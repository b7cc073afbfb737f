"""Suites: build, train and evaluate all that a suite file names, going on where an earlier call was stopped.

See `suite_spec.py` for the file and `suite_jobs.py` for what is done once.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data import read_build
from ..errors import ConfigError, PluralRLHFError
from ..files import write_json
from ..locks import FileLocks, lock_number
from .storage import PAIRS, PAIRS_SCHEMA, PER_PAIR, PER_PAIR_SCHEMA, STATES, STATES_SCHEMA, RowWriter
from .suite_jobs import Job, Part, results_key
from .suite_spec import DatasetSpec, SuiteSpec
from .summary import Dataset, baseline_of, collect, command_line, fold_hash, versions, write_results

_RESULTS = 0  # the lock of who writes the results


def run_suite(
    spec: SuiteSpec,
    output_dir: str | Path,
    *,
    n_replicates: int = 1000,
    progress: bool = True,
    command: str | None = None,
    finish: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Runs a suite and writes `results.json` and `per_pair.parquet` of the whole.

    Several processes may do so at once with the same `output_dir`: they share the jobs, and one writes the results.

    Args:
        spec: What to run.
        output_dir: Folder of the results; jobs that are done in it are kept.
        n_replicates: Replicates of the bootstrap.
        progress: Print a line a job, with the time left, on stderr.
        command: What to write down as the command; the process's own by default.
        finish: Called with the results by the process that wrote them, before another one may write there.

    Returns:
        The content of `results.json`.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`output_dir` {folder} is a file: name a folder.")
    if (folder / "build.json").is_file() or (folder / "config.json").is_file():
        raise ConfigError(f"`output_dir` {folder} holds a dataset or a model: name another folder for the results.")
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    locks = FileLocks(folder / "lock")
    try:
        parts = [Part(spec, dataset, fold, folder, placebo) for dataset, placebo, fold in _plan(spec)]
        for part in parts:
            part.check_validation()  # data that is there; what is built later is checked then, before any training
        _Progress(parts, progress, locks).run()
        seconds, finished = time.perf_counter() - start, time.time()
        key, stamp = results_key(parts, n_replicates), folder / "suite.json"
        if not locks.acquire(_RESULTS, wait=False):
            locks.acquire(_RESULTS)
            if stamp.is_file() and stamp.stat().st_mtime > finished and Part.stamp(stamp) == key:
                print(f"{folder}: another process of this suite wrote the results")
                return json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if not all(_done(job) for part in parts for job in part.jobs()):
            raise PluralRLHFError(
                f"A suite with other settings ran in {folder} at the same time and replaced jobs of this one. Give each its "
                "own `output_dir`, and run this command again."
            )
        stamp.unlink(missing_ok=True)
        datasets = _datasets(spec, parts)
        content = _results(spec, datasets, n_replicates, folder, seconds, command or command_line())
        _concatenate(folder, datasets)
        if finish is not None:
            finish(content)
        write_json(stamp, {"key": key})  # last: whoever finds it need not do this again
        return content
    finally:
        locks.close()


def _plan(spec: SuiteSpec) -> Iterator[tuple[DatasetSpec, bool, int]]:
    for dataset in spec.datasets:
        for placebo in (False, True) if dataset.placebo else (False,):
            for fold in dataset.folds:
                yield dataset, placebo, fold


class _Progress:
    """Runs jobs in order and says how long the rest will take: the mean time of the jobs of each kind so far.

    Processes that run the same suite into the same folder share the jobs: each is claimed by a lock, which ends with
    its process.
    """

    def __init__(self, parts: Sequence[Part], shown: bool, locks: FileLocks):
        self.jobs = [(part, job) for part in parts for job in part.jobs()]
        # All data first: what is wrong with a dataset is known before anything is trained.
        self.jobs.sort(key=lambda entry: entry[1].kind != "build")
        self.shown, self.locks = shown, locks
        self.live = shown and sys.stderr.isatty()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.waited = False

    def run(self) -> None:
        pending = [number for number, (_, job) in enumerate(self.jobs) if not _done(job)]
        if self.shown and len(pending) < len(self.jobs):
            self._say(f"{len(self.jobs) - len(pending)} of {len(self.jobs)} jobs are done already")
        part = None
        while pending:
            number, others = self._claim(pending)
            if number is None:
                if others:
                    # What is left is theirs, or waits for it: until the first of them is through, or has died.
                    if not self.waited:
                        self._say("waiting for jobs of other processes")
                    self.waited = True
                    self.locks.acquire(others[0])
                    self.locks.release(others[0])
                elif pending:
                    raise PluralRLHFError(
                        "Files of finished jobs disappeared, or a suite with other settings runs in the same folder. Give "
                        "each its own `output_dir`, and run this command again."
                    )
                continue
            if part is not None and part is not self.jobs[number][0]:
                part.forget()
            part = self.jobs[number][0]
            try:
                self._work(number, pending, 1 + len(others))
            finally:
                self.locks.release(self._lock(number))
        if part is not None:
            part.forget()

    def _claim(self, pending: list[int]) -> tuple[int | None, list[int]]:
        """The first job that can be done now, with its lock taken, and the locks before it that others hold; what is
        done leaves `pending`."""
        others = []
        for number in list(pending):
            job, lock = self.jobs[number][1], self._lock(number)
            if not job.ready():
                continue
            if not self.locks.acquire(lock, wait=False):
                others.append(lock)
                continue
            pending.remove(number)
            if not job.done():
                return number, others
            self.locks.release(lock)
        return None, others

    def _lock(self, number: int) -> int:
        return lock_number(self.jobs[number][1].title)

    def _work(self, number: int, pending: Sequence[int], n_processes: int) -> None:
        job, start = self.jobs[number][1], time.perf_counter()
        head = f"[{number + 1:>{len(str(len(self.jobs)))}}/{len(self.jobs)}] {job.title}"
        self._say(f"{head} ...", live=True)
        try:
            job.work(lambda text: self._say(f"{head}: {text}", live=True))
        except PluralRLHFError as error:
            # Which of many jobs it was; the others' results are kept.
            error.args = (f"{job.title}: {error}",)
            raise
        taken = time.perf_counter() - start
        self.seconds[job.kind].append(taken)
        left = self._left(pending) / n_processes
        self._say(f"{head}  {taken:.1f} s" + (f", about {_time(left)} left" if left else ""))

    def _left(self, pending: Sequence[int]) -> float:
        mean = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        longest = max(mean.values())
        return sum(mean.get(self.jobs[number][1].kind, longest) for number in pending)

    def _say(self, text: str, live: bool = False) -> None:
        if not self.shown or (live and not self.live):
            return
        start = "\r\x1b[K" if self.live else ""
        print(f"{start}{text}", end="" if live else "\n", file=sys.stderr, flush=True)


def _done(job: Job) -> bool:
    return job.ready() and job.done()


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


# The whole


def _datasets(spec: SuiteSpec, parts: Sequence[Part]) -> list[Dataset]:
    """The parts put together: folds of one dataset, and its placebo as a dataset of its own."""
    out: list[Dataset] = []
    for dataset in spec.datasets:
        for placebo in (False, True):
            these = [part for part in parts if part.dataset is dataset and part.placebo == placebo]
            if not these:
                continue
            runs = [run for part in these for run in part.runs()]
            without = [name for name in spec.methods if not placebo and name not in spec.personalised(dataset)]
            builds = [read_build(part.data) for part in these]
            folders = [str(part.data) for part in these]
            hashes = [part.sha256 for part in these]
            info = {
                "data": folders[0] if len(folders) == 1 else folders,
                "data_sha256": fold_hash(hashes),
                "dropped": builds[0].get("dropped", {}),
                "counts": builds[0].get("counts", {}),
                "fold_data": [
                    {"fold": part.fold, "data": data, "sha256": sha} for part, data, sha in zip(these, folders, hashes)
                ]
                if len(these) > 1
                else [],
            }
            out.append(
                Dataset(
                    name=dataset.name + (" (placebo)" if placebo else ""),
                    sources=[source for source, _ in runs],
                    runs=[record for _, record in runs],
                    baseline=baseline_of(without),
                    ceiling=next((next(iter(r["methods"])) for _, r in runs if r.get("reference")), None),
                    placebo_of=dataset.name if placebo else None,
                    info=info,
                )
            )
    return out


def _results(
    spec: SuiteSpec, datasets: Sequence[Dataset], n_replicates: int, folder: Path, seconds: float, command: str
) -> dict[str, Any]:
    start = time.perf_counter()
    by_name: dict[str, list[dict[str, Any]]] = {}
    # A placebo's gain is part of the verdicts on the dataset that it was made from.
    for dataset in sorted(datasets, key=lambda d: d.placebo_of is None):
        gain = {}
        for result in by_name.get(f"{dataset.name} (placebo)", [])[:1]:
            gain = {
                split: {k: values["gain"] for k, values in found["n_context"].items() if "gain" in values}
                for split, found in result["splits"].items()
            }
        by_name[dataset.name] = collect(dataset, command=command, n_replicates=n_replicates, placebo_gain=gain)
    results = [result for dataset in datasets for result in by_name[dataset.name]]
    return write_results(
        folder,
        results,
        name=spec.name,
        description=spec.description,
        command=command,
        versions=versions(),
        timing={"jobs_seconds": seconds, "bootstrap_seconds": time.perf_counter() - start},
    )


def _concatenate(folder: Path, datasets: Sequence[Dataset]) -> None:
    """Copies the rows of all jobs into one file each, with the dataset and the fold, a row group at a time."""
    for name, schema in ((PER_PAIR, PER_PAIR_SCHEMA), (PAIRS, PAIRS_SCHEMA), (STATES, STATES_SCHEMA)):
        schema = schema.append(pa.field("dataset", pa.string())).append(pa.field("fold", pa.int64()))
        with RowWriter(folder / name, schema) as writer:
            for dataset in datasets:
                seen_folds: set[int] = set()
                for source in dataset.sources:
                    # The pairs of a fold are the same for every method.
                    if name == PAIRS and source.fold in seen_folds:
                        continue
                    seen_folds.add(source.fold)
                    file = pq.ParquetFile(source.folder / name)
                    for number in range(file.num_row_groups):
                        table = file.read_row_group(number)
                        table = table.append_column("dataset", pa.repeat(dataset.name, len(table)))
                        fold = pa.repeat(pa.scalar(source.fold, pa.int64()), len(table))
                        writer.write(table.append_column("fold", fold).cast(schema))
                        writer.flush()
