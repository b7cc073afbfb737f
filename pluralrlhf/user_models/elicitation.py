"""Which pair to ask a user next: what answers would tell about the choices that are to be predicted.

Everything here reads the posterior of a user model through draws of states, so that it serves every method with a
posterior. Probabilities are of the first response of a pair; which side is which changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import UserModel, UserState
from .linear import LinearUserModel, blocks_of, grouped, moderate

Acquisition = Literal["epig", "bald", "d_optimal", "random"]
ACQUISITIONS: tuple[str, ...] = ("epig", "bald", "d_optimal", "random")
MAX_JOINT_QUESTIONS = 8
"""Questions whose joint answers are enumerated: 2^8 of them."""


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of a coin in nats, elementwise; 0 at 0 and 1."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


@dataclass
class Uncertainty:
    """A predictive probability and its entropy in two parts, each of the same shape, in nats.

    Attributes:
        probability: E_u p(first response preferred | u), over the posterior of the user.
        aleatoric: E_u H(p(. | u)): what is left when the user is known.
        epistemic: H(E_u p) - E_u H(p): what knowing the user better could remove; 0 for a method without a posterior.
    """

    probability: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    @property
    def total(self) -> Tensor:
        """Entropy of the predictive probability."""
        return self.aleatoric + self.epistemic


class Pairs:
    """Pairs of responses, prepared once to be scored under many states.

    Args:
        model: A head-route user model in evaluation mode.
        features: (Q, 2, d) standardised features; the order of the two responses carries no meaning.
    """

    def __init__(self, model: UserModel, features: Tensor):
        if model.route != "head":
            reads = "reads users as texts" if model.route == "text" else "changes what the backbone computes"
            raise ConfigError(f"`{model.name}` {reads} and has no posterior over features. Ask with `random`.")
        self.model, self.features = model, features
        self.design = self.offset = None
        if isinstance(model, LinearUserModel):
            with torch.no_grad():
                self.design, self.offset = model.pairs(features)

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, index: Sequence[int] | Tensor) -> Pairs:
        """Some of the pairs, without computing anything again."""
        index = torch.as_tensor(index, dtype=torch.long, device=self.features.device)
        part = object.__new__(Pairs)
        part.model, part.features = self.model, self.features[index]
        part.design = None if self.design is None else self.design[index]
        part.offset = None if self.offset is None else self.offset[index]
        return part

    @torch.no_grad()
    def margins(self, state: UserState) -> Tensor:
        """(U, Q) reward of the first minus that of the second response, for every state."""
        if self.design is not None:
            return self.offset + state["weights"] @ self.design.T
        rewards = self.model.score_matrix(self.features.flatten(0, 1), state)
        return rewards[:, 0::2] - rewards[:, 1::2]

    @torch.no_grad()
    def log_odds(self, state: UserState) -> Tensor:
        """(U, Q) log-odds of the first response: the margins, moderated by their posterior spread where the reward is
        linear in the user, so that a guess from few answers is not taken for knowledge."""
        margins = self.margins(state)
        if self.design is None or "covariance" not in state.tensors:
            return margins
        blocks = blocks_of(state["covariance"])
        design = grouped(self.design, blocks).transpose(0, 1)
        variance = ((design @ blocks) * design).sum((1, -1))
        return moderate(margins, variance.clamp(min=0))

    def draws(self, state: UserState, n_draws: int = 512, seed: int = 0) -> Tensor:
        """(S, Q) probabilities of the first response under draws from the posterior of one user."""
        return torch.sigmoid(self.margins(posterior_draws(self.model, state, n_draws, seed)))

    @torch.no_grad()
    def covariance(self, state: UserState, n_draws: int = 512, seed: int = 0) -> Tensor:
        """(Q, Q) posterior covariance of the margins; exact where the reward is linear in the user."""
        if self.design is not None and "covariance" in state.tensors:
            blocks = blocks_of(state["covariance"])
            design = grouped(self.design, blocks).transpose(0, 1)
            return (design @ blocks[0] @ design.transpose(1, 2)).sum(0)
        margins = self.margins(posterior_draws(self.model, state, n_draws, seed))
        return torch.cov(margins.T).reshape(len(self), len(self))


@torch.no_grad()
def posterior_draws(model: UserModel, state: UserState, n_draws: int, seed: int = 0) -> UserState:
    """`n_draws` states from the posterior of one user; a method without a posterior gives the state itself, once.

    The same seed gives the same noise for every state, so that questions are compared under common random numbers.
    """
    if len(state) != 1:
        raise ConfigError(f"`state` holds {len(state)} users; ask one user at a time.")
    if not model.has_posterior:
        return state
    index = torch.zeros(n_draws, dtype=torch.long, device=next(iter(state.tensors.values())).device)
    # A generator on the processor, where a seed means the same everywhere.
    return model.sample(state.rows(index), torch.Generator().manual_seed(seed))


@torch.no_grad()
def predictive(pairs: Pairs, state: UserState, n_draws: int = 512, seed: int = 0) -> Uncertainty:
    """What one user would choose in each pair, (Q,), and how much of the doubt is about the user.

    Args:
        pairs: Q pairs.
        state: One user.
        n_draws: Draws from the posterior.
        seed: Seed of the draws.
    """
    return uncertainty(pairs.draws(state, n_draws, seed))


def uncertainty(p: Tensor) -> Uncertainty:
    """From probabilities (S, Q) under S draws of the user."""
    mean = p.mean(0)
    aleatoric = binary_entropy(p).mean(0)
    return Uncertainty(mean, aleatoric, (binary_entropy(mean) - aleatoric).clamp(min=0))


def bald(p: Tensor, asked: Tensor | None = None) -> Tensor:
    """(Q,) information of each answer about the user, in nats: H(E p) - E H(p) (Houlsby et al. 2011).

    Args:
        p: (S, Q) probabilities under draws.
        asked: (S, J) likelihood of the joint answers to the questions already in the set; the information is then that
            of the set with each candidate added, and a question asked twice adds what its second answer adds.
    """
    if asked is None:
        asked = p.new_ones(len(p), 1)
    # H(answers) of a set: sum over joint answers j and the candidate's answer of -m log m, m = E_s L_sj p_sq.
    yes, no = (asked.T @ side / len(p) for side in (p, 1 - p))
    total = -(torch.xlogy(yes, yes) + torch.xlogy(no, no)).sum(0)
    within = -torch.xlogy(asked, asked).sum(1).mean() + binary_entropy(p).mean(0)
    return (total - within).clamp(min=0)


def epig(p: Tensor, targets: Tensor, asked: Tensor | None = None) -> Tensor:
    """(Q,) expected information of each answer about a target choice, in nats, a mean over targets.

    EPIG (Bickford Smith et al. 2023, https://arxiv.org/abs/2304.08151) is the mutual information of the answer and the
    choice in a target pair: what the user is asked only counts as far as it tells what will be predicted.

    Args:
        p: (S, Q) probabilities of the candidates under draws.
        targets: (S, T) probabilities of the targets under the same draws.
        asked: As for `bald`.
    """
    n_draws = len(p)
    asked = p.new_ones(n_draws, 1) if asked is None else asked
    goal = targets.mean(0)
    information = p.new_zeros(p.shape[1])
    for side in (p, 1 - p):
        for answers in asked.unbind(1):
            likelihood = side * answers[:, None]
            probability = likelihood.mean(0)
            joint = likelihood.T @ targets / n_draws
            # I = sum of joint log(joint / product), over both choices in the target.
            for both, marginal in ((joint, goal), (probability[:, None] - joint, 1 - goal)):
                both = both.clamp(min=0)
                product = probability[:, None] * marginal
                information += (torch.xlogy(both, both) - torch.xlogy(both, product.clamp(min=1e-30))).mean(1)
    return information.clamp(min=0)


def d_optimal(p: Tensor, covariance: Tensor) -> Tensor:
    """(Q,) by how much each answer raises the log-determinant of the posterior precision.

    Args:
        p: (Q,) predictive probabilities.
        covariance: (Q, Q) posterior covariance of the margins, see `Pairs.covariance`.
    """
    return torch.log1p(p * (1 - p) * covariance.diagonal().clamp(min=0))


def next_question(
    candidates: Pairs,
    state: UserState,
    acquisition: Acquisition = "epig",
    *,
    targets: Pairs | None = None,
    n_draws: int = 512,
    seed: int = 0,
) -> tuple[int, float]:
    """The pair to ask one user next, and what it is worth by the acquisition; see `question_set`."""
    index, worth = question_set(candidates, state, 1, acquisition, targets=targets, n_draws=n_draws, seed=seed)
    return index[0], worth[0]


@torch.no_grad()
def question_set(
    candidates: Pairs,
    state: UserState,
    size: int,
    acquisition: Acquisition = "epig",
    *,
    targets: Pairs | None = None,
    n_draws: int = 512,
    seed: int = 0,
) -> tuple[list[int], list[float]]:
    """Pairs to ask one user together, chosen greedily given the earlier ones of the set.

    The information of a set is less than the sum of its questions': `epig` and `bald` enumerate the joint answers,
    `d_optimal` conditions the covariance on the earlier questions.

    Args:
        candidates: Q pairs.
        state: What is known of the user.
        size: Number of pairs; at most 8 for `epig` and `bald`.
        acquisition: `epig`, `bald`, `d_optimal` or `random`.
        targets: Pairs whose choices are to be predicted, for `epig`; the candidates themselves if not given.
        n_draws: Draws from the posterior.
        seed: Seed of the draws, and of `random`.

    Returns:
        Distinct indices in the order chosen, and what the set was worth after each (nats; for `random` 0).

    Raises:
        ConfigError: A method without a posterior, an unknown acquisition, or more questions than candidates.
    """
    model = candidates.model
    if acquisition not in ACQUISITIONS:
        raise ConfigError(f"`acquisition` is {acquisition!r}; it must be one of {', '.join(ACQUISITIONS)}.")
    if not 1 <= size <= len(candidates):
        raise ConfigError(f"`size` is {size} for {len(candidates)} candidate pairs; ask between 1 and all of them.")
    if acquisition == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(candidates), generator=generator)[:size].tolist(), [0.0] * size
    if not model.has_posterior:
        raise ConfigError(
            f"`{model.name}` has no posterior over users, so that no question is known to tell more than another. Use "
            "`acquisition='random'`, or a method with a posterior (bayes_head, ours, vpl, spl, lore, pal)."
        )
    if acquisition != "d_optimal" and size > MAX_JOINT_QUESTIONS:
        raise ConfigError(
            f"`size` is {size}; `{acquisition}` enumerates the joint answers of at most {MAX_JOINT_QUESTIONS} "
            "questions. Ask in smaller sets, or use `d_optimal`."
        )
    chosen: list[int] = []
    worth: list[float] = []
    p = candidates.draws(state, n_draws, seed)
    if acquisition == "d_optimal":
        covariance, mean, total = candidates.covariance(state, n_draws, seed), p.mean(0), 0.0
        for _ in range(size):
            value = d_optimal(mean, covariance)
            best = _best(value, chosen)
            total += float(value[best])
            chosen.append(best)
            worth.append(total)
            weight = mean[best] * (1 - mean[best])
            column = covariance[:, best]
            covariance = covariance - torch.outer(column, column) * weight / (1 + weight * column[best])
        return chosen, worth
    goal = (candidates if targets is None else targets).draws(state, n_draws, seed) if acquisition == "epig" else None
    asked = p.new_ones(len(p), 1)
    for _ in range(size):
        value = epig(p, goal, asked) if acquisition == "epig" else bald(p, asked)
        best = _best(value, chosen)
        chosen.append(best)
        worth.append(float(value[best]))
        one = p[:, best : best + 1]
        asked = torch.cat([asked * one, asked * (1 - one)], dim=1)
    return chosen, worth


def _best(value: Tensor, chosen: list[int]) -> int:
    value = value.clone()
    value[chosen] = -math.inf
    return int(value.argmax())
