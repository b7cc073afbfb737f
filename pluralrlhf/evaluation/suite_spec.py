"""A suite file: which datasets, which methods, how often, with which references; every unknown key is an error."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import SPLITS, SplitConfig
from ..data.sources import Source as DataSource
from ..data.sources import source_class
from ..errors import ConfigError
from ..user_models import DEFAULT_USER_MODEL, build_config, user_model_class

_SUITE_KEYS = (
    "name", "description", "datasets", "methods", "train", "seeds", "n_context", "splits", "controls", "placebo",
    "ceiling",
)  # fmt: skip
_DATASET_KEYS = ("source", "data", "item_folds", "user_folds", "n_context", "splits", "placebo", "ceiling", "train")
_BUILDER_KEYS = {f.name for f in dataclasses.fields(SplitConfig)} | {"skip_invalid", "min_pairs_per_user"}
_FOLD_KEYS = {"item_fold", "n_item_folds", "user_fold", "n_user_folds"}
# Settings of a method that are not fields of `PersonalizedRewardConfig`.
_MODEL_KEYS = ("model_name_or_path",)


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of a suite.

    Args:
        name: Its name in tables.
        source: Name of the data source; None where `data` names a folder that is there already.
        data: Dataset folder.
        parameters: Fields of the source.
        build: Settings of `build_dataset`.
        item_folds, user_folds: Number of disjoint folds of items or of users, each of them the test side once.
        only_folds: Those of them to run; `None` is all.
        n_context, splits, placebo, ceiling: As in [`SuiteSpec`], where this dataset differs.
        train: Training settings on this dataset, over the suite's.
    """

    name: str
    source: str | None = None
    data: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    item_folds: int | None = None
    user_folds: int | None = None
    only_folds: tuple[int, ...] | None = None
    n_context: tuple[int, ...] = ()
    splits: tuple[str, ...] | None = None
    placebo: bool = False
    ceiling: bool = False
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def n_folds(self) -> int:
        return self.item_folds or self.user_folds or 1

    @property
    def folds(self) -> tuple[int, ...]:
        return tuple(range(self.n_folds)) if self.only_folds is None else self.only_folds

    def fold_build(self, fold: int) -> dict[str, Any]:
        """Settings of `build_dataset` for one fold."""
        if self.item_folds:
            return {**self.build, "n_item_folds": self.item_folds, "item_fold": fold}
        if self.user_folds:
            return {**self.build, "n_user_folds": self.user_folds, "user_fold": fold}
        return self.build

    def make_source(self, placebo: bool = False) -> DataSource:
        """The data source with its parameters; those that do not fit are a `ConfigError`."""
        parameters = {**self.parameters, **({"placebo": True} if placebo else {})}
        cls = source_class(self.source)
        if "seed" in self.build and any(f.name == "seed" and f.init for f in dataclasses.fields(cls)):
            parameters["seed"] = self.build["seed"]
        try:
            return cls(**parameters)
        except TypeError as error:
            raise ConfigError(
                f"dataset `{self.name}`: {error}. See `pluralrlhf data build {self.source} -h`."
            ) from None


@dataclass(frozen=True)
class SuiteSpec:
    """What a suite file says.

    Args:
        name: Name of the suite.
        description: A sentence for the report.
        datasets: The datasets.
        methods: Method to its training settings, the suite's shared ones included.
        seeds: Seeds of training.
        controls: Evaluate the controls.
    """

    name: str
    description: str
    datasets: tuple[DatasetSpec, ...]
    methods: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    controls: bool = True

    def settings(self, method: str, dataset: DatasetSpec) -> dict[str, Any]:
        """Training settings of a method on a dataset."""
        return {**self.methods[method], **dataset.train}

    def personalised(self, dataset: DatasetSpec) -> list[str]:
        """The methods that use a context, in the file's order."""
        return [
            name
            for name in self.methods
            if user_model_class(self.settings(name, dataset).get("user_model", DEFAULT_USER_MODEL)).uses_context
        ]


def load_suite(path: str | Path, seeds: int | None = None) -> SuiteSpec:
    """Reads and checks a suite file.

    Args:
        path: The YAML file. With `like: OTHER.yaml` it has what it does not say itself from that file beside it, which may
            be like another in turn.
        seeds: How many seeds, over what the file says.

    Raises:
        ConfigError: The file is missing or not YAML, or a key or value in it does not fit.
    """
    path = Path(path)
    return parse_suite(_content(path), str(path), default_name=path.stem, seeds=seeds)


