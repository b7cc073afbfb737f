"""The benchmarks, one after the other, each in a process of its own; figures go to results.json and results.md.

    python -m evals.bench                         # half an hour on one CPU core
    python -m evals.bench --only score_matrix     # one of them; the others' figures stay
    python -m evals.bench --device cuda           # on a GPU: also tokens/s, memory and share of peak

Every benchmark prints a ratio measured in one run, in turns, and asserts that both ways give the same results. One that
misses its gate makes the exit status 1. `new_user.py` (one user on one core) and `rollout.py` are run by themselves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# name -> (module, arguments, takes a device)
BENCHMARKS = {
    "shared_prefix": ("shared_prefix", ["--repeats", "2"], True),
    "shared_prefix_0.5b": (
        "shared_prefix", ["--shape", "qwen2.5-0.5b", "--scenarios", "prompt", "--repeats", "1"], True,
    ),
    "packed_scores": ("packed_scores", [], True),
    "head_route": ("head_route", [], True),
    "score_matrix": ("score_matrix", [], False),
    "evaluation_memory": ("evaluation_memory", [], False),
    "shared_contexts": ("shared_contexts", [], False),
}  # fmt: skip


def run(name: str, device: str) -> dict:
    """The figures of one benchmark, with the command that made them."""
    module, arguments, takes_device = BENCHMARKS[name]
    arguments = [*arguments, *(["--device", device] if takes_device and device != "cpu" else [])]
    if device != "cpu" and module == "shared_prefix":
        arguments += ["--attention", "flex_attention"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"evals.bench.{module}", *arguments]
        subprocess.run([*command, "--output", str(output)], check=True, stdout=subprocess.DEVNULL)
        figures = json.loads(output.read_text())
    return {**figures, "name": name, "command": " ".join(["python", *command[1:]])}


def headline(figures: dict) -> list[tuple[str, str, str]]:
    """(what, measured, gate) of one benchmark, for the table."""
    name = figures["name"]
    if name.startswith("shared_prefix"):
        titles = {
            "prompt": "prefix 600, responses 100",
            "history": "8 pairs of one user, history of 2,000 tokens",
        }
        return [
            (f"packed step against TRL's, {figures['parameters_m']:.0f}M parameters: {titles[key]}",
             f"{figures[key]['ratio']:.2f}x faster", f"{figures[key]['gate']:g}x")
            for key in titles if key in figures
        ]  # fmt: skip
    if name == "packed_scores":
        what = (
            f"packed scoring of {figures['responses']} responses under a user's text of 2,000 tokens, against padded"
        )
        return [(what, f"{figures['ratio']:.2f}x faster", "")]
    if name == "head_route":
        gates = figures["gates"]
        return [
            ("step with cached contexts, k = 8, against plain Bradley-Terry",
             f"{figures['over_bradley_terry']:.3f}x the time", f"{gates['over_bradley_terry']:g}x"),
            ("cached contexts against re-encoding them", f"{figures['reencoding_over_cached']:.1f}x faster",
             f"{gates['reencoding_over_cached']:g}x"),
        ]  # fmt: skip
    if name == "score_matrix":
        gates = figures["gates"]
        rows = [
            (f"`score_matrix` of `{method}`, share of a bare product's rate", f"{found['share_of_matmul_rate']:.2f}",
             f"{gates['share_of_matmul_rate']:g}")
            for method, found in figures["linear"].items()
        ]  # fmt: skip
        rows += [
            (f"`score_matrix` of `{method}` against `model.score` in a loop over users",
             f"{found['over_loop']:,.0f}x faster ({found['scores_per_second']:,.0f} scores/s)",
             f"{gates['over_loop']:g}x")
            for method, found in figures["loops"].items()
        ]  # fmt: skip
        rows += [
            (f"`score_matrix` of `{method}`: its head alone, against that head in a loop over users",
             f"{found['head_only_over_head_only_loop']:.1f}x faster", "")
            for method, found in figures["loops"].items()
        ]  # fmt: skip
        return [*rows, ("peak memory of all of `score_matrix`", f"{figures['peak_memory_mib']:,.0f} MiB", "2,048 MiB")]
    if name == "shared_contexts":
        what = f"training step of `{{}}`, {figures['contexts']} contexts for {figures['targets']:,} targets, against one each"
        return [
            (what.format(method), f"{found['ratio']:.2f}x faster", "") for method, found in figures["methods"].items()
        ]
    return [
        ("peak memory of `eval reward`, 100,000 pairs against 10,000",
         f"{figures['ratio']:.2f}x ({figures['anonymous_mib_10k']:.0f} and {figures['anonymous_mib_100k']:.0f} MiB)",
         f"{figures['gate']:g}x"),
    ]  # fmt: skip


def table(results: dict) -> str:
    """The benchmarks as Markdown."""
    lines = ["| what | measured | gate |", "|---|---|---|"]
    lines += [
        f"| {what} | {found} | {gate} |" for figures in results.values() for what, found, gate in headline(figures)
    ]
    machines = sorted({json.dumps(figures["machine"], sort_keys=True) for figures in results.values()})
    about = "; ".join(", ".join(f"{key} {value}" for key, value in json.loads(text).items()) for text in machines)
    return "# Benchmarks\n\nWritten by `python -m evals.bench`.\n\n" + "\n".join(lines) + f"\n\nMachine: {about}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="some of them")
    parser.add_argument("--device", default="cpu", help="`cpu` or `cuda`")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of results.json and results.md")
    args = parser.parse_args()
    stem = "results" if args.device == "cpu" else f"results_{args.device}"
    file = args.output / f"{stem}.json"
    results = json.loads(file.read_text())["results"] if file.is_file() else {}
    for name in args.only or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr)
        results[name] = run(name, args.device)
        for what, found, gate in headline(results[name]):
            print(f"{what}: {found}" + (f" (gate {gate})" if gate else ""))
        results = {key: results[key] for key in BENCHMARKS if key in results}
        args.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"schema": 1, "results": results}, indent=2) + "\n", encoding="utf-8")
        file.with_name(f"{stem}.md").write_text(table(results), encoding="utf-8")
    missed = [name for name in args.only or BENCHMARKS if not results[name].get("passed", True)]
    if missed:
        print(f"below its gate: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
