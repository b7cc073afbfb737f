"""Puts runs of one dataset together: the objects of `results.json`, and what a report needs beside them."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import write_json
from .bootstrap import CrossedBootstrap
from .results import DEFINITIONS, bootstrap_of, method_results
from .split_scores import ScoreReader
from .storage import RUN, SCHEMA_VERSION, Source, release_memory, system_memory
from .verdicts import knows, reference_title, verdict

RESULTS = "results.json"
_PACKAGES = ("pluralrlhf", "torch", "transformers", "trl", "datasets", "sentence-transformers", "numpy", "pyarrow")


@dataclass
class Dataset:
    """All that was evaluated on one dataset.

    Args:
        name: Its name in tables.
        sources: Where the rows lie.
        runs: `run.json` of each run.
        baseline: Method without users that others are compared with.
        ceiling: Method that knows what there is to know.
        placebo_of: Name of the dataset that this one is the placebo of.
        info: More keys of its results: `data`, `data_sha256`, `folds`, `dropped`.
    """

    name: str
    sources: list[Source]
    runs: list[dict[str, Any]]
    baseline: str | None = None
    ceiling: str | None = None
    placebo_of: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def methods(self) -> dict[str, dict[str, Any]]:
        """Method to `seeds`, `models` and `uses_context`, over all runs."""
        out: dict[str, dict[str, Any]] = {}
        for run in self.runs:
            for name, entry in run["methods"].items():
                known = out.setdefault(name, {"seeds": [], "models": [], "uses_context": entry["uses_context"]})
                for key in ("seeds", "models"):
                    known[key] += [value for value in entry[key] if value not in known[key]]
        return out

    def splits(self) -> list[str]:
        return list(dict.fromkeys(split for run in self.runs for split in run["splits"]))


def baseline_of(without: Sequence[str]) -> str | None:
    """The method without users that gains are counted from: `btl`, else the first there is."""
    return "btl" if "btl" in without else next(iter(without), None)


@system_memory()
def collect(
    dataset: Dataset,
    *,
    command: str,
    n_replicates: int = 1000,
    seed: int = 0,
    placebo_gain: dict[str, dict] | None = None,
    progress=None,
) -> list[dict[str, Any]]:
    """The results of every method on one dataset, in the schema of `results.json`.

    Args:
        dataset: What was evaluated.
        command: The command behind it.
        n_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        placebo_gain: Split to K to the gain of a method trained on the placebo of this dataset.
        progress: Called after each method and split.
    """
    methods = dataset.methods()
    order = sorted(methods, key=lambda name: (name == dataset.ceiling, name != dataset.baseline))
    results = {name: _frame(dataset, name, methods[name], command) for name in order}
    for split in dataset.splits():
        _add_split(results, order, dataset, split, n_replicates, seed, progress)
        release_memory()
    for name in order:
        results[name]["verdicts"] = _verdicts(results, name, dataset, placebo_gain or {})
    return [results[name] for name in order if results[name]["splits"]]


def _add_split(results, order, dataset: Dataset, split: str, n_replicates: int, seed: int, progress) -> None:
    """Adds one split to the results of every method: one method's scores at a time, beside those it is compared with."""
    reader = ScoreReader(dataset.sources, split)
    compared = reader.load({dataset.baseline, dataset.ceiling} - {None}, own=True)
    bootstraps: dict[int | None, CrossedBootstrap] = {}
    folds = np.unique(reader.pairs.groups).tolist()
    for name in order:
        release_memory()
        scores = compared.beside(reader.load({name}))
        if name not in scores.seeds:
            continue
        known = dataset.ceiling in scores.seeds and knows(dataset.ceiling, split)
        options = {
            "baseline": dataset.baseline if dataset.baseline in scores.seeds else None,
            "ceiling": dataset.ceiling if known else None,
        }
        for fold in [None, *(folds if len(folds) > 1 else [])]:
            these = scores if fold is None else scores.of_fold(fold)
            # Methods share the draws, and the tables of who shares what.
            if fold not in bootstraps:
                bootstraps[fold] = bootstrap_of(these, n_replicates, seed)
            metrics, controls = method_results(these, name, bootstrap=bootstraps[fold], **options)
            if fold is not None:
                results[name]["folds"].setdefault(str(fold), {})[split] = {"n_context": metrics}
                continue
            for k, values in metrics.items():
                values.update(_context(dataset.runs, name, split, k))
            results[name]["splits"][split] = {"n_context": metrics}
            if controls:
                results[name]["controls"][split] = controls
        if progress is not None:
            progress()


