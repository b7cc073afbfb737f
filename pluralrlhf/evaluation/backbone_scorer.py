"""Backbone-route reward models as scorers: every target is read anew under its user's state."""

from __future__ import annotations

import numpy as np
import torch

from ..data.contexts import distinct_contexts
from ..modeling import conditioned
from .controls import Context
from .scorers import RewardModelScorer, Scores, median_ms


class BackboneScorer(RewardModelScorer):
    """A backbone-route [`PersonalizedRewardModel`] as a scorer."""

    def prepare(self, rows: np.ndarray) -> None:
        """Nothing: without its user, a response has no features."""

    @torch.inference_mode()
    def encode(self, context: Context):
        """State of one user a row; equal contexts are encoded once."""
        index, flipped, of_target = distinct_contexts(context.index, context.flipped)
        batch = {key: value.to(self.device) for key, value in self.pairs.context(index, flipped).items()}
        state = conditioned.encode(
            self.model,
            len(index),
            batch["context_input_ids"],
            batch["context_attention_mask"],
            batch["context_index"],
            batch["context_mask"],
        )
        return state.rows(torch.from_numpy(of_target).to(self.device))

    @torch.inference_mode()
    def _score(self, rows: np.ndarray, state, predictive: bool) -> Scores:
        head, reader, margin = self.model.user_model, conditioned.BackboneReader(self.model), np.empty(len(rows))
        order = np.argsort(self.pairs.lengths(rows), kind="stable")
        for start in range(0, len(rows), self.batch_size):
            at = order[start : start + self.batch_size]
            batch = {key: value.to(self.device) for key, value in self.pairs.targets(rows[at]).items()}
            users = state.rows(torch.from_numpy(at).to(self.device))
            chosen, rejected = (
                head.score_tokens(reader, batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"], users).double()
                for side in ("chosen", "rejected")
            )
            margin[at] = (chosen - rejected).cpu().numpy()
        return margin, 1 / (1 + np.exp(-margin))

    def new_user_ms(self, context: Context, repeats: int = 3) -> float:
        """Median milliseconds to encode one new user from the texts of its pairs."""
        one = Context(context.index[:1], context.flipped[:1])
        return median_ms(lambda: self.encode(one), repeats, self.device)
