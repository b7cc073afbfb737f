"""How the users of a population weigh a response's features: hierarchical Bayes by expectation maximisation."""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import newton_posterior

# Mean squared length of a pair's difference, in units in which weights are about 1 before anything is seen.
_SQUARED_LENGTH = 18.0
_PSEUDO_USERS, _PSEUDO_VARIANCE = 2, 0.05


def principal_directions(differences: Tensor, most: int) -> Tensor:
    """The directions in which pairs differ most.

    Args:
        differences: (n, d) of the pairs' features.
        most: Most directions wanted.

    Returns:
        (d, q) orthogonal columns of one length, q <= `most` and no more than the differences span: none, where there
        are no differences. Projected on all directions, a difference has the mean squared length 18.
    """
    differences = differences.double()
    values, vectors = torch.linalg.eigh(differences.T @ differences / len(differences))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = values.sum().clamp(min=1e-12)
    kept = min(most, int((values > 1e-8 * total).sum()))
    return (vectors[:, :kept] * (_SQUARED_LENGTH / total).sqrt()).float()


def by_user(rows: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, q) of users (n,) as (B, K, q), zeros where a user has fewer than K, and the mask (B, K)."""
    _, user, counts = users.unique(return_inverse=True, return_counts=True)
    order = user.argsort(stable=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    where = user[order], torch.arange(len(order), device=rows.device) - first
    shape = len(counts), int(counts.max())
    table, mask = rows.new_zeros(*shape, rows.shape[1]), rows.new_zeros(shape)
    table[where], mask[where] = rows[order], 1.0
    return table, mask


@torch.no_grad()
def fit_population(design: Tensor, users: Tensor, steps: int = 10, block: int = 256) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance of the users' weights, from all of their choices.

    .. math:: P(y_{ui}) = \sigma(w_u \cdot \Delta z_{ui}), \qquad w_u \sim N(\mu, S), \qquad \mu \sim N(0, v I)

    An EM step takes Laplace's posterior :math:`N(\hat w_u, C_u)` of every user under mu and S. Then mu makes one Newton
    step towards its mode, where S^{-1} less S^{-1} C_u S^{-1} is what user u says of it; in the second half of the steps
    :math:`v = (|\mu|^2 + \operatorname{tr} V) / q`, V being the covariance of mu (empirical Bayes: where pairs are few for
    their directions, mu stays small); and :math:`S = \overline{(\hat w_u - \mu)(\hat w_u - \mu)^\top + C_u}`, the mean
    with two further users of a small isotropic covariance, so that S stays regular where there are few.

    Args:
        design: (n, q) differences of the features, chosen minus rejected.
        users: (n,) whose choice it was.
        steps: Number of EM steps.
        block: Users whose posteriors are computed at once.

    Returns:
        mu (q,) and S (q, q).
    """
    q = design.shape[1]
    table, mask = by_user(design, users)
    eye = torch.eye(q, dtype=design.dtype, device=design.device)
    mean, factor, zeros, ones = design.new_zeros(q), eye, design.new_zeros(q), design.new_ones(q)
    variance = 1.0
    for number in range(steps):
        # In coordinates a, w = mean + factor a, in which the prior is N(0, I).
        modes, within = [], torch.zeros_like(eye)
        for rows, shown in zip(table.split(block), mask.split(block)):
            mode, _, lower = newton_posterior(rows @ factor, rows @ mean, shown, zeros, ones, steps=8)
            modes.append(mode)
            within += torch.cholesky_inverse(lower).sum(0)
        mode = torch.cat(modes)
        n_users = len(mode)
        known = torch.linalg.cholesky(n_users * eye - within + factor.T @ factor / variance)
        step = torch.cholesky_solve((mode.sum(0) - factor.T @ mean / variance)[:, None], known)[:, 0]
        mean = mean + factor @ step
        if number >= steps // 2:  # before S is about right it leaves too little of the choices to mu
            variance = (mean @ mean + (factor @ torch.cholesky_inverse(known) @ factor.T).trace()) / q
        apart = mode - step
        total = factor @ (apart.T @ apart + within) @ factor.T + _PSEUDO_USERS * _PSEUDO_VARIANCE * eye
        covariance = total / (n_users + _PSEUDO_USERS)
        factor = torch.linalg.cholesky(covariance)
    return mean, covariance
