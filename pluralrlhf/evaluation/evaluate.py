"""`evaluate_reward`: reward models on a dataset folder, with controls, intervals and a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import data_sha256, load_pairs, load_users, read_build
from ..data.schema import SPLITS
from ..errors import ConfigError, DataError
from .evaluation_data import EvaluationData
from .runner import run_scorers
from .scorers import RewardModelScorer, load_scorers
from .sharding import merge_runs, process_group, shard_folder, wait_for_everyone
from .storage import RUN, Source, release_memory, system_memory
from .summary import RESULTS, Dataset, baseline_of, collect, command_line, read_results, write_results

if TYPE_CHECKING:
    from ..modeling import PersonalizedRewardModel


@system_memory()
def evaluate_reward(
    models: Sequence[str | Path | PersonalizedRewardModel],
    data: str | Path,
    output_dir: str | Path,
    *,
    n_context: Sequence[int] = (0, 2, 8),
    splits: Sequence[str] | None = None,
    controls: bool = True,
    baseline: str | Path | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
    n_replicates: int = 1000,
    batch_size: int = 64,
    packing: str | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any] | None:
    """Scores every pair of every split under every context and writes `per_pair.parquet` and `results.json`.

    Args:
        models: Saved models (folders or ids) or models in memory. Several of one method are its seeds.
        data: Dataset folder made by `build_dataset`.
        output_dir: Folder of the results; made if needed.
        n_context: Numbers of context pairs; 0 is always among them.
        splits: Splits of the targets; by default validation and every test split that the data has.
        controls: Score the controls as well (another user's context, turned labels ...).
        baseline: A saved model without users, or the output of an earlier evaluation on the same data; by default the
            `btl` among `models`, or the first of them without users. Gains over it are paired.
        names: Name of each model's method; the user model's name by default.
        seed: Seed of contexts and controls: the same for all that is to be compared.
        n_replicates: Replicates of the crossed bootstrap.
        batch_size: Texts in a batch of a backbone.
        packing: `shared_prefix` reads what texts begin with in common once, with the same results.
        progress: Show progress on stderr.
        command: What to write down as the command; the process's own by default.

    Under `accelerate launch` every process scores its share of the users, with the same results.

    Returns:
        The content of `results.json`; `None` in every process but the first.

    Raises:
        ConfigError: A model, split, size or baseline that does not fit.
        DataError: `data` is no dataset folder.
    """
    if not models:
        raise ConfigError("`models` is empty: give at least one.")
    if names is not None and len(names) != len(models):
        raise ConfigError(f"`names` has {len(names)} entries for {len(models)} models.")
    sizes = check_sizes(n_context)
    folder = check_output(output_dir)
    build = read_build(data)
    pairs = load_pairs(data)
    wanted = check_splits(splits, list(pairs))
    sha = data_sha256(data)
    _check_replaced(folder, sha)
    baseline_run, models = _baseline(baseline, list(models), sha, seed, folder)
    names = [*(names or []), *[None] * (len(models) - len(names or []))]
    users = load_users(data)
    rank, n_processes = process_group()
    scorers = load_scorers(
        models, pairs, names=names, batch_size=batch_size, progress=progress and not rank, users=users, packing=packing
    )
    if baseline is not None and baseline_run is None and scorers[-1].uses_context:
        raise ConfigError(
            f"`baseline` {baseline} is `{scorers[-1].method}`, which uses the user: gains are counted from a method "
            "without users. Give a `btl`."
        )
    evaluation = EvaluationData.load(pairs, scorers[0].pairs.history, users)
    info = {"data": str(data), "data_sha256": sha}
    # Only now: whatever may be wrong with the call has been found, and earlier results are still there.
    if not rank:
        _remove_results(folder, progress)
    run = run_scorers(
        scorers,
        evaluation,
        folder if n_processes == 1 else shard_folder(folder, rank),
        splits=wanted,
        n_context=sizes,
        controls=controls,
        seed=seed,
        progress=progress and not rank,
        info=info,
        shard=(rank, n_processes),
    )
    if n_processes > 1:
        wait_for_everyone()
        if rank:
            return None
        shards = [shard_folder(folder, number) for number in range(n_processes)]
        run = merge_runs(folder, shards, evaluation.history.users)
    own_baseline = _baseline_among(scorers, named=baseline is not None and baseline_run is None)
    # What scored is not needed any more, and intervals take memory of their own.
    del scorers, evaluation, pairs, users, models
    release_memory()
    dataset = Dataset(
        # Every table of one's own has the source `table`: its folder tells it from others.
        name=Path(data).resolve().name if build.get("source", "table") == "table" else build["source"],
        sources=[Source(folder)],
        runs=[run],
        baseline=own_baseline,
        info={**info, "dropped": build.get("dropped", {}), "counts": build.get("counts", {})},
    )
    if baseline_run is not None:
        _join_baseline(dataset, Path(baseline), baseline_run, run)
    results = collect(dataset, command=command or command_line(), n_replicates=n_replicates, seed=seed)
    results = [result for result in results if result["method"] in run["methods"]]
    results.sort(key=lambda result: list(run["methods"]).index(result["method"]))
    return write_results(folder, results)


def check_sizes(n_context: Sequence[int]) -> list[int]:
    """Distinct numbers of context pairs with 0 among them, in order."""
    sizes = sorted({0, *(int(k) for k in n_context)})
    if sizes[0] < 0:
        raise ConfigError(f"`n_context` holds {sizes[0]}; give numbers of at least 0, such as `0 2 8`.")
    return sizes


def check_splits(splits: Sequence[str] | None, present: Sequence[str]) -> list[str]:
    """The splits to evaluate: those named, or validation and the test splits."""
    if splits is None:
        chosen = [split for split in present if split != "train"]
        if not chosen:
            raise ConfigError(
                f"The data has only {', '.join(present)}. Build it with test users, or name `splits` to evaluate."
            )
        return [split for split in SPLITS if split in chosen] + [split for split in chosen if split not in SPLITS]
    if unknown := [split for split in splits if split not in present]:
        raise ConfigError(f"`splits` names {', '.join(unknown)}, which the data lacks. It has {', '.join(present)}.")
    return list(dict.fromkeys(splits))


def check_output(output_dir: str | Path) -> Path:
    """The folder of results, made if needed. Nothing in it is touched."""
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`output_dir` {folder} is a file: name a folder.")
    if (folder / "build.json").is_file() or ((folder / "config.json").is_file() and not (folder / RUN).is_file()):
        kind = "dataset" if (folder / "build.json").is_file() else "model"
        raise ConfigError(f"`output_dir` {folder} holds a {kind}: name another folder for the results.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"`output_dir` {folder} cannot be made ({error.strerror}).") from None
    return folder


def _check_replaced(folder: Path, sha: str) -> None:
    """Results of the same data may be replaced; those of other data are not a version of them."""
    try:
        earlier = read_results(folder)["results"]
    except DataError:
        return
    if any(result.get("data_sha256") != sha for result in earlier):
        raise ConfigError(f"`output_dir` {folder} holds the evaluation of another dataset: name another folder.")


def _remove_results(folder: Path, shown: bool) -> None:
    """Removes earlier results, which would not be those of the rows that are now written beside them."""
    if (folder / RESULTS).is_file():
        if shown:
            print(f"note: {folder} holds an earlier evaluation, which is replaced", file=sys.stderr)
        (folder / RESULTS).unlink()


def _baseline(baseline, models: list, sha: str, seed: int, folder: Path) -> tuple[dict | None, list]:
    """The earlier results to compare with, or the models with the baseline's model among them."""
    if baseline is None:
        return None, models
    if hasattr(baseline, "user_model") or not (Path(baseline) / RESULTS).is_file():
        return None, [*models, baseline]
    if Path(baseline).resolve() == folder.resolve():
        raise ConfigError(f"`baseline` {baseline} is `output_dir`, whose results are replaced. Name another folder.")
    content = read_results(baseline)
    matching = [result for result in content["results"] if result["data_sha256"] == sha]
    if not matching:
        raise ConfigError(
            f"`baseline` {baseline} was evaluated on other data (its hash differs). Evaluate it on this data."
        )
    without = [result for result in matching if not result["uses_context"]]
    if not without:
        names = ", ".join(result["method"] for result in matching)
        raise ConfigError(
            f"`baseline` {baseline} has no method without users (it has {names}). Name a `btl` evaluation."
        )
    if (other := without[0]["evaluation_seed"]) != seed:
        raise ConfigError(f"`baseline` {baseline} was evaluated with seed {other}; `seed` is {seed}. Give the same.")
    return without[0], models


def _baseline_among(scorers: Sequence[RewardModelScorer], named: bool) -> str | None:
    """The method that gains are counted from; with `named`, that of the last model."""
    return scorers[-1].method if named else baseline_of([s.method for s in scorers if not s.uses_context])


def _join_baseline(dataset: Dataset, folder: Path, result: dict[str, Any], run: dict[str, Any]) -> None:
    method = result["method"]
    if method in run["methods"]:
        return
    dataset.sources.append(Source(folder, dataset=result["dataset"]))
    dataset.baseline = method
    entry = {"seeds": result["seeds"], "models": [], "uses_context": False}
    dataset.runs.append(
        {**run, "methods": {method: entry}, "splits": [s for s in run["splits"] if s in result["splits"]]}
    )


def write_outputs(content: dict[str, Any], folder: Path, *, title: str | None = None, report: bool = True) -> None:
    """Writes `summary.md`, figures and `report.html` beside `results.json`, and prints the headline table.

    Args:
        content: What is in `results.json`.
        folder: Where it lies.
        title: Heading of the page.
        report: Draw figures and write the page.
    """
    from .printing import markdown_summary, print_summary
    from .report import join, write_report

    results, sources = join([folder])
    title = title or f"Personalised reward models on {results[0]['dataset']}"
    (folder / "summary.md").write_text(markdown_summary(results, title), encoding="utf-8")
    written = ["results.json", "per_pair.parquet", "summary.md"]
    if report:
        write_report(
            results, sources, folder / "report.html", folder / "figures", title, content.get("description", "")
        )
        written += ["figures/", "report.html"]
    print_summary(results)
    print(f"\n{folder}: {', '.join(written)}")
