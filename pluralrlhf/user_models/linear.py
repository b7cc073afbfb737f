"""What methods share whose reward is linear in the user: r(e | u) = r0(e) + w_u . phi(e)."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import PairOutput, UserModel, UserState, mlp, standard_normal


def feature_map(feature_dim: int, hidden: int, layers: int, out: int) -> nn.Module:
    """A linear map (`layers` = 0) or an MLP with so many hidden layers of width `hidden`, (d,) to (out,)."""
    return nn.Linear(feature_dim, out, bias=False) if not layers else mlp([feature_dim] + [hidden] * layers + [out])


def gather_pairs(values: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Rows of `values` (N, ...) for each user's context, (B, K, ...); zeros where there is no pair."""
    if not len(values):
        values = values.new_zeros(1, *values.shape[1:])
    nothing = ~mask.bool()
    rows = values[index.masked_fill(nothing, 0)]
    return rows.masked_fill(nothing.view(*nothing.shape, *[1] * (rows.dim() - 2)), 0)


def log_posterior(w: Tensor, design: Tensor, offset: Tensor, mask: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """(B,) log-likelihood of the context's labels plus the log prior of w, up to its constant; shapes as in
    `newton_posterior`."""
    logits = torch.baddbmm(offset[..., None], design, w[..., None]).squeeze(-1)
    return (F.logsigmoid(logits) * mask).sum(-1) - 0.5 * (precision * (w - mean) ** 2).sum(-1)


def newton_posterior(
    design: Tensor, offset: Tensor, mask: Tensor, mean: Tensor, precision: Tensor, steps: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    """Mode and Laplace precision of B Bayesian logistic regressions with Gaussian priors, solved at once.

    All but the last step run without a graph; the last is a Newton step at the mode with its Hessian held fixed. Since
    the step's own derivative vanishes there, its gradient is that of the mode by the implicit function theorem, at the
    cost of one step. The first half of the steps uses the curvature of Jaakkola and Jordan's bound, which never
    overshoots; the others are Newton's, which converge quadratically near the mode. They are not damped: where the first
    half ends far from it (differences of several standard deviations of the prior in every direction) they may overshoot.

    Args:
        design: (B, K, q) differences delta phi of the context pairs, zeros where there is none.
        offset: (B, K) what the reward of everybody already explains, delta r0.
        mask: (B, K) 1 where there is a pair.
        mean, precision: (q,) or (B, q) Gaussian prior.
        steps: Number of steps, at least 2.

    Returns:
        Mode (B, q), precision (B, q, q), and its lower Cholesky factor (B, q, q).
    """
    n_users, _, q = design.shape
    # Few operations, on columns (B, ., 1): for one user a call costs more than its arithmetic.
    offset, design = -offset[..., None], design * mask.to(design.dtype)[..., None]
    transposed, against = design.transpose(1, 2), -design
    prior = torch.diag_embed(precision).expand(n_users, q, q)
    mean, precision = (value.expand(n_users, q)[..., None] for value in (mean, precision))
    pull = precision * mean

    def mistaken(w: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds and probability (B, K, 1) of the other label."""
        logits = torch.baddbmm(offset, against, w)
        return logits, torch.sigmoid(logits)

    def hessian(curvature: Tensor) -> Tensor:
        return torch.baddbmm(prior, transposed, curvature * design)

    def bound(logits: Tensor, wrong: Tensor) -> Tensor:
        # tanh(x / 2) / (2 x), whose limit at 0 is 1/4.
        return torch.where(logits.abs() < 1e-2, 0.25, (wrong - 0.5) / logits)

    def own(wrong: Tensor) -> Tensor:
        return torch.addcmul(wrong, wrong, wrong, value=-1)

    def gradient(w: Tensor, wrong: Tensor) -> Tensor:
        return torch.baddbmm(torch.addcmul(pull, precision, w, value=-1), transposed, wrong)

    failed = []
    with torch.no_grad():
        w = mean.detach()
        for step in range(steps):
            logits, wrong = mistaken(w)
            factor, info = torch.linalg.cholesky_ex(hessian(bound(logits, wrong) if step < steps // 2 else own(wrong)))
            failed.append(info)
            if step < steps - 1:
                w = w + torch.cholesky_solve(gradient(w, wrong), factor)
    w = w + torch.cholesky_solve(gradient(w, mistaken(w)[1]), factor)
    precision_matrix = hessian(own(mistaken(w)[1]))
    # Asked once, at the end: on a GPU each question waits for the device.
    if torch.stack(failed).any():
        raise torch.linalg.LinAlgError(
            "The Hessian of a posterior is not positive definite: features or prior precisions are not finite, or too "
            "far apart for their type."
        )
    jitter = design.new_full((q,), 1e-6).diag()
    return w.squeeze(-1), precision_matrix, torch.linalg.cholesky(precision_matrix + jitter)


def simplex_posterior(
    design: Tensor, offset: Tensor, mask: Tensor, mean: Tensor, precision: Tensor, steps: int = 6
) -> tuple[Tensor, Tensor]:
    """As `newton_posterior` for weights w = softmax(a) with a Gaussian prior on the logits a.

    Gauss-Newton steps, whose curvature is positive also where the likelihood is not concave in a, with a graph through
    all of them.

    Args:
        design, offset, mask, mean, precision: As for `newton_posterior`; the prior is that of a.
        steps: Number of steps.

    Returns:
        Weights (B, q) on the simplex, and their covariance (B, q, q) by the Laplace approximation in a.
    """
    n_users, _, q = design.shape
    mask = mask.to(design.dtype)
    prior, a = torch.diag_embed(precision), mean.expand(n_users, q)

    def linearized(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w = a.softmax(-1)
        logits = offset + (design @ w[..., None]).squeeze(-1)
        jacobian = torch.diag_embed(w) - w[:, :, None] * w[:, None]
        slopes = design @ jacobian
        weight = torch.sigmoid(logits) * torch.sigmoid(-logits) * mask
        return w, jacobian, slopes, slopes.transpose(1, 2) @ (weight[..., None] * slopes) + prior

    for _ in range(steps):
        w, _, slopes, hessian = linearized(a)
        logits = offset + (design @ w[..., None]).squeeze(-1)
        gradient = ((torch.sigmoid(-logits) * mask)[:, None] @ slopes).squeeze(1) - precision * (a - mean)
        move = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(hessian)).squeeze(-1)
        # A logit that jumps further than this leaves the region in which the linearisation means anything.
        a = a + 2 * torch.tanh(move / 2)
    w, jacobian, _, hessian = linearized(a)
    return w, jacobian @ torch.cholesky_inverse(torch.linalg.cholesky(hessian)) @ jacobian


def gradient_steps(design: Tensor, share: Tensor, start: Tensor, rates: Tensor, steps: int) -> Tensor:
    r"""Weights (B, q) after gradient steps on B users' Bradley-Terry losses, with a graph through all of them.

    .. math:: w \leftarrow w + \alpha \odot \sum_i s_i\, \sigma(-w \cdot \Delta\phi_i)\, \Delta\phi_i

    Args:
        design: (B, K, q) differences delta phi of the context pairs.
        share: (B, K) weight s of each pair in the loss, 0 where there is none.
        start: (B, q) first weights.
        rates: (q,) or (B, q) step size of each weight.
        steps: Number of steps.
    """
    against, weights = -design, start[..., None]
    moves = (rates[..., None, :] * share[..., None] * design).transpose(1, 2)
    for _ in range(steps):
        weights = torch.baddbmm(weights, moves, torch.sigmoid(against @ weights))
    return weights.squeeze(-1)


def blocks_of(covariance: Tensor) -> Tensor:
    """A covariance as (B, M, q, q): of M groups of q weights, independent of each other; (B, q, q) is one group."""
    return covariance if covariance.dim() == 4 else covariance[:, None]


def grouped(values: Tensor, blocks: Tensor) -> Tensor:
    """The first M q of values (..., p) as (..., M, q); the last p - M q belong to weights that are known."""
    n_groups, q = blocks.shape[1:3]
    return values[..., : n_groups * q].unflatten(-1, (n_groups, q))


def margin_variance(difference: Tensor, covariance: Tensor) -> Tensor:
    """(B,) variance of w . delta phi, from (B, p) and a covariance (B, q, q) or (B, M, q, q), see `blocks_of`."""
    blocks = blocks_of(covariance)
    difference = grouped(difference, blocks)
    return ((difference[:, :, None] @ blocks).squeeze(2) * difference).flatten(1).sum(-1).clamp(min=0)


def moderate(margin: Tensor, variance: Tensor) -> Tensor:
    """The logit whose sigmoid is about E sigma(x), x ~ N(margin, variance) (MacKay 1992), elementwise."""
    return margin / torch.sqrt(1 + math.pi / 8 * variance)


def judged(
    base: Tensor, basis: Tensor, weights: Tensor, covariance: Tensor | None, margin: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What B users make of B pairs, chosen responses first, then rejected ones.

    Args:
        base, basis: (2B,) r0 and (2B, p) phi.
        weights, covariance: (B, p) w, and what of it is not known, if anything: see `blocks_of`.
        margin: (B,) taken from the log-odds.

    Returns:
        (2B,) rewards, and (B,) log-odds of the choices.
    """
    rewards = base + (basis * weights.repeat(2, 1)).sum(-1)
    logit = torch.sub(*rewards.chunk(2))
    logit = logit if margin is None else logit - margin
    if covariance is not None:
        logit = moderate(logit, margin_variance(torch.sub(*basis.chunk(2)), covariance))
    return rewards, logit


class LinearUserModel(UserModel):
    """Base of the methods with r(e | u) = r0(e) + w_u . phi(e).

    A subclass makes the modules `base` (r0, or `None` for 0) and `map` (phi) and implements `encode`, whose state has
    `weights` (B, p) and, for a posterior, `covariance` (B, q, q) of the first q <= p of them, or (B, M, q, q) of M
    independent groups of them. With a posterior the loss is that of the predictive probability, so that the spread is
    trained too. Features are read through `base_reward` and `basis` alone, in `encode` too, so that evaluation computes
    those once a response; a subclass that reads them otherwise gives `embed` and `on_embedded` of its own.
    """

    base: nn.Module | None
    map: nn.Module

    def base_reward(self, features: Tensor) -> Tensor:
        """(n,) what everybody gets."""
        return features.new_zeros(len(features)) if self.base is None else self.base(features).squeeze(-1)

    def basis(self, features: Tensor) -> Tensor:
        """(n, q) phi of features (n, d)."""
        return self.map(features)

    def embed(self, features: Tensor) -> Tensor:
        """(n, 1 + q) r0 and phi."""
        return torch.cat([self.base_reward(features)[:, None], self.basis(features)], dim=1)

    def on_embedded(self) -> LinearUserModel:
        twin = copy.copy(self)
        twin.base_reward, twin.basis = (lambda embedded: embedded[:, 0]), (lambda embedded: embedded[:, 1:])
        return twin

    def pairs(self, context_features: Tensor) -> tuple[Tensor, Tensor]:
        """Differences delta phi (N, q) and delta r0 (N,) of distinct context pairs (N, 2, d)."""
        flat = context_features.flatten(0, 1)
        design = self.basis(flat).unflatten(0, (len(context_features), 2))
        offset = self.base_reward(flat).unflatten(0, (len(context_features), 2))
        return design[:, 0] - design[:, 1], offset[:, 0] - offset[:, 1]

    def gathered(self, context_features: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the posterior of each user is made of: (B, K, q) delta phi, (B, K) delta r0 and mask."""
        design, offset = self.pairs(context_features)
        return gather_pairs(design, index, mask), gather_pairs(offset, index, mask), mask.to(design.dtype)

    def score(self, features: Tensor, state: UserState) -> Tensor:
        return self.base_reward(features) + (self.basis(features) * state["weights"]).sum(-1)

    def score_matrix(self, features: Tensor, state: UserState, max_elements: int = 1 << 22) -> Tensor:
        # One pass over the matrix, which is far larger than what it is made of: the product alone is bound by memory.
        return torch.addmm(self.base_reward(features)[None], state["weights"], self.basis(features).T)

    def moderates(self, state: UserState) -> bool:
        return "covariance" in state.tensors

    def log_odds(self, chosen: Tensor, rejected: Tensor, state: UserState) -> Tensor:
        margin = self.score(chosen, state) - self.score(rejected, state)
        if not self.moderates(state):
            return margin
        return moderate(margin, margin_variance(self.basis(chosen) - self.basis(rejected), state["covariance"]))

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        state: UserState,
        margin: Tensor | None = None,
        n_user_pairs: Tensor | None = None,
    ) -> PairOutput:
        term, metrics = self.regularizer(state, n_user_pairs)
        features, covariance = torch.cat([chosen, rejected]), state.tensors.get("covariance")
        rewards, logit = judged(self.base_reward(features), self.basis(features), state["weights"], covariance, margin)
        return PairOutput(*rewards.chunk(2), -F.logsigmoid(logit).mean() + term, metrics)

    def entropy(self, state: UserState) -> Tensor:
        """(U,) differential entropy of the Gaussian posterior over w, in nats."""
        return 0.5 * torch.logdet(2 * math.pi * math.e * blocks_of(state["covariance"])).sum(1)

    def sample(self, state: UserState, generator: torch.Generator | None = None) -> UserState:
        """A draw of w from the posterior, without spread of its own; the state itself where there is no posterior."""
        if "covariance" not in state.tensors:
            return state
        weights, blocks = state["weights"], blocks_of(state["covariance"])
        drawn = gaussian_draw(grouped(weights, blocks), blocks, generator).flatten(1)
        return UserState(self.name, {"weights": torch.cat([drawn, weights[:, drawn.shape[1] :]], dim=1)})


def gaussian_draw(mean: Tensor, covariance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(..., q) draws from N(mean, covariance), (..., q) and (..., q, q); the covariance may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.clamp(min=0).sqrt() * standard_normal(mean, generator)
    return mean + (vectors @ noise[..., None]).squeeze(-1)
