"""Beyond accuracy: `diagnostics/` beside an evaluation's results, shown by its report.

From stored predictions: vote shares, gaps between groups, the price on agreed pairs, collapse. From the models, where
asked for: wrong labels in the context, best of n against the true reward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..files import write_json
from ..metrics import item_codes
from .diagnostics_figures import draw
from .plurality import attributes_of, collapse, demographic_gaps, personalisation_tax, vote_shares
from .predictions import Predictions, load_predictions
from .storage import STATES
from .verdicts import interval, points

FOLDER = "diagnostics"
FILE = "diagnostics.json"


def stored_diagnostics(
    folder: str | Path,
    splits: Mapping[str, Any],
    users: Any,
    split: str,
    *,
    dataset: str | None = None,
    baseline: str | None = None,
    n_context: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What the stored predictions say of a split, see `plurality`.

    Args:
        folder: Output of `eval reward` or `eval suite`.
        splits: The dataset's splits.
        users: Rows of its `users` config.
        split: The split.
        dataset: Which of a suite's datasets.
        baseline: Method without users.
        n_context: Number of context pairs; the largest if not given.
        seed: Seed of bootstraps and permutations.
    """
    found = load_predictions(folder, splits, split, n_context=n_context, dataset=dataset)
    attributes = attributes_of(users)
    position = {pair: row for row, pair in enumerate(splits[split]["pair_id"])}
    ids = splits[split]["item_ids"]
    items = item_codes([ids[position[pair]] for pair in found.pair_ids.tolist()])
    states = _states(Path(folder) / STATES, split, dataset)
    out: dict[str, Any] = {"split": split, "n_context": found.n_context, "baseline": baseline, "methods": {}}
    for method in found.margin:
        compared = baseline in found.margin and method != baseline
        out["methods"][method] = {
            "shares": vote_shares(found, method, seed=seed),
            "gaps": demographic_gaps(found, method, attributes, baseline=baseline if compared else None, seed=seed),
            "tax": personalisation_tax(found, method, baseline, items, seed=seed) if compared else None,
            "collapse": collapse(found, method, states.get(method)),
        }
    out["share_of_agreed_pairs"] = float(found.agreed.mean())
    return out


def _states(path: Path, split: str, dataset: str | None) -> dict[str, np.ndarray]:
    """Method to states (U, d) of one of its models, of the first seed and fold, at its largest context: dimensions of
    different models have nothing in common, and need not be as many."""
    if not path.is_file():
        return {}
    present = pq.read_schema(path).names
    columns = [name for name in ("method", "seed", "n_context", "state", "fold") if name in present]
    keep = [("split", "=", split)]
    if dataset is not None and "dataset" in present:
        keep.append(("dataset", "=", dataset))
    rows: dict[str, dict[tuple[int, int, int], list]] = {}
    for row in pq.read_table(path, columns=columns, filters=keep).to_pylist():
        model = -row["n_context"], row["seed"], row.get("fold") or 0
        rows.setdefault(row["method"], {}).setdefault(model, []).append(row["state"])
    return {method: np.array(found[min(found)], dtype=np.float64) for method, found in rows.items()}


def write_diagnostics(content: dict[str, Any], folder: str | Path, name: str) -> dict[str, Any]:
    """Writes `diagnostics/NAME/`: `diagnostics.json`, figures with their CSV, and returns the content with them."""
    folder = Path(folder) / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw(content, folder)
    content = {
        **content,
        "figures": [{"title": f.title, "caption": f.caption, "png": f.png.name, "csv": f.csv.name} for f in figures],
    }
    write_json(folder / FILE, content, allow_nan=False)
    return content


def read_diagnostics(folders: Sequence[str | Path], name: str) -> list[tuple[Path, dict[str, Any]]]:
    """What was written for a dataset beside any of these results, as (folder, content)."""
    paths = [Path(folder) / FOLDER / name / FILE for folder in folders]
    return [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.is_file()]


def diagnostics_rows(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Columns, rows and notes of the table of a dataset's diagnostics."""
    columns = ["method", "vote shares, error", "of chance", "correlation", "widest gap", "by chance", "agreed pairs"]
    columns += [f"over {content['baseline'] or 'btl'}", "varies with the user", "dimensions"]
    rows = []
    for method, found in content["methods"].items():
        shares = found["shares"]["pairs"] if found["shares"]["pairs"]["n"] else found["shares"]["responses"]
        name, gap = max(
            found["gaps"].items(), key=lambda item: item[1]["gap"] / item[1]["gap_by_chance"], default=("", None)
        )
        tax, signs = found["tax"] or {}, found["collapse"]
        correlation, dimensions = shares.get("correlation"), signs.get("effective_dimensions")
        rows.append(
            [
                method,
                interval(shares["error"]) if shares["n"] else "–",
                points(shares["chance_error"]) if shares["n"] else "–",
                f"{correlation:.2f}" if correlation is not None else "–",
                f"{points(gap['gap'])} ({name})" if gap else "–",
                points(gap["gap_by_chance"]) if gap else "–",
                interval(tax.get("accuracy")),
                interval(tax.get("difference"), sign=True),
                f"{100 * signs['user_share']:.0f} %" if signs["user_share"] is not None else "–",
                f"{dimensions:.1f}" if dimensions is not None else "–",
            ]
        )
    notes = [
        "Vote shares: mean distance, in points, of the predicted from the real share of users who prefer a response; of "
        "chance: what knowing every user's probabilities would leave.",
        "Widest gap: largest difference of accuracies between groups of users, and the 95th percentile of such gaps "
        "when groups are drawn by lot.",
        f"Nearly all users agree on {100 * content['share_of_agreed_pairs']:.0f} % of the pairs.",
        "Varies with the user: share of the margins' variance that lies between users who judged the same pair; "
        "dimensions: participation ratio of the users' states.",
    ]
    return columns, rows, notes


def model_diagnostics(
    models: Sequence[str],
    names: Sequence[str],
    data: str | Path,
    splits: Mapping[str, Any],
    users: Any,
    split: str,
    *,
    noise: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    n_context: int = 8,
    baseline: str | None = None,
    seed: int = 0,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """What needs the models again: `label_noise` where `noise` is given, `best_of_n` where `sizes` are."""
    from .best_of_n import best_of_n
    from .evaluation_data import EvaluationData
    from .label_noise import label_noise_curve, over_baseline
    from .scorers import load_scorers

    scorers = load_scorers(models, splits, names=names, users=users)
    history = scorers[0].pairs.history
    out: dict[str, Any] = {}
    if noise:
        found = label_noise_curve(
            scorers, EvaluationData(history), split, n_context=n_context, rates=noise, seed=seed, show=show
        )
        differences = over_baseline(found, baseline, seed) if baseline in found else {}
        for curve in found.values():
            del curve["users"]
        out["label_noise"] = {"methods": found, "over_baseline": differences}
    if sizes:
        out["best_of_n"] = best_of_n(
            scorers, data, splits, history, split=split, n_context=n_context, sizes=sizes, seed=seed, show=show
        )
    return out


__all__ = [
    "Predictions",
    "diagnostics_rows",
    "model_diagnostics",
    "read_diagnostics",
    "stored_diagnostics",
    "write_diagnostics",
]
