"""Beliefs over user types: exact Bayes, a language model's logits, trained classifiers.

Every belief model has `n_types` and `beliefs(transcripts) -> (N, T + 1, n_types)`, with index t after the t-th
assistant message and the answer to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .calibration import expected_calibration_error, fit_temperature
from .exact import ExactBelief, FactoredBelief

if TYPE_CHECKING:
    from .classifier import ClassifierBelief, ClassifierBeliefConfig
    from .language_model import LanguageModelBelief
    from .ranking import RankingBelief, RankingBeliefConfig

# Imported when asked for: they need torch or scipy, which the exact beliefs do without.
_LAZY = {
    "ClassifierBelief": "classifier",
    "ClassifierBeliefConfig": "classifier",
    "LanguageModelBelief": "language_model",
    "RankingBelief": "ranking",
    "RankingBeliefConfig": "ranking",
}

__all__ = [
    "ClassifierBelief",
    "ClassifierBeliefConfig",
    "ExactBelief",
    "FactoredBelief",
    "LanguageModelBelief",
    "RankingBelief",
    "RankingBeliefConfig",
    "expected_calibration_error",
    "fit_temperature",
]


def __getattr__(name: str):
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
