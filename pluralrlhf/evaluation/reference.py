"""Ceilings: what is known of a generated population, used to predict each pair from k of the user's choices.

The predictive probability is exact: a sum over types, or an integral over Gaussian weights by Monte Carlo. No
method that sees the same contexts can be right more often, so a method's gain is judged as a share of the ceiling's.
Where no truth is known, `item_factors.py` gives a reference instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from ..data.history import UserHistory
from ..data.populations.styles import choice_probability
from ..errors import ConfigError
from .controls import Context

# A choice that no weights explain would make every weight impossible; this much noise keeps the posterior proper.
_LEAST_NOISE = 1e-4
_CHUNK = 8_000_000  # numbers in the largest temporary array


def types_posterior(
    context: np.ndarray,
    mask: np.ndarray,
    weights: np.ndarray,
    prior: np.ndarray,
    *,
    label_noise: float = 0.0,
    temperature: float = 0.0,
) -> np.ndarray:
    """Posterior of the user's type given the choices in a context.

    Args:
        context: (B, K, A) attributes of chosen minus rejected.
        mask: (B, K) false where a context is shorter.
        weights: (T, A) of the types.
        prior: (T,) or (B, T) probabilities of the types.
        label_noise, temperature: See [`choice_probability`].

    Returns:
        (B, T) probabilities; the prior where the mask is empty.
    """
    prior = np.broadcast_to(prior, (len(context), len(weights)))
    likelihood = choice_probability(context @ weights.T, max(label_noise, _LEAST_NOISE), temperature)
    with np.errstate(divide="ignore"):
        log = np.log(prior) + np.where(mask[:, :, None], np.log(likelihood), 0.0).sum(1)
    return special.softmax(log, axis=1)


def types_predictive(
    context: np.ndarray,
    mask: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    prior: np.ndarray,
    *,
    label_noise: float = 0.0,
    temperature: float = 0.0,
) -> np.ndarray:
    """(B,) probability of the choice in `target` (B, A) given the context; other arguments as in [`types_posterior`]."""
    posterior = types_posterior(context, mask, weights, prior, label_noise=label_noise, temperature=temperature)
    return (posterior * choice_probability(target @ weights.T, label_noise, temperature)).sum(1)


def gaussian_predictive(
    context: np.ndarray,
    mask: np.ndarray,
    target: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    *,
    label_noise: float = 0.0,
    temperature: float = 0.0,
    samples: int = 512,
    seed: int = 0,
) -> np.ndarray:
    """Probability of a choice under weights from N(mean, covariance), given the choices in a context.

    Averages over samples of the posterior, see [`gaussian_posterior`]. Rows with equal contexts share them.

    Args:
        context: (B, K, A) attributes of chosen minus rejected.
        mask: (B, K) false where a context is shorter.
        target: (B, A) attributes of chosen minus rejected.
        mean: (A,) of the prior.
        covariance: (A, A) of the prior, symmetric and not negative; some weights may be fixed.
        label_noise, temperature: See [`choice_probability`].
        samples, seed: See [`gaussian_posterior`].

    Returns:
        (B,) probabilities.
    """
    context = np.where(mask[..., None], context, 0.0)
    flat = np.concatenate([context.reshape(len(context), -1), mask], axis=1)
    _, first, owner = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    owner = owner.reshape(-1)
    probability = np.empty(len(target))
    step = max(1, _CHUNK // (samples * max(*mask.shape, len(mean))))
    for low in range(0, len(first), step):
        part = first[low : low + step]
        weights = gaussian_posterior(
            context[part],
            mask[part],
            mean,
            covariance,
            label_noise=label_noise,
            temperature=temperature,
            samples=samples,
            seed=seed,
        )
        for row in np.flatnonzero((owner >= low) & (owner < low + step)):
            margins = weights[owner[row] - low] @ target[row]
            probability[row] = choice_probability(margins, label_noise, temperature).mean()
    return probability


def gaussian_posterior(
    context: np.ndarray,
    mask: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    *,
    label_noise: float = 0.0,
    temperature: float = 0.0,
    samples: int = 512,
    moves: int = 6,
    seed: int = 0,
) -> np.ndarray:
    """Samples of the posterior of weights from N(mean, covariance), given the choices in a context.

    A sequential Monte Carlo sampler (Del Moral et al. 2006): from the prior, the likelihood is let in step by step
    such that half of the samples still count, they are resampled, and each makes a few moves of elliptical slice
    sampling (Murray et al. 2010), which leave every intermediate posterior as it is. It needs no gradient, so that a
    choice by the sign of the margin (temperature 0) is no special case. Draws are the same for every context.

    Args:
        context, mask, mean, covariance, label_noise, temperature: As in [`gaussian_predictive`].
        samples: Samples that move in parallel.
        moves: Moves after each step; three times as many at the end, and every third state of those is kept.
        seed: Seed of the draws.

    Returns:
        (B, 4 samples, A) weights.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, float))
    factor = vectors * np.sqrt(np.clip(values, 0, None))
    # Margins are offset + projected . u, with u from N(0, I).
    log_likelihood = _Likelihood(context @ factor, context @ mean, mask, label_noise, temperature)
    generator = np.random.default_rng(seed)
    batch, dim = len(context), len(values)
    u = np.broadcast_to(_opposite(generator.standard_normal((-(-samples // 2), dim)))[:samples], (batch, samples, dim))
    u = u.astype(np.float32)
    log, power = log_likelihood(u), np.zeros(batch)
    while (power < 1).any():
        step = _temper(log, 1 - power)
        weight = special.softmax(step[:, None] * log, axis=1)
        places = (np.arange(samples) + generator.random()) / samples
        ancestor = np.stack([np.searchsorted(np.cumsum(w), places * w.sum()) for w in weight])
        ancestor = np.minimum(ancestor, samples - 1)
        u, log = np.take_along_axis(u, ancestor[..., None], 1), np.take_along_axis(log, ancestor, 1)
        power = np.where(power + step > 1 - 1e-9, 1.0, power + step)
        for _ in range(moves):
            u, log = _elliptical_slice(log_likelihood, u, log, power, generator)
    kept = [u]
    for move in range(3 * moves):
        u, log = _elliptical_slice(log_likelihood, u, log, power, generator)
        if move % moves == moves - 1:
            kept.append(u)
    return mean + np.concatenate(kept, axis=1) @ factor.T


@dataclass(frozen=True)
class _Likelihood:
    """Log likelihood (B, N) of the choices in B contexts, as a function of (B, N, A) whitened weights."""

    projected: np.ndarray
    offset: np.ndarray
    mask: np.ndarray
    label_noise: float
    temperature: float

    def __call__(self, u: np.ndarray) -> np.ndarray:
        noise = max(self.label_noise, _LEAST_NOISE)
        margins = u @ self.projected.transpose(0, 2, 1).astype(u.dtype)
        margins += self.offset[:, None].astype(u.dtype)
        shown = self.mask[..., None].astype(u.dtype)
        if self.temperature == 0:
            # Two values only, so that counting the choices explained is enough (a constant aside).
            scale = 0.5 * (np.log1p(-noise) - np.log(noise))
            return scale * (np.sign(margins) @ shown)[..., 0]
        return (np.log(choice_probability(margins, noise, self.temperature)) @ shown)[..., 0]


def _temper(log: np.ndarray, most: np.ndarray) -> np.ndarray:
    """(B,) power in (0, most] of the likelihoods `log` (B, N) that leaves half of the samples effective."""
    low, high = np.zeros(len(log)), most.copy()
    power = high.copy()
    for _ in range(16):
        weight = special.softmax(power[:, None] * log, axis=1)
        enough = 1 / (weight**2).sum(1) >= 0.5 * log.shape[1]
        low, high = np.where(enough, power, low), np.where(enough, high, power)
        power = np.where(low == most, most, (low + high) / 2)
    return np.maximum(low, np.minimum(most, 1e-3))


def _elliptical_slice(log_likelihood, u, log, power, generator, shrinks: int = 8):
    """One move of every sample; one that finds no point of its slice within the shrinkages stays, which is valid."""
    n, dim = u.shape[1:]
    other = _opposite(generator.standard_normal((-(-n // 2), dim)))[:n].astype(u.dtype)
    threshold = power[:, None] * log + np.log1p(-generator.random(n))
    angle = np.broadcast_to(generator.random(n) * 2 * np.pi, log.shape)
    low, high = angle - 2 * np.pi, angle.copy()
    moved = np.zeros(log.shape, dtype=bool)
    result, result_log = u, log
    for _ in range(shrinks):
        turned = angle.astype(u.dtype)[..., None]
        proposal = u * np.cos(turned) + other * np.sin(turned)
        proposal_log = log_likelihood(proposal)
        accept = ~moved & (power[:, None] * proposal_log > threshold)
        result = np.where(accept[..., None], proposal, result)
        result_log = np.where(accept, proposal_log, result_log)
        moved |= accept
        low, high = np.where(angle < 0, angle, low), np.where(angle >= 0, angle, high)
        angle = low + (high - low) * generator.random(n)
    return result, result_log


def _opposite(draws: np.ndarray) -> np.ndarray:
    """Draws and their opposites side by side: the mean is exact."""
    return np.stack([draws, -draws], axis=1).reshape(-1, draws.shape[1])


@dataclass(frozen=True)
class Truth:
    """What is known of a generated population (folder `truth/` of its dataset).

    Attributes:
        info: `truth.json`.
        delta: Pair id to the row of `deltas`.
        deltas: (n, A) attributes of chosen minus rejected.
    """

    info: dict
    delta: dict[str, int]
    deltas: np.ndarray

    @classmethod
    def load(cls, folder: str | Path) -> Truth:
        """Reads the truth of a dataset folder; a dataset without one is a `ConfigError`."""
        import pyarrow.parquet as pq

        path = Path(folder) / "truth"
        if not (path / "truth.json").is_file() or not (path / "pairs.parquet").is_file():
            raise ConfigError(
                f"`{folder}` has no `truth/`: a ceiling needs a generated population (pets, styles) that is no placebo. "
                "Elsewhere, item-id factors serve as a reference."
            )
        info = json.loads((path / "truth.json").read_text(encoding="utf-8"))
        table = pq.read_table(path / "pairs.parquet", columns=["pair_id", "delta"])
        deltas = table["delta"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return cls(info, {pair: i for i, pair in enumerate(table["pair_id"].to_pylist())}, deltas)

    def predictive(
        self, target: np.ndarray, context: np.ndarray, mask: np.ndarray, *, test_users: np.ndarray | bool = False
    ) -> np.ndarray:
        """(B,) probability of each choice: `target` (B, A) given `context` (B, K, A), `mask` (B, K).

        Args:
            test_users: (B,) or one bool: whether the user is an unseen one, where their prior differs from training's.
        """
        noise = {"label_noise": self.info["label_noise"], "temperature": self.info["temperature"]}
        if self.info["kind"] == "continuous":
            mean, covariance = np.array(self.info["mean"]), np.array(self.info["covariance"])
            return gaussian_predictive(context, mask, target, mean, covariance, **noise)
        weights = np.array([kind["weights"] for kind in self.info["types"]])
        return types_predictive(context, mask, target, weights, self._prior(test_users, len(target)), **noise)

    def _prior(self, test_users: np.ndarray | bool, n: int) -> np.ndarray:
        known = np.array(self.info["probabilities"])
        unseen = np.array(self.info.get("test_probabilities", known))
        return np.where(np.broadcast_to(test_users, n)[:, None], unseen, known)


def ceiling(
    folder: str | Path,
    pair_ids: Sequence[str],
    context_pair_ids: Sequence[Sequence[str]],
    *,
    test_users: bool = False,
) -> np.ndarray:
    """Exact predictive probability of recorded choices, by pair ids as in `per_pair.parquet`.

    Args:
        folder: Dataset folder of a generated population.
        pair_ids: (B,) targets.
        context_pair_ids: (B,) lists of the pairs that each target is predicted from, as the user chose.
        test_users: Whether the targets are of unseen users.

    Returns:
        (B,) probabilities of the recorded choices, label noise included.
    """
    truth = Truth.load(folder)
    most = max(map(len, context_pair_ids), default=0)
    index = np.full((len(pair_ids), most), -1)
    for row, ids in enumerate(context_pair_ids):
        index[row, : len(ids)] = [truth.delta[pair] for pair in ids]
    target = truth.deltas[[truth.delta[pair] for pair in pair_ids]]
    return truth.predictive(target, truth.deltas[index], index >= 0, test_users=test_users)


class CeilingScorer:
    """The exact posterior as a scorer of the evaluation: the same contexts as the models, controls included.

    Args:
        folder: Dataset folder of a generated population.
        history: All splits, in the numbering that contexts use.
    """

    method, seed, uses_context, path = "ceiling", 0, True, None

    def __init__(self, folder: str | Path, history: UserHistory):
        self.truth = Truth.load(folder)
        position = [self.truth.delta[pair] for pair in history.pair_ids.to_pylist()]
        self.deltas = self.truth.deltas[position]
        self.test_user = np.zeros(history.n_rows, dtype=bool)
        for name, (low, high) in history.splits.items():
            self.test_user[low:high] = name.startswith("test_unseen_users")

    def score(self, rows: np.ndarray, context: Context, predictive: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Margins (log odds) and probabilities of the choices in `rows` (B,)."""
        shown = np.where(context.flipped[..., None], -1.0, 1.0) * self.deltas[context.index]
        mask = context.index >= 0
        probability = self.truth.predictive(self.deltas[rows], shown, mask, test_users=self.test_user[rows])
        return special.logit(np.clip(probability, 1e-12, 1 - 1e-12)), probability

    def score_random_state(self, rows: np.ndarray, draw: np.ndarray) -> None:
        """There is no state that could be drawn at random."""

    def states(self, context: Context) -> None:
        """There is no state to map."""
