"""Evaluation: does a model predict better because it knows its user, and how sure may we be?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluate import evaluate_reward
    from .evaluation_data import EvaluationData
    from .report import join, write_report
    from .runner import run_scorers
    from .scorers import RewardModelScorer, Scorer
    from .suite import run_suite
    from .suite_spec import load_suite

_HOME = {
    "EvaluationData": "evaluation_data",
    "RewardModelScorer": "scorers",
    "Scorer": "scorers",
    "evaluate_reward": "evaluate",
    "join": "report",
    "load_suite": "suite_spec",
    "run_scorers": "runner",
    "run_suite": "suite",
    "write_report": "report",
}
__all__ = [
    "EvaluationData",
    "RewardModelScorer",
    "Scorer",
    "evaluate_reward",
    "join",
    "load_suite",
    "run_scorers",
    "run_suite",
    "write_report",
]


def __getattr__(name: str):
    """Imported on first use: a command's `-h` waits for neither torch nor matplotlib."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
