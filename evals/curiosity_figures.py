"""Figures and tables of the curiosity experiments, from the files the experiments wrote.

    python evals/curiosity_figures.py --runs runs/curiosity --results evals/results/curio

Writes, for the language-model policies: curves.csv, arms.csv, summary.md, curves.png; for the policies over acts:
acts/*.png and acts/summary.md; for CaSiNo: casino/accuracy.png. Areas under the curves are means of held-out success
over the steps (trapezoids). Differences of areas pair runs of one start and seed; their intervals are conservative: they
take a curve's points to err together (they share their users) and the two arms to err independently. They say nothing
about other starts.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

COLOURS = {
    "end": "black", "end_phi": "tab:gray", "diff_log_acc": "tab:blue", "diff_acc": "tab:orange", "diff_ent": "tab:green",
    "info_gain": "tab:olive", "acc": "tab:red", "ent": "tab:purple", "diff_log_acc_zero": "tab:cyan",
    "diff_acc_zero": "tab:brown", "diff_log_acc_shuffled": "tab:pink", "diff_log_acc_learned": "navy",
}  # fmt: skip


def area(steps, values) -> float:
    """Mean of a curve over its steps."""
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def area_error(curve) -> float:
    """Standard error of an area over held-out users, the curve's points erring together."""
    return float(np.mean([(p["test"]["success"]["ci95"][1] - p["test"]["success"]["ci95"][0]) / 3.92 for p in curve]))


def axes(width=6.4, height=4.0):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    import matplotlib.pyplot as pyplot

    pyplot.close(figure)


def language_model_arms(runs: Path, out: Path) -> None:
    results = [json.loads(p.read_text()) for p in sorted(runs.glob("*.json"))]
    if not results:
        return
    out.mkdir(parents=True, exist_ok=True)
    areas = {(r["arm"], r["seed"]): area([p["step"] for p in r["curve"]], [p["test"]["success"]["value"] for p in r["curve"]]) for r in results}  # fmt: skip
    with open(out / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["arm", "seed", "step", "seconds", "split", "success", "low", "high", "invalid", "turns", "belief_true"]
        )
        for r in results:
            for p in r["curve"]:
                for split in ("train", "validation", "test"):
                    s = p[split]
                    row = [
                        s["success"]["value"],
                        *s["success"]["ci95"],
                        s["invalid"],
                        s["turns"]["value"],
                        s["belief_true"][-1],
                    ]
                    writer.writerow([r["arm"], r["seed"], p["step"], p["seconds"], split, *(round(x, 4) for x in row)])
    lines = [
        "| arm | seed | area | area - end | best: step, held-out | final: held-out | train | gap | invalid | reaches .90 |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    rows = []
    for r in sorted(results, key=lambda r: (list(COLOURS).index(r["arm"]) if r["arm"] in COLOURS else 99, r["seed"])):
        final, best, tr = r["final"]["test"], r["best"]["test"], r["final"]["train"]["success"]["value"]
        value = final["success"]["value"]
        reached = [p["step"] for p in r["curve"] if p["test"]["success"]["value"] >= 0.9]
        paired = areas.get(("end", r["seed"]))
        shown = lambda s: f"{s['success']['value']:.3f} [{s['success']['ci95'][0]:.3f}, {s['success']['ci95'][1]:.3f}]"  # noqa: E731
        delta = ""
        if paired is not None and r["arm"] != "end":
            other = next(q for q in results if (q["arm"], q["seed"]) == ("end", r["seed"]))
            error = 1.96 * np.hypot(area_error(r["curve"]), area_error(other["curve"]))
            gap = areas[r["arm"], r["seed"]] - paired
            delta = f"{gap:+.3f} [{gap - error:+.3f}, {gap + error:+.3f}]"
        lines.append(
            f"| {r['arm']} | {r['seed']} | {areas[r['arm'], r['seed']]:.3f} | {delta} | {r['best_step']}, {shown(best)} | "
            f"{shown(final)} | {tr:.3f} | {tr - value:+.3f} | {100 * final['invalid']:.1f} % | "
            f"{reached[0] if reached else 'no'} |"
        )
        rows.append([r["arm"], r["seed"], areas[r["arm"], r["seed"]], value, *final["success"]["ci95"], best["success"]["value"],
                     r["best_step"], tr, tr - value, final["invalid"], final["shares"]["total_variation"],
                     final["belief_true"][-1], r["seconds_training"]])  # fmt: skip
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    with open(out / "arms.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "area", "final", "low", "high", "best", "best_step", "train", "gap", "invalid",
                         "shares_off_by", "belief_true", "seconds"])  # fmt: skip
        writer.writerows([[x if isinstance(x, str) else round(x, 4) for x in row] for row in rows])
    figure, ax = axes()
    for r in results:
        steps, y = [p["step"] for p in r["curve"]], [p["test"]["success"]["value"] for p in r["curve"]]
        label = r["arm"] if r["seed"] == min(q["seed"] for q in results if q["arm"] == r["arm"]) else None
        ax.plot(steps, y, color=COLOURS.get(r["arm"]), label=label, lw=1.5)
        low, high = zip(*(p["test"]["success"]["ci95"] for p in r["curve"]))
        ax.fill_between(steps, low, high, color=COLOURS.get(r["arm"]), alpha=0.08)
    ax.axhline(0.9, color="k", lw=0.5, ls=":")
    ax.set(xlabel="step", ylabel="success, held-out users", ylim=(0, 1), title="language-model policies")
    ax.legend(fontsize=8)
    save(figure, out / "curves.png")


def mean_and_interval(values, seed=0):
    values = np.asarray(values)
    draws = values[np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))].mean(axis=1)
    return values.mean(), *np.percentile(draws, [2.5, 97.5])


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
    parser.add_argument("--runs", default="runs/curiosity", type=Path)
    parser.add_argument("--results", default="evals/results/curio", type=Path)
    args = parser.parse_args()
    language_model_arms(args.runs, args.results / "arms")
    acts(args.results / "acts")
    casino(args.results / "casino")


if __name__ == "__main__":
    main()