def _frame(dataset: Dataset, name: str, entry: dict[str, Any], command: str) -> dict[str, Any]:
    models = [model for model in entry["models"] if model is not None]
    runs = [run for run in dataset.runs if name in run["methods"]]
    timing = {
        "evaluate_seconds": sum(run["timing"]["evaluate_seconds"] for run in runs),
        "scored_pairs_per_second": max((run["timing"]["scored_pairs_per_second"] for run in runs), default=None),
        "new_user_ms": next((run["timing"]["new_user_ms"].get(name) for run in runs), None),
        "train_seconds": [run["timing"]["train_seconds"] for run in runs if "train_seconds" in run["timing"]],
    }
    return {
        "schema": SCHEMA_VERSION,
        "dataset": dataset.name,
        "method": name,
        "model": models[0] if len(models) == 1 else models or None,
        "data": dataset.info.get("data"),
        "data_sha256": dataset.info.get("data_sha256"),
        "seeds": entry["seeds"],
        "uses_context": entry["uses_context"],
        "baseline": dataset.baseline,
        "ceiling": dataset.ceiling,
        "placebo_of": dataset.placebo_of,
        "command": command,
        "versions": versions(),
        "splits": {},
        "controls": {},
        "folds": {},
        "verdicts": {},
        "timing": timing,
        "dropped": dataset.info.get("dropped", {}),
        "counts": dataset.info.get("counts", {}),
        "fold_data": dataset.info.get("fold_data", []),
        "evaluation_seed": runs[0]["evaluation_seed"] if runs else 0,
    }


def _context(runs: Sequence[dict[str, Any]], method: str, split: str, k: str) -> dict[str, dict[str, float]]:
    """Pairs and distinct items behind k, averaged over runs (folds differ, seeds do not)."""
    found = [
        run["context"][split][k] for run in runs if method in run["methods"] and k in run["context"].get(split, {})
    ]
    keys = found[0] if found else ()
    return {
        f"mean_{key}" if key != "relabelled_coverage" else key: {"value": _mean(f[key] for f in found)} for key in keys
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _verdicts(results: dict[str, dict], name: str, dataset: Dataset, placebo_gain: dict[str, dict]) -> dict[str, dict]:
    out = {}
    for split, found in results[name]["splits"].items():
        sizes = found["n_context"]
        k = max(sizes, key=int)
        reference = dataset.ceiling if knows(dataset.ceiling, split) else None
        ceiling = results.get(reference, {}).get("splits", {}).get(split, {}).get("n_context", {}).get(k, {})
        out[split] = {
            "n_context": int(k),
            **verdict(
                sizes[k],
                results[name]["controls"].get(split, {}).get(k),
                uses_context=results[name]["uses_context"],
                ceiling_gain=ceiling.get("gain_over_btl") if name != dataset.ceiling else None,
                ceiling=reference_title(dataset.ceiling) if dataset.ceiling else "ceiling",
                placebo_gain=placebo_gain.get(split, {}).get(k),
                baseline=dataset.baseline or "btl",
            ),
        }
    return out


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command that is running, as it can be typed again."""
    program, *arguments = sys.argv or ["python"]
    name = Path(program).name
    return shlex.join([name if name != "-c" else "python", *arguments])


def fold_hash(hashes: Sequence[str]) -> str:
    """One hash for a dataset in folds: the fold's own where there is one."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def write_results(folder: Path, results: Sequence[dict[str, Any]], **suite: Any) -> dict[str, Any]:
    """Writes `results.json`.

    It holds one method's results as they are; several are a list under `results`, beside the first of them or, for a
    suite, beside what is said of the whole.
    """
    content = {**(suite or (results[0] if results else {})), "schema": SCHEMA_VERSION, "definitions": DEFINITIONS}
    if suite or len(results) > 1:
        content["results"] = list(results)
    write_json(folder / RESULTS, content, allow_nan=False)
    return content


def read_results(folder: str | Path) -> dict[str, Any]:
    """`results.json` of a folder, always with a list under `results`.

    Raises:
        DataError: There is none, or it is of another schema.
    """
    path = Path(folder) / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        started = (Path(folder) / RUN).exists() or any(Path(folder).glob("*.part"))
        raise DataError(
            "there is no results.json in it" if Path(folder).is_dir() else "the folder does not exist",
            "The evaluation did not finish: run it again."
            if started
            else "Name a folder that `pluralrlhf eval` wrote.",
            file=str(folder),
        ) from None
    except (OSError, ValueError):
        raise DataError("cannot be read as JSON", "Evaluate again.", file=str(path)) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA_VERSION:
        raise DataError(f"this version reads schema {SCHEMA_VERSION}", "Evaluate again.", file=str(path))
    return content if "results" in content else {**content, "results": [content]}
