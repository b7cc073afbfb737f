"""What the benchmarks share: time in turns, medians, one line and one JSON object a benchmark."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def parser_for(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, help="JSON file to write the figures to")
    return parser


def clock(device: str) -> Callable[[], float]:
    """CPU seconds of this process where it computes itself, so that other processes on the machine do not count; the
    clock on the wall where a GPU does."""
    return time.perf_counter if device.startswith("cuda") else time.process_time


def in_turns(
    functions: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu"
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each function and what it returned last, called in turns so that a busy machine slows all.

    Args:
        functions: Name to what is timed; each is called once untimed first.
        repeats: Timed calls of each.
        device: Synchronised around each call where it is a GPU's.
    """
    import torch

    def synchronize() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    now = clock(device)
    results = {name: function() for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            synchronize()
            start = now()
            results[name] = function()
            synchronize()
            seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import transformers

    found: dict[str, Any] = {"device": device, "threads": torch.get_num_threads(), "processor": platform.machine()}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
    found |= {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return found


def rounded(value: Any) -> Any:
    """Floats with four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def finish(name: str, figures: Mapping[str, Any], output: Path | None = None, device: str = "cpu") -> None:
    """Prints a benchmark's figures as JSON, and writes them where asked."""
    text = json.dumps({"name": name, **rounded(figures), "machine": machine(device)}, indent=2)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
