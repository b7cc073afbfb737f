"""Exact Bayes where the simulator's likelihood is known: the reference that other beliefs are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import ConfigError


class ExactBelief:
    """Posterior over types from per-answer likelihoods.

    Args:
        prior: P(type), (U,).
        likelihood: P(answer | question, type), (Q, A, U); sums to one over answers.
    """

    def __init__(self, prior: np.ndarray, likelihood: np.ndarray):
        self.prior = np.asarray(prior, dtype=np.float64)
        self.likelihood = np.asarray(likelihood, dtype=np.float64)
        if self.prior.ndim != 1 or self.likelihood.ndim != 3 or self.likelihood.shape[2] != len(self.prior):
            raise ConfigError(
                f"`prior` has shape {self.prior.shape} and `likelihood` {self.likelihood.shape}; expected (U,) and "
                "(questions, answers, U)."
            )
        if not np.allclose(self.prior.sum(), 1) or not np.allclose(self.likelihood.sum(axis=1), 1):
            raise ConfigError("`prior` must sum to 1, and `likelihood` to 1 over answers for every question and type.")
        self.n_types = len(self.prior)

    def update(self, belief: np.ndarray, question: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """Belief (..., U) after hearing `answer` (...) to `question` (...)."""
        joint = belief * self.likelihood[question, answer]
        return joint / joint.sum(axis=-1, keepdims=True)

    def beliefs_of(self, questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Beliefs (N, T + 1, U) over turns; `questions` and `answers` are (N, T), -1 where nothing was asked."""
        with np.errstate(divide="ignore"):
            log_likelihood = np.log(self.likelihood[questions, answers])
            log_likelihood[questions < 0] = 0.0
            log_prior = np.broadcast_to(np.log(self.prior), (len(questions), 1, self.n_types))
        return normalise(np.concatenate([log_prior, log_likelihood], axis=1).cumsum(axis=1))


class FactoredBelief:
    """Posterior over types of users with many independent two-valued attributes.

    Each statement is evidence about one attribute: P(states v | has v) = 1 - `error`. The posterior factors over
    attributes, so its cost grows with their number and not with the number of combinations; the types are a function
    of a few of them (the first D, with `combinations` listing their values and `types` the type of each combination).

    Args:
        n_attributes: Number of attributes A.
        combinations: Values of the deciding attributes, (C, D).
        types: Type of each combination, (C,).
        error: Probability that a statement is wrong, in (0, 0.5).
    """

    def __init__(self, n_attributes: int, combinations: np.ndarray, types: np.ndarray, error: float):
        if not 0 < error < 0.5:
            raise ConfigError(f"`error` is {error}; it must lie between 0 and 0.5.")
        self.n_attributes = n_attributes
        self.combinations, self.types = np.asarray(combinations), np.asarray(types)
        self.n_types = int(self.types.max()) + 1
        self.log_odds_of_statement = float(np.log((1 - error) / error))

    def log_odds(self, statements: Sequence[Sequence[Sequence[tuple[int, int]]]]) -> np.ndarray:
        """log P(1) / P(0) of every attribute, (N, T + 1, A), given `statements[n][t]` = [(attribute, value), ...]."""
        n_turns = max((len(turns) for turns in statements), default=1)
        evidence = np.zeros((len(statements), n_turns, self.n_attributes))
        for n, turns in enumerate(statements):
            for t, said in enumerate(turns):
                for attribute, value in said:
                    evidence[n, t, attribute] += self.log_odds_of_statement * (2 * value - 1)
        return evidence.cumsum(axis=1)

    def beliefs(self, statements) -> np.ndarray:
        """Posterior over types, (N, T + 1, U)."""
        log_odds = self.log_odds(statements)[..., : self.combinations.shape[1]]
        # log P(combination) up to a constant: every attribute with value 1 adds its log odds.
        weights = normalise(log_odds @ self.combinations.T.astype(np.float64))
        return weights @ np.eye(self.n_types)[self.types]


def normalise(log_weights: np.ndarray) -> np.ndarray:
    """exp(log_weights), scaled to sum to one over the last axis."""
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
