"""Text-route reward models as scorers: every context becomes a text, and is read in front of each target."""

from __future__ import annotations

import time

import numpy as np
import torch

from ..modeling.text import encode_contexts
from ..user_models.text import TextState
from .controls import Context
from .scorers import RewardModelScorer, Scores


class TextScorer(RewardModelScorer):
    """A text-route [`PersonalizedRewardModel`] as a scorer; a text has no states of random users and no map.

    The control of a random state is another user's text (`wrong_user`).
    """

    def prepare(self, rows: np.ndarray) -> None:
        """Nothing: with a text in front, a response has no features of its own."""

    def encode(self, context: Context) -> TextState:
        """The text of one user a row, for targets that share no item with what the user wrote."""
        return encode_contexts(self.model, self.pairs.user_contexts(context.index, context.flipped))

    @torch.inference_mode()
    def score(self, rows: np.ndarray, context: Context, predictive: bool = True) -> Scores:
        margin = np.empty(len(rows))
        # Targets of like contexts side by side: less padding, and a user's text is written (and, packed, read) once.
        order = np.lexsort((rows, self.pairs.history.user[rows], (context.index >= 0).sum(1)))
        for start in range(0, len(rows), self.batch_size):
            at = order[start : start + self.batch_size]
            batch = self.pairs.batch(rows[at], context.index[at], context.flipped[at])
            logits = self.model(**{key: value.to(self.device) for key, value in batch.items()}).logits
            chosen, rejected = logits.squeeze(-1).double().chunk(2)
            margin[at] = (chosen - rejected).cpu().numpy()
        return self._checked((margin, 1 / (1 + np.exp(-margin))))

    def score_random_state(self, rows: np.ndarray, draw: np.ndarray) -> Scores | None:
        return None

    def states(self, context: Context) -> np.ndarray | None:
        return None

    def new_user_ms(self, context: Context, repeats: int = 3) -> float:
        """Median milliseconds to make one new user's text."""
        head, times = self.model.user_model, []
        for _ in range(repeats):
            if hasattr(head, "_known"):
                head._known.clear()
            start = time.perf_counter()
            # As if for a target like the first pair shown, whose items stay hidden.
            self.pairs.texts(context.index[:1], context.flipped[:1], np.maximum(context.index[:1, 0], 0))
            times.append(time.perf_counter() - start)
        return float(np.median(times) * 1000)
