"""Figures and tables of the policies over acts and of CaSiNo, from the files that the experiments wrote.

    python evals/curiosity_figures.py --results evals/results/curio

Writes acts/*.png, acts/summary.md and casino/accuracy.png. Areas under the curves are means of held-out success over the
steps (trapezoids). The language-model arms have curiosity_compare.py.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

COLOURS = {
    "end": "black", "end_phi": "tab:gray", "diff_log_acc": "tab:blue", "diff_acc": "tab:orange", "diff_ent": "tab:green",
    "info_gain": "tab:olive", "acc": "tab:red", "ent": "tab:purple", "diff_log_acc_zero": "tab:cyan",
    "diff_acc_zero": "tab:brown", "diff_log_acc_shuffled": "tab:pink", "diff_log_acc_learned": "navy",
    "diff_log_acc_trajectory": "teal",
}  # fmt: skip


def area(steps, values) -> float:
    """Mean of a curve over its steps."""
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def axes(width=6.4, height=4.0, columns=None):
    """A figure and its axes; with `columns` an array of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if columns is None:
        return pyplot.subplots(figsize=(width, height), layout="constrained")
    figure, panels = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, panels[0]


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    import matplotlib.pyplot as pyplot

    pyplot.close(figure)


def acts(folder: Path) -> None:
    text = []
    for study, measures in (
        ("arms", ("success",)),
        ("longer_talk", ("turns", "success")),
        ("steering", ("leading", "success", "entropy", "belief_true")),
    ):
        path = folder / f"{study}.json"
        if not path.is_file():
            continue
        data = json.loads(path.read_text())
        curves = defaultdict(list)
        for run in data["runs"]:
            curves[run["arm"]].append(run)
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        n = len(measures)
        figure, all_axes = pyplot.subplots(1, n, figsize=(0.6 + 4.4 * n, 3.8), layout="constrained", squeeze=False)
        for ax, measure in zip(all_axes[0], measures):
            for arm, runs in curves.items():
                steps = [p["step"] for p in runs[0]["curve"]]
                y = np.array([[p["test"][measure] for p in r["curve"]] for r in runs])
                ax.plot(steps, y.mean(axis=0), color=COLOURS.get(arm), label=arm)
                ax.fill_between(steps, y.min(axis=0), y.max(axis=0), color=COLOURS.get(arm), alpha=0.1)
            ax.set(xlabel="step", ylabel=f"{measure}, held-out users", title=f"{study}: {measure}")
        all_axes[0][0].legend(fontsize=7)
        save(figure, folder / f"{study}.png")
        text += [f"## {study}", "", f"`{data['command']}`", ""]
        text += ["| arm | success | gap | turns | leading | entropy | true type | shares off by | area - end |"]
        text += ["|---|---|---|---|---|---|---|---|---|"]
        area_of = {
            (arm, r["seed"]): area([p["step"] for p in r["curve"]], [p["test"]["success"] for p in r["curve"]])
            for arm, runs in curves.items()
            for r in runs
        }
        for arm, runs in curves.items():
            last = [r["curve"][-1]["test"] for r in runs]
            mean = lambda key: np.mean([p[key] for p in last])  # noqa: B023, E731
            gap = np.mean([r["curve"][-1]["train"]["success"] - r["curve"][-1]["test"]["success"] for r in runs])
            off = np.mean([np.abs(np.subtract(p["shares"], p["true_shares"])).sum() / 2 for p in last])
            delta = [area_of[arm, r["seed"]] - area_of["end", r["seed"]] for r in runs]
            low, high = min(delta), max(delta)
            text.append(
                f"| {arm} | {mean('success'):.3f} | {gap:+.3f} | {mean('turns'):.2f} | {mean('leading'):.2f} | "
                f"{mean('entropy'):.3f} | {mean('belief_true'):.3f} | {off:.3f} | "
                f"{np.mean(delta):+.3f} ({low:+.3f} to {high:+.3f}) |"
            )
        text += ["", f"Means over {len(runs)} seeds; in brackets the smallest and largest of them.", ""]
    if text:
        (folder / "summary.md").write_text("\n".join(text))


def casino(folder: Path) -> None:
    if not (folder / "results.json").is_file():
        return
    data = json.loads((folder / "results.json").read_text())
    figure, ax = axes()
    for name in ("majority", "bag_of_words", "classifier", "ranking"):
        if name in data:
            rows = data[name]["accuracy"]
            low, high = zip(*(r["ci95"] for r in rows))
            ax.plot(data["turns"], [r["value"] for r in rows], label=name, marker=".")
            ax.fill_between(data["turns"], low, high, alpha=0.15)
    ax.axhline(1 / 6, color="k", lw=0.5, ls=":")
    ax.set(xlabel="sentences heard", ylabel="accuracy over 6 orders", title="CaSiNo, 5 folds", ylim=(0, 0.7))
    ax.legend()
    save(figure, folder / "accuracy.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="evals/results/curio", type=Path)
    args = parser.parse_args()
    acts(args.results / "acts")
    casino(args.results / "casino")


if __name__ == "__main__":
    main()
