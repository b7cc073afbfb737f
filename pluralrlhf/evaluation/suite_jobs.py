"""The jobs of a suite: build a dataset, train a model, evaluate it; each is done once.

A finished job's folder says what it was made from: a hash of the data, the settings, the seed and the code behind it.
A job that finds its own hash there is not done again. What is not finished has another name, so that a kill leaves
nothing half-made.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..data import build_dataset, data_sha256, load_pairs, load_users, read_build
from ..data.history import UserHistory
from ..errors import ConfigError
from ..files import sha256_of, write_json
from ..user_models import DEFAULT_USER_MODEL, USER_MODELS
from .code_hash import code_hash
from .evaluate import check_splits
from .evaluation_data import EvaluationData
from .runner import run_scorers
from .scorers import Scorer
from .storage import RUN, SCHEMA_VERSION, Source
from .suite_spec import DatasetSpec, SuiteSpec
from .training import evaluates, quiet, train_reward_model

# What a result hangs on, beside its method's own file: these, and what they import.
_TRAINING = ("evaluation/training.py",)
_EVALUATION = ("evaluation/runner.py", "evaluation/evaluation_data.py")
_REFERENCE = ("evaluation/reference.py", "evaluation/item_factors.py", "data/populations")


@dataclass
class Job:
    """One piece of work.

    Args:
        kind: `build`, `train`, `evaluate` or `reference`, for the estimate of what is left.
        title: What it does, in a few words.
        ready: Whether what it builds on is finished; only then is it known whether it is done.
        done: Whether it was finished, by an earlier call or by another process.
        work: Does it; is given a function that shows how far it is.
    """

    kind: str
    title: str
    ready: Callable[[], bool]
    done: Callable[[], bool]
    work: Callable[[Callable[[str], None]], None]


class Part:
    """One fold of one dataset (or of its placebo): its folder, and the jobs on it."""

    def __init__(self, spec: SuiteSpec, dataset: DatasetSpec, fold: int, folder: Path, placebo: bool):
        self.spec, self.dataset, self.fold, self.placebo = spec, dataset, fold, placebo
        name = dataset.name + (f"-fold{fold}" if dataset.n_folds > 1 else "") + ("-placebo" if placebo else "")
        self.title = (
            dataset.name + (f", fold {fold}" if dataset.n_folds > 1 else "") + (" (placebo)" if placebo else "")
        )
        self.data = Path(dataset.data) if dataset.data else folder / "data" / name
        self.folder = folder / "jobs" / name
        self.root = folder

    @property
    def methods(self) -> list[str]:
        """Methods trained on it: all, or for a placebo the first that is personalised."""
        if not self.placebo:
            return list(self.spec.methods)
        return self.spec.personalised(self.dataset)[:1]

    def jobs(self) -> list[Job]:
        jobs = []
        if self.dataset.source is not None:
            jobs.append(Job("build", f"build {self.title}", lambda: True, self._built, lambda show: self._build()))
        for method in self.methods:
            for seed in self.spec.seeds:
                where, model = f"{method} on {self.title}, seed {seed}", (method, seed)
                trained, evaluated = partial(self._trained, *model), partial(self._evaluated, *model)
                train, evaluate = partial(self._train, *model), partial(self._evaluate, *model)
                jobs.append(Job("train", f"train {where}", self._built, trained, train))
                jobs.append(Job("evaluate", f"evaluate {where}", trained, evaluated, lambda show, do=evaluate: do()))
        if self.has_reference:
            folder = self.folder / "reference"
            jobs.append(
                Job(
                    "reference",
                    f"ceiling of {self.title}",
                    self._built,
                    lambda: self.stamp(folder / RUN) == self.reference_key,
                    lambda show: self._refer(folder),
                )
            )
        return jobs

    @property
    def has_reference(self) -> bool:
        return self.dataset.ceiling and not self.placebo

    def job(self, method: str, seed: int) -> Path:
        return self.folder / f"{method}-seed{seed}"

    # Data

    @cached_property
    def build_key(self) -> str:
        files, code = _files(self.dataset.parameters.get("path")), code_hash("data")
        return _hash(
            self.dataset.source, self.dataset.parameters, self.dataset.fold_build(self.fold), self.placebo, files, code
        )

    def _built(self) -> bool:
        if self.dataset.source is None:
            return True
        return self.stamp(self._data_stamp) == self.build_key and (self.data / "build.json").is_file()

    @property
    def _data_stamp(self) -> Path:
        return self.data.with_name(self.data.name + ".json")

    def _build(self) -> None:
        self.data.parent.mkdir(parents=True, exist_ok=True)
        # Stamps go first: a kill between the work and its stamp must not leave an older stamp beside it.
        self._data_stamp.unlink(missing_ok=True)
        source = self.dataset.make_source(self.placebo)
        build_dataset(
            source, self.data, overwrite=True, progress=sys.stderr.isatty(), **self.dataset.fold_build(self.fold)
        )
        write_json(self._data_stamp, {"key": self.build_key})
        self.check_validation()

    def check_validation(self) -> None:
        """Raises a `ConfigError` if training is to be evaluated and the data has nobody to evaluate it on."""
        wanted = [method for method in self.methods if evaluates(self.spec.settings(method, self.dataset))]
        if not wanted or not self._built() or "validation" in read_build(self.data)["counts"]["splits"]:
            return
        ours = "Give the dataset fewer folds, a larger `validation_users` or another `seed`"
        theirs = f"Build {self.data} from more users or with a larger `--validation_users`"
        raise ConfigError(
            f"{self.title} has no validation users, on whom the training of {', '.join(wanted)} is evaluated. "
            f"{theirs if self.dataset.source is None else ours}, or set `eval_strategy: 'no'` and "
            "`load_best_model_at_end: false` in `train`."
        )

    @cached_property
    def sha256(self) -> str:
        return data_sha256(self.data)

    @cached_property
    def pairs(self):
        return load_pairs(self.data)

    @cached_property
    def users(self):
        return load_users(self.data)

    @cached_property
    def evaluation(self) -> EvaluationData:
        columns = ["user_id", "pair_id", "item_ids"]
        history = UserHistory({name: split.select_columns(columns) for name, split in self.pairs.items()})
        return EvaluationData.load(self.pairs, history, self.users)

    @property
    def splits(self) -> list[str]:
        splits = check_splits(self.dataset.splits, list(self.pairs))
        if self.placebo:
            return [split for split in splits if split != "validation"] or splits
        return splits

    # Training

    def training_key(self, method: str, seed: int) -> str:
        settings = self.spec.settings(method, self.dataset)
        code = _method_code(settings.get("user_model", DEFAULT_USER_MODEL))
        # Of a local backbone or encoder its files count too.
        local = [_files(settings.get(name)) for name in ("model_name_or_path", "encoder")]
        return _hash(self.sha256, settings, seed, code, *(files for files in local if files))

    def _trained(self, method: str, seed: int) -> bool:
        job = self.job(method, seed)
        return (
            self._built()
            and self.stamp(job / "train.json") == self.training_key(method, seed)
            and (job / "model").is_dir()
        )

    def _train(self, method: str, seed: int, show: Callable[[str], None]) -> None:
        settings = dict(self.spec.settings(method, self.dataset))
        final, part = self.job(method, seed) / "model", self.job(method, seed) / "model.part"
        (self.job(method, seed) / "train.json").unlink(missing_ok=True)
        for old in (final, part):
            shutil.rmtree(old, ignore_errors=True)
        start = time.perf_counter()
        with quiet():
            train_reward_model(settings, self.pairs, part, seed, show, self.users)
        part.rename(final)
        record = {"key": self.training_key(method, seed), "seconds": time.perf_counter() - start}
        write_json(self.job(method, seed) / "train.json", record)

    # Evaluation

    def evaluation_key(self, method: str, seed: int) -> str:
        controls = self.spec.controls and not self.placebo
        return _hash(
            self.training_key(method, seed),
            method,
            self.dataset.n_context,
            self.splits,
            controls,
            code_hash(*_EVALUATION),
        )

    @cached_property
    def _shared_pairs(self) -> dict:
        return {}

    def _evaluated(self, method: str, seed: int) -> bool:
        return self.stamp(self.job(method, seed) / "run" / RUN) == self.evaluation_key(method, seed)

    def _evaluate(self, method: str, seed: int) -> None:
        from .scorers import load_scorers

        model = self.job(method, seed) / "model"
        with quiet():
            scorers = load_scorers(
                [model],
                self.pairs,
                names=[method],
                progress=False,
                users=self.users,
                shared=self._shared_pairs,
                feature_cache=self.spec.settings(method, self.dataset).get("feature_cache"),
            )
        scorers[0].seed, scorers[0].path = seed, str(model.relative_to(self.root))
        run_scorers(
            scorers,
            self.evaluation,
            self.job(method, seed) / "run",
            splits=self.splits,
            n_context=self.dataset.n_context,
            controls=self.spec.controls and not self.placebo,
            progress=sys.stderr.isatty(),
            info={"key": self.evaluation_key(method, seed)},
        )

    # What could be reached

    @property
    def reference_key(self) -> str:
        return _hash(self.sha256, self.dataset.n_context, self.splits, code_hash(*_EVALUATION, *_REFERENCE))

    def _refer(self, folder: Path) -> None:
        run_scorers(
            [reference_scorer(self.data, self.evaluation)],
            self.evaluation,
            folder,
            splits=self.splits,
            n_context=self.dataset.n_context,
            controls=False,
            progress=sys.stderr.isatty(),
            info={"key": self.reference_key, "reference": True},
        )

    def runs(self) -> list[tuple[Source, dict[str, Any]]]:
        """Where the rows of each job lie, and what its `run.json` says."""
        out = []
        for method in self.methods:
            for seed in self.spec.seeds:
                folder = self.job(method, seed) / "run"
                record = json.loads((folder / RUN).read_text(encoding="utf-8"))
                seconds = json.loads((self.job(method, seed) / "train.json").read_text(encoding="utf-8"))["seconds"]
                record["timing"]["train_seconds"] = seconds
                out.append((Source(folder, fold=self.fold), record))
        if self.has_reference:
            folder = self.folder / "reference"
            out.append((Source(folder, fold=self.fold), json.loads((folder / RUN).read_text(encoding="utf-8"))))
        return out

    @staticmethod
    def stamp(path: Path) -> str | None:
        """The key in a file that says what was made; `None` where there is none."""
        try:
            return json.loads(path.read_text(encoding="utf-8")).get("key")
        except (OSError, ValueError, AttributeError):
            return None

    def forget(self) -> None:
        """Drops what is in memory, which the next part does not need."""
        for name in ("pairs", "users", "evaluation", "_shared_pairs"):
            self.__dict__.pop(name, None)


def reference_scorer(folder: Path, evaluation: EvaluationData) -> Scorer:
    """The ceiling of a generated population; elsewhere item-id factors, which say what seen items hold."""
    if (folder / "truth" / "truth.json").is_file():
        from .reference import CeilingScorer

        return CeilingScorer(folder, evaluation.history)
    from .item_factors import ItemFactorsScorer

    return ItemFactorsScorer(evaluation.history, evaluation.opinions)


def results_key(parts: Sequence[Part], n_replicates: int) -> str:
    """What the results of finished parts are made of."""
    models = [
        (part.title, m, s, part.evaluation_key(m, s)) for part in parts for m in part.methods for s in part.spec.seeds
    ]
    return _hash(models, [part.reference_key for part in parts if part.has_reference], n_replicates)


def _method_code(name: str) -> str:
    """Hash of the code that training a method runs; of one outside of the package its file, and all methods here."""
    found = USER_MODELS[name]
    if not isinstance(found, type):
        return code_hash(*_TRAINING, f"user_models/{found[0].replace('.', '/')}.py")
    try:
        source = Path(inspect.getfile(found))
        return code_hash(*_TRAINING, "user_models") + sha256_of([source])
    except (OSError, TypeError):
        raise ConfigError(
            f"The class of `{name}` is in no file, so that a suite cannot tell when it changed."
        ) from None


def _files(path: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of all files at a local path; none for what is no path, such as the id of a repository."""
    found = [Path(path), *Path(path).rglob("*")] if path else []
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(found) if f.is_file()]


def _hash(*parts: Any) -> str:
    text = json.dumps([SCHEMA_VERSION, *parts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
