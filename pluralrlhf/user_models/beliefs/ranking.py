"""Beliefs about how a speaker ranks a few named items, from the speaker's words."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sparse
from scipy.optimize import minimize

from ...errors import ConfigError
from .calibration import fit_temperature
from .exact import normalise

NUMBERS = {"one": "1", "two": "2", "three": "3", "all": "3"}


@dataclass
class RankingBeliefConfig:
    """Settings of `RankingBelief`.

    Args:
        items: Item -> regular expressions of the words that name it.
        ngrams: Longest word sequence that is a feature.
        min_count: Sequences that occur in fewer training messages are dropped.
        l2: Weight of the squared coefficients.
    """

    items: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ngrams: int = 3
    min_count: int = 3
    l2: float = 5.0

    def __post_init__(self):
        if not 2 <= len(self.items) <= 5:
            raise ConfigError(f"`items` has {len(self.items)} items; a ranking belief takes 2 to 5.")


class RankingBelief:
    """P(ranking | what the speaker said), equivariant to renaming the items.

    For each item the text is read with that item's name replaced by `tgt` and the other items' names by `oth`; word
    sequences with `tgt` in them ("need tgt", "extra tgt", "tgt is least") are its evidence x_i. With two weight
    vectors shared by all items, logit(ranking) = w_first . x_first + w_last . x_last. What is learnt about how people
    speak of what they want holds for every item, so a few hundred dialogues suffice; a bag of words has to learn each
    of the rankings on its own. Counts enter as square roots, summed over the turns so far.
    """

    def __init__(self, config: RankingBeliefConfig):
        self.config = config
        self.types = list(itertools.permutations(range(len(config.items))))
        self.n_types = len(self.types)
        self._names = [re.compile(rf"\b(?:{'|'.join(words)})\b") for words in config.items.values()]
        self._first = np.array([t[0] for t in self.types])
        self._last = np.array([t[-1] for t in self.types])
        self.vocabulary: dict[str, int] = {}
        self.weights = np.zeros((0, 2))
        self.temperature = 1.0

    def _sequences(self, text: str, item: int) -> list[str]:
        text = text.lower()
        for i, name in enumerate(self._names):
            text = name.sub(" tgt " if i == item else " oth ", text)
        words = [NUMBERS.get(w, w) for w in re.findall(r"[^\W_]+|[?!.]", text)]
        grams = (words[i : i + n] for n in range(1, self.config.ngrams + 1) for i in range(len(words) - n + 1))
        return [" ".join(gram) for gram in grams if "tgt" in gram]

    def _features(self, transcripts: Sequence[Sequence[dict[str, str]]]):
        """One matrix an item, (rows, V), a row for every prefix of every conversation; and (conversation, turn)."""
        per_turn = []
        for transcript in transcripts:
            turns: list[list[str]] = [[]]
            for message in transcript:
                if message["role"] == "assistant":
                    turns.append([])
                elif message["role"] == "user":
                    turns[-1].append(message["content"])
            per_turn.append(turns)
        where = [(n, t) for n, turns in enumerate(per_turn) for t in range(len(turns))]
        matrices = []
        for item in range(len(self._names)):
            data, indices, pointers = [], [], [0]
            for turns in per_turn:
                counts: Counter[int] = Counter()
                for messages in turns:
                    for text in messages:
                        counts.update(self.vocabulary[g] for g in self._sequences(text, item) if g in self.vocabulary)
                    indices += counts.keys()
                    data += counts.values()
                    pointers.append(len(indices))
            shape = (len(where), len(self.vocabulary))
            matrices.append(sparse.csr_matrix((np.sqrt(np.array(data, dtype=float)), indices, pointers), shape=shape))
        return matrices, where

    def _logits(self, matrices, weights: np.ndarray) -> np.ndarray:
        scores = np.stack([x @ weights for x in matrices], axis=1)  # (rows, items, 2)
        return scores[:, self._first, 0] + scores[:, self._last, 1]

    @classmethod
    def fit(
        cls,
        transcripts: Sequence[Sequence[dict[str, str]]],
        types: Sequence[int],
        config: RankingBeliefConfig,
        calibration: tuple[Sequence[Sequence[dict[str, str]]], Sequence[int]] | None = None,
    ) -> RankingBelief:
        """Penalised maximum likelihood over every prefix (a conversation's prefixes share a weight of one)."""
        model = cls(config)
        seen: Counter[str] = Counter()
        for transcript in transcripts:
            for message in transcript:
                if message["role"] == "user":
                    seen.update({g for i in range(len(config.items)) for g in model._sequences(message["content"], i)})
        model.vocabulary = {g: i for i, g in enumerate(sorted(g for g, n in seen.items() if n >= config.min_count))}
        matrices, where = model._features(transcripts)
        lengths = np.bincount([n for n, _ in where])
        weight = np.array([1 / lengths[n] for n, _ in where])
        target = np.eye(model.n_types)[[types[n] for n, _ in where]]
        firsts, lasts = np.eye(len(config.items))[model._first], np.eye(len(config.items))[model._last]

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w = flat.reshape(-1, 2)
            logits = model._logits(matrices, w)
            p = normalise(logits)
            loss = -(weight * np.log(np.maximum((p * target).sum(axis=1), 1e-300))).sum()
            error = weight[:, None] * (p - target)
            by_item = np.stack([error @ firsts, error @ lasts], axis=2)  # (rows, items, 2)
            gradient = sum(x.T @ by_item[:, i] for i, x in enumerate(matrices)) + config.l2 * w
            return loss + config.l2 / 2 * (w**2).sum(), gradient.ravel()

        start = np.zeros(2 * len(model.vocabulary))
        model.weights = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x.reshape(
            -1, 2
        )
        if calibration is not None:
            matrices, where = model._features(calibration[0])
            held_out = np.array([calibration[1][n] for n, _ in where])
            model.temperature = fit_temperature(model._logits(matrices, model.weights), held_out)
        return model

    def beliefs(self, transcripts: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        """Beliefs (N, T + 1, U) over the permutations in `types` (first to last); ends repeat their last belief."""
        matrices, where = self._features(transcripts)
        rows = normalise(self._logits(matrices, self.weights) / self.temperature)
        turns = max((t for _, t in where), default=0) + 1
        out = np.full((len(transcripts), turns, self.n_types), np.nan)
        for (n, t), row in zip(where, rows):
            out[n, t:] = row
        return out