def _content(path: Path, readers: tuple[Path, ...] = ()) -> Any:
    """What a suite file says, and what the files say that it is like; `readers` are the files that led to it."""
    content = _read(path)
    if isinstance(content, dict) and "like" in content:
        other = path.parent / str(content.pop("like"))
        if other.resolve() in (readers := (*readers, path.resolve())):
            raise ConfigError(f"{path}: `like` leads back to {other}. A suite cannot be like itself.")
        others = _mapping(_content(other, readers), f"{path}: `like`")
        content = {key: value for key, value in others.items() if key != "name"} | content
    return content


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


def _read(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes `1e-3`, without a point or a sign, for a text."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file. Suites lie in evals/*.yaml.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from None


def with_paths(spec: SuiteSpec, paths: Iterable[str]) -> SuiteSpec:
    """The suite with local copies of its sources' data, each given as `SOURCE=DIR`.

    Raises:
        ConfigError: Not of that form, no dataset of that source, or a source that takes no path.
    """
    local = {}
    for entry in paths:
        source, equals, folder = entry.partition("=")
        if not equals or source not in {dataset.source for dataset in spec.datasets}:
            names = sorted({dataset.source for dataset in spec.datasets if dataset.source})
            raise ConfigError(
                f"`--path` is {entry!r}; write SOURCE=DIR with a source of the suite: {', '.join(names)}."
            )
        local[source] = folder
    datasets = [
        dataclasses.replace(dataset, parameters={**dataset.parameters, "path": local[dataset.source]})
        if dataset.source in local
        else dataset
        for dataset in spec.datasets
    ]
    for dataset in datasets:
        if dataset.source in local:
            dataset.make_source()
    return dataclasses.replace(spec, datasets=tuple(datasets))


def narrowed(spec: SuiteSpec, methods: Sequence[str] | None = None, folds: Sequence[int] | None = None) -> SuiteSpec:
    """The suite as if its file named only these methods and had only these folds.

    Datasets without folds stay whole; of those with fewer folds, the folds that they have. A placebo stays where the
    method that it is trained with does.

    Raises:
        ConfigError: There is no such method or fold, or none is named.
    """
    datasets = list(spec.datasets)
    if methods is not None:
        unknown = [name for name in methods if name not in spec.methods]
        if unknown or not methods:
            raise ConfigError(
                f"`--methods` names {', '.join(unknown) or 'none'}; the suite has {', '.join(spec.methods)}."
            )
        datasets = [
            dataclasses.replace(
                dataset, placebo=dataset.placebo and set(spec.personalised(dataset)[:1]) <= set(methods)
            )
            for dataset in datasets
        ]
        spec = dataclasses.replace(
            spec, methods={name: spec.methods[name] for name in spec.methods if name in methods}
        )
    if folds is not None:
        most = max((dataset.n_folds for dataset in datasets if dataset.n_folds > 1), default=0)
        if not folds or min(folds) < 0 or max(folds) >= most:
            there = f"the suite's are 0 to {most - 1}" if most else "no dataset of the suite has folds"
            raise ConfigError(f"`--folds` is {' '.join(map(str, folds)) or 'empty'}; {there}.")
        datasets = [
            dataset
            if dataset.n_folds == 1
            else dataclasses.replace(dataset, only_folds=tuple(n for n in range(dataset.n_folds) if n in folds))
            for dataset in datasets
        ]
    return dataclasses.replace(spec, datasets=tuple(datasets))


def parse_suite(content: Any, where: str, default_name: str = "suite", seeds: int | None = None) -> SuiteSpec:
    """Checks what a suite file holds; see `load_suite`."""
    content = _mapping(content, where)
    _known(content, _SUITE_KEYS, where)
    for key in ("datasets", "methods"):
        if not content.get(key):
            raise ConfigError(f"{where}: `{key}` is missing or empty. A suite names datasets and methods.")
    shared = _mapping(content.get("train") or {}, f"{where}: `train`")
    methods = {}
    for name, settings in _mapping(content["methods"], f"{where}: `methods`").items():
        at = f"{where}: method `{name}`"
        settings = check_training({**shared, **_mapping(settings or {}, at)}, at)
        user_model, kwargs = settings.get("user_model", DEFAULT_USER_MODEL), settings.get("user_model_kwargs")
        try:
            build_config(user_model_class(user_model).config_class, kwargs, user_model)
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"{at}: {error}") from None
        methods[str(name)] = settings
    chosen = content.get("seeds", 1) if seeds is None else seeds
    chosen = list(range(chosen)) if isinstance(chosen, int) else chosen
    if not isinstance(chosen, list) or not chosen or not all(isinstance(seed, int) for seed in chosen):
        raise ConfigError(f"{where}: `seeds` is {content.get('seeds')!r}; give a number of seeds, or a list of them.")
    datasets = [
        _dataset(str(name), _mapping(entry, f"{where}: dataset `{name}`"), content, f"{where}: dataset `{name}`")
        for name, entry in _mapping(content["datasets"], f"{where}: `datasets`").items()
    ]
    return SuiteSpec(
        name=str(content.get("name", default_name)),
        description=str(content.get("description") or "").strip(),
        datasets=tuple(datasets),
        methods=methods,
        seeds=tuple(dict.fromkeys(chosen)),
        controls=_flag(content, "controls", True, where),
    )


