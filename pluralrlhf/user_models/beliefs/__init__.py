"""Beliefs over user types: exact Bayes, a language model's logits, a trained classifier.

Every belief model has `n_types` and `beliefs(transcripts) -> (N, T + 1, n_types)`, with index t after the t-th
assistant message and the answer to it.
"""

from .calibration import expected_calibration_error, fit_temperature
from .exact import ExactBelief, FactoredBelief

__all__ = ["ExactBelief", "FactoredBelief", "expected_calibration_error", "fit_temperature"]
