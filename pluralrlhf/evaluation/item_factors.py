"""Item-id factors: a labelled reference where no truth is known, not a method.

r(item | u) = b_item + u . v_item, fitted to the training users' choices (probabilistic matrix factorisation of pairwise
choices; Salakhutdinov and Mnih 2008, Koren et al. 2009). It reads no text: it knows each response by the votes that
others gave on it, so it says what there is to find on *seen* items and nothing on unseen ones. A new user is the mode of
their posterior given the context. Rank and penalties are chosen on validation users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from ..data.history import UserHistory
from ..data.schema import TRAIN, VALIDATION
from ..errors import ConfigError
from .controls import Context
from .opinions import Opinions


@dataclass(frozen=True)
class ItemFactors:
    """A fitted model. Item `n_items` stands for all that were not seen in training: its reward is 0.

    Attributes:
        bias: (n_items + 1,) rewards that all users share.
        factors: (n_items + 1, r) by which users differ.
        penalty: Precision of the prior of a new user's vector.
    """

    bias: np.ndarray
    factors: np.ndarray
    penalty: float

    def users(self, context: np.ndarray, mask: np.ndarray, steps: int = 8) -> np.ndarray:
        """Posterior modes of users, by damped Newton steps.

        Args:
            context: (B, K, 2) items chosen and rejected.
            mask: (B, K) false where a context is shorter.

        Returns:
            (B, r); zero where the mask is empty.
        """
        chosen, rejected = np.where(mask[..., None], context, len(self.bias) - 1).transpose(2, 0, 1)
        offset = self.bias[chosen] - self.bias[rejected]
        delta = self.factors[chosen] - self.factors[rejected]
        user = np.zeros((len(context), self.factors.shape[1]))
        identity = self.penalty * np.eye(self.factors.shape[1])
        for _ in range(steps):
            probability = special.expit(offset + np.einsum("bkr,br->bk", delta, user))
            gradient = np.einsum("bk,bkr->br", (1 - probability) * mask, delta) - self.penalty * user
            curvature = (probability * (1 - probability) * mask)[..., None] * delta
            hessian = delta.transpose(0, 2, 1) @ curvature + identity
            user = user + np.linalg.solve(hessian, gradient[..., None])[..., 0]
        return user

    def margins(self, target: np.ndarray, context: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(B,) margins of `target` (B, 2) items chosen and rejected, given contexts (B, K, 2) with `mask` (B, K)."""
        chosen, rejected = target.T
        user = self.users(context, mask)
        taste = ((self.factors[chosen] - self.factors[rejected]) * user).sum(1)
        return self.bias[chosen] - self.bias[rejected] + taste


def fit_item_factors(
    user: np.ndarray,
    pairs: np.ndarray,
    n_items: int,
    *,
    rank: int = 8,
    item_penalty: float = 10.0,
    bias_penalty: float = 0.1,
    user_penalty: float = 1.0,
    steps: int = 120,
    seed: int = 0,
) -> ItemFactors:
    """Fits the factors by Adam on all choices at once.

    Args:
        user: (n,) user codes from 0.
        pairs: (n, 2) items chosen and rejected, codes below `n_items`.
        n_items: Number of items.
        rank: r.
        item_penalty, bias_penalty, user_penalty: Precisions of the Gaussian priors of v, b and u.
        steps: Adam steps.
        seed: Seed of the first values.
    """
    generator = torch.Generator().manual_seed(seed)
    users, chosen, rejected = (torch.from_numpy(np.ascontiguousarray(a, np.int64)) for a in (user, *pairs.T))
    bias = torch.zeros(n_items, requires_grad=True)
    factors = (0.3 * torch.randn(n_items, rank, generator=generator)).requires_grad_()
    people = (0.3 * torch.randn(int(user.max()) + 1, rank, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([bias, factors, people], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.002)
    for _ in range(steps):
        delta = factors.index_select(0, chosen) - factors.index_select(0, rejected)
        margin = bias[chosen] - bias[rejected] + (delta * people.index_select(0, users)).sum(1)
        loss = torch.nn.functional.softplus(-margin).sum() + 0.5 * (
            item_penalty * factors.square().sum() + bias_penalty * bias.square().sum()
        )
        loss = loss + 0.5 * user_penalty * people.square().sum()
        optimizer.zero_grad()
        (loss / len(users)).backward()
        optimizer.step()
        schedule.step()
    # A vector that most users share is taste that all share.
    mean = people.detach().mean(0)
    bias, factors = bias.detach() + factors.detach() @ mean, factors.detach()
    bias, factors = np.r_[bias.numpy(), 0.0].astype(float), np.r_[factors.numpy(), np.zeros((1, rank))].astype(float)
    return ItemFactors(bias, factors, user_penalty)


class ItemFactorsScorer:
    """Item-id factors as a scorer of the evaluation: fitted on `train`, chosen on `validation`, the models' contexts.

    Args:
        history: All splits; `train` and `validation` must be among them.
        opinions: Which responses each of its rows compares.
        ranks: Ranks to choose from.
        penalties: Penalties of factors to choose from; those of new users are chosen as well.
        k: Size of the contexts on which the choice is made.
        seed: Seed of the first values.

    Raises:
        ConfigError: There are no training or no validation pairs.
    """

    method, uses_context, path = "item_factors", True, None

    def __init__(
        self,
        history: UserHistory,
        opinions: Opinions,
        *,
        ranks: Sequence[int] = (8, 16),
        penalties: Sequence[float] = (3.0, 10.0, 30.0),
        k: int = 8,
        seed: int = 0,
    ):
        self.seed = seed
        for name in (TRAIN, VALIDATION):
            if name not in history.splits or not len(history.rows(name)):
                raise ConfigError(f"item-id factors need pairs in `{name}`: found none")
        train, validation = history.rows(TRAIN), history.rows(VALIDATION)
        known = np.unique(opinions.response[train])
        self.items = np.minimum(np.searchsorted(known, opinions.response), len(known) - 1)
        self.items[known[self.items] != opinions.response] = len(known)
        _, user = np.unique(history.user[train], return_inverse=True)
        context = history.context(validation, k)
        weight = 1 / np.bincount(history.user[validation], minlength=len(history.users))[history.user[validation]]
        best = (np.inf, None)
        for rank in ranks:
            for penalty in penalties:
                model = fit_item_factors(
                    user, self.items[train], len(known), rank=rank, item_penalty=penalty, seed=seed
                )
                for user_penalty in (0.5, 1.0, 2.0, 4.0):
                    candidate = ItemFactors(model.bias, model.factors, user_penalty)
                    margins = candidate.margins(self.items[validation], self.items[context], context >= 0)
                    loss = np.average(np.logaddexp(0, -margins), weights=weight)
                    if loss < best[0]:
                        best = (loss, candidate)
        self.model: ItemFactors = best[1]
        self.validation_loss = float(best[0])

    def score(self, rows: np.ndarray, context: Context, predictive: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Margins and probabilities of the choices in `rows` (B,), from the posterior mode of each context."""
        margins = self.model.margins(self.items[rows], self._shown(context), context.index >= 0)
        return margins, special.expit(margins)

    def score_random_state(self, rows: np.ndarray, draw: np.ndarray) -> None:
        """Not a method: there is no random user to compare with."""

    def states(self, context: Context) -> np.ndarray:
        """(B, r) posterior modes."""
        return self.model.users(self._shown(context), context.index >= 0)

    def _shown(self, context: Context) -> np.ndarray:
        items = self.items[context.index]
        return np.where(context.flipped[..., None], items[..., ::-1], items)