def _dataset(name: str, entry: Mapping[str, Any], suite: Mapping[str, Any], where: str) -> DatasetSpec:
    if ("source" in entry) == ("data" in entry):
        raise ConfigError(f"{where}: give either `source` (what to build) or `data` (a folder that is there).")
    rest = {key: value for key, value in entry.items() if key not in _DATASET_KEYS}
    parameters: dict[str, Any] = {}
    if "source" in entry:
        cls = source_class(str(entry["source"]))
        fields = {f.name for f in dataclasses.fields(cls) if f.init} - {"placebo"}
        _known(rest, {*fields, *_BUILDER_KEYS} - _FOLD_KEYS, where, also=_DATASET_KEYS)
        parameters = {key: value for key, value in rest.items() if key in fields and key != "seed"}
        rest = {key: value for key, value in rest.items() if key not in parameters}
    else:
        _known(rest, (), where, also=_DATASET_KEYS)
    folds = {key: entry.get(key) for key in ("item_folds", "user_folds")}
    if all(folds.values()):
        raise ConfigError(
            f"{where}: both `item_folds` and `user_folds` are given; results are pooled over one of them."
        )
    for key, value in folds.items():
        if value is not None and (not isinstance(value, int) or value < 2 or "data" in entry):
            raise ConfigError(f"{where}: `{key}` is {value!r}; it needs a `source` and a number of at least 2.")
    sizes = entry.get("n_context", suite.get("n_context", [0, 2, 8]))
    sizes = [sizes] if isinstance(sizes, int) else sizes
    if not isinstance(sizes, list) or not all(isinstance(k, int) and k >= 0 for k in sizes):
        raise ConfigError(f"{where}: `n_context` is {sizes!r}; give numbers of at least 0, such as [0, 2, 8].")
    splits = entry.get("splits", suite.get("splits"))
    if splits is not None and (not isinstance(splits, list) or (set(splits) - set(SPLITS))):
        unknown = sorted(set(map(str, splits)) - set(SPLITS)) if isinstance(splits, list) else splits
        raise ConfigError(f"{where}: `splits` holds {unknown}; there are {', '.join(SPLITS)}.")
    placebo = _flag(entry, "placebo", _flag(suite, "placebo", False, where), where)
    if placebo and "data" in entry:
        raise ConfigError(f"{where}: a placebo is built from a `source`; set `placebo: false` for a `data` folder.")
    spec = DatasetSpec(
        name=name,
        source=entry.get("source"),
        data=entry.get("data"),
        parameters=parameters,
        build=dict(rest),
        item_folds=folds["item_folds"],
        user_folds=folds["user_folds"],
        n_context=tuple(sorted({0, *sizes})),
        splits=None if splits is None else tuple(splits),
        placebo=placebo,
        ceiling=_flag(entry, "ceiling", _flag(suite, "ceiling", False, where), where),
        train=check_training(_mapping(entry.get("train") or {}, f"{where}: `train`"), f"{where}: `train`"),
    )
    if spec.source is not None:
        spec.make_source()
    return spec


def check_training(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings, if each is one of training's."""
    from ..trainers.reward_config import PersonalizedRewardConfig

    fields = {f.name for f in dataclasses.fields(PersonalizedRewardConfig) if f.init}
    _known(settings, {*fields, *_MODEL_KEYS} - {"output_dir", "seed"}, where)
    return dict(settings)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: `name: value` lines are expected, found {type(value).__name__}.")
    return value


def _flag(entry: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: `{key}` is {value!r}; write true or false.")
    return value


def _known(entry: Mapping[str, Any], known: Iterable[str], where: str, also: Iterable[str] = ()) -> None:
    known = list(known)
    for key in entry:
        if key not in known:
            everything = [*known, *also]
            close = difflib.get_close_matches(str(key), everything, n=2)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(everything)[:40])}."
            raise ConfigError(f"{where}: unknown key {str(key)[:60]!r}. {hint}")
