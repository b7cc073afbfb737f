"""One static page that a colleague who was not there understands, from the results of one or several evaluations."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .diagnostics import diagnostics_rows, read_diagnostics
from .drawing import Figure, slug
from .figures import draw_all
from .results import DEFINITIONS
from .storage import Source
from .summary import Dataset, baseline_of, collect, read_results
from .tables import (
    Section,
    Table,
    controls_table,
    detectable,
    folds_table,
    headline_table,
    headlines,
    quality_table,
    sections,
    verdicts,
)
from .verdicts import SPLIT_TITLES
from .versus import write_versus

_BADGES = {
    "worse": ("worse than without users", "bad"),
    "uses_user": ("uses the user", "good"),
    "ignores_user": ("does not use the user", "bad"),
    "any_context": ("another user's context does as well", "bad"),
    "not_told_apart": ("own context not told from another's", "neutral"),
    "no_controls": ("gains; controls were not run", "neutral"),
    "harmed": ("harmed by the context", "bad"),
    "no_gain": ("no gain shown", "neutral"),
    "nothing_to_find": ("nothing to find here", "neutral"),
    "no_user": ("has no user", "neutral"),
    "unknown": ("too little data", "neutral"),
}


def join(folders: Sequence[str | Path]) -> tuple[list[dict[str, Any]], dict[str, list[Source]]]:
    """Results of several evaluations, those on the same data compared pair by pair.

    Args:
        folders: Outputs of `eval reward` or `eval suite`.

    Returns:
        The results, and where the rows of each dataset lie. Methods of one name from several folders are told apart by
        the folder's name; a dataset name that stands for different data likewise.

    Raises:
        DataError: A folder holds no results.
        ConfigError: Evaluations on the same data that drew other contexts.
    """
    read = [(Path(folder), read_results(folder)["results"]) for folder in folders]
    if not read:
        raise ConfigError("No folder is given: name the outputs of `pluralrlhf eval`.")
    groups: dict[tuple, list[tuple[Path, list[dict[str, Any]]]]] = {}
    for folder, results in read:
        by_data: dict[tuple, list[dict[str, Any]]] = {}
        for result in results:
            by_data.setdefault((result["data_sha256"], result["placebo_of"]), []).append(result)
        for key, found in by_data.items():
            groups.setdefault(key, []).append((folder, found))
    results, sources, names = [], {}, set()
    for parts in groups.values():
        dataset = parts[0][1][0]["dataset"]
        name = dataset if dataset not in names else f"{dataset} ({parts[0][0].name})"
        names.add(name)
        if len(parts) == 1:
            found = [{**result, "dataset": name} for result in parts[0][1]]
            sources[name] = [Source(parts[0][0], dataset=dataset)]
        else:
            found, sources[name] = _compare(name, parts)
        results += found
    return results, sources


def _compare(name: str, parts: list[tuple[Path, list[dict[str, Any]]]]) -> tuple[list[dict[str, Any]], list[Source]]:
    """Computes the results on one dataset again from the rows of several folders."""
    seeds = {result["evaluation_seed"] for _, results in parts for result in results}
    if len(seeds) > 1:
        folders = ", ".join(str(folder) for folder, _ in parts)
        raise ConfigError(
            f"{folders} were evaluated on the same data with different seeds ({sorted(seeds)}), so that the contexts "
            "differ. Evaluate them with one seed, or report them apart."
        )
    seen: dict[str, int] = {}
    for _, results in parts:
        for result in results:
            seen[result["method"]] = seen.get(result["method"], 0) + 1
    sources, runs, commands = [], [], []
    ceiling, without = None, []
    for number, (folder, results) in enumerate(parts):
        rename = {}
        for result in results:
            method = result["method"]
            if seen[method] > 1:
                rename[method] = f"{method} ({folder.name})" if folder.name else f"{method} ({number + 1})"
            new = rename.get(method, method)
            without += [new] if not result["uses_context"] else []
            ceiling = ceiling or (new if method == result["ceiling"] else None)
            runs.append(_run_of(result, new))
            commands.append(result["command"])
        sources.append(Source(folder, dataset=results[0]["dataset"], rename=tuple(rename.items())))
    first = parts[0][1][0]
    dataset = Dataset(
        name=name,
        sources=sources,
        runs=runs,
        baseline=baseline_of(without),
        ceiling=ceiling,
        placebo_of=first["placebo_of"],
        info={key: first[key] for key in ("data", "data_sha256", "dropped", "counts", "fold_data")},
    )
    return collect(dataset, command="\n".join(dict.fromkeys(commands)), seed=first["evaluation_seed"]), sources


def _run_of(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What `run.json` said of one method, from its results."""
    models = result["model"] if isinstance(result["model"], list) else [result["model"]]
    context = {
        split: {
            k: {
                new: values[old]["value"]
                for old, new in (
                    ("mean_context_pairs", "context_pairs"),
                    ("mean_context_items", "context_items"),
                    ("relabelled_coverage", "relabelled_coverage"),
                )
                if old in values
            }
            for k, values in found["n_context"].items()
        }
        for split, found in result["splits"].items()
    }
    return {
        "methods": {name: {"seeds": result["seeds"], "models": models, "uses_context": result["uses_context"]}},
        "splits": list(result["splits"]),
        "context": context,
        "evaluation_seed": result["evaluation_seed"],
        "timing": {
            **{key: result["timing"][key] for key in ("evaluate_seconds", "scored_pairs_per_second")},
            "new_user_ms": {name: result["timing"]["new_user_ms"]},
        },
    }


def write_report(
    results: Sequence[Mapping[str, Any]],
    sources: Mapping[str, Sequence[Source]],
    html: str | Path,
    figures_dir: str | Path,
    title: str = "Personalised reward models",
    description: str = "",
    versus: str | None = None,
) -> Path:
    """Draws the figures and writes the page, with everything it shows inside it.

    Args:
        results: Objects of `results.json`.
        sources: Dataset to where its rows lie.
        html: The page.
        figures_dir: Folder of the PNG and CSV files.
        title: Heading.
        description: A paragraph under it.
        versus: A method that all others are compared with, pair by pair.
    """
    import jinja2

    found = sections(results)
    if not found:
        raise ConfigError("There is nothing to report: the evaluation holds no results.")
    parts = [
        _section(section, draw_all(section, sources[section.dataset], figures_dir), sources[section.dataset])
        for section in found
    ]
    for section, part in zip(found, parts):
        part["versus"] = versus and write_versus(section, sources[section.dataset], versus, figures_dir)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        description=description,
        sections=parts,
        definitions={name.replace("_", " "): text for name, text in DEFINITIONS.items()},
        commands=list(dict.fromkeys(result["command"] for result in results)),
        versions=results[0]["versions"],
        data=[_data_row(section) for section in found],
        timing=_timing(results),
    )
    html = Path(html)
    part = html.with_name(html.name + ".part")
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(page, encoding="utf-8")
        part.replace(html)
    except OSError as error:
        raise ConfigError(f"`html` {html} cannot be written ({error.strerror}).") from None
    return html


def _section(section: Section, figures: Sequence[Figure], sources: Sequence[Source]) -> dict[str, Any]:
    others = [split for split in section.splits if split != section.split]
    names = {source.dataset or section.dataset for source in sources} | {section.dataset}
    written = [read_diagnostics([source.folder for source in sources], slug(name)) for name in sorted(names)]
    diagnostics = [part for parts in written for part in parts]
    return {
        "name": section.dataset,
        "anchor": f"data-{slug(section.dataset)}",
        "split": SPLIT_TITLES.get(section.split, section.split),
        "k": section.sizes(section.split)[-1],
        "verdicts": [
            {"method": method, "text": f"{place}{text}", "badge": _BADGES[kind][0], "tone": _BADGES[kind][1]}
            for split in headlines(section)
            for place in ["" if split == section.split else f"on {SPLIT_TITLES.get(split, split)}: "]
            for method, kind, text in verdicts(section, split)
        ],
        "headline": headline_table(section),
        "detectable": detectable(section),
        "controls": controls_table(section),
        "folds": folds_table(section),
        "quality": quality_table(section),
        "others": [headline_table(section, split) for split in others],
        "diagnostics": [Table("Beyond accuracy", *diagnostics_rows(content)) for _, content in diagnostics],
        "figures": [_embedded(figure) for figure in [*figures, *_drawn(diagnostics)]],
    }


def _drawn(diagnostics: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[Figure]:
    """The figures of diagnostics that were written beside the results."""
    return [
        Figure(figure["title"], figure["caption"], folder / figure["png"], folder / figure["csv"])
        for folder, content in diagnostics
        for figure in content["figures"]
    ]


def _embedded(figure: Figure) -> dict[str, str]:
    return {
        "title": figure.title,
        "caption": figure.caption,
        "png": base64.b64encode(figure.png.read_bytes()).decode(),
        "csv": base64.b64encode(figure.csv.read_bytes()).decode(),
        "csv_name": figure.csv.name,
    }


def _data_row(section: Section) -> dict[str, Any]:
    first = section.results[0]
    dropped = {reason.replace("_", " "): count for reason, count in (first.get("dropped") or {}).items()}
    return {
        "name": section.dataset,
        "folder": first.get("data") or "",
        "sha256": first.get("data_sha256") or "",
        "folds": first.get("fold_data") or [],
        "dropped": ", ".join(f"{reason}: {count:,}" for reason, count in dropped.items()) or "nothing",
    }


def _timing(results: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["data", "method", "training, s a model", "evaluation, s", "a new user, ms"]
    rows = []
    for result in results:
        timing = result["timing"]
        train, new_user = timing.get("train_seconds") or [], timing.get("new_user_ms")
        rows.append(
            [
                result["dataset"],
                result["method"],
                f"{sum(train) / len(train):.1f}" if train else "–",
                f"{timing['evaluate_seconds']:.1f}",
                f"{new_user:.2f}" if new_user is not None else "–",
            ]
        )
    return Table("Time", columns, rows)
