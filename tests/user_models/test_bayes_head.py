"""The posterior of `bayes_head`: the mode, its spread and its gradient, against brute force."""

from __future__ import annotations

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model
from pluralrlhf.user_models.linear import log_posterior, moderate, newton_posterior

D = 10


def problem(q: int, k: int, users: int = 6, scale: float = 2.0, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    design = scale * torch.randn(users, k, q, generator=g, dtype=torch.float64)
    offset = torch.randn(users, k, generator=g, dtype=torch.float64)
    mask = (torch.rand(users, k, generator=g) < 0.8).double()
    mean, precision = (
        torch.randn(q, generator=g, dtype=torch.float64),
        torch.rand(q, generator=g, dtype=torch.float64) + 0.5,
    )
    return design * mask[..., None], offset * mask, mask, mean, precision


def test_mode_and_variance_in_one_dimension_are_those_of_a_fine_grid():
    design, offset, mask, mean, precision = problem(1, 7)
    mode, hessian, _ = newton_posterior(design, offset, mask, mean, precision, steps=12)
    grid = torch.linspace(-8, 8, 400001, dtype=torch.float64)
    for user in range(len(design)):
        logits = offset[user] + grid[:, None] * design[user, :, 0]
        log_density = (torch.nn.functional.logsigmoid(logits) * mask[user]).sum(1) - precision / 2 * (grid - mean) ** 2
        best = log_density.argmax()
        assert abs(grid[best] - mode[user, 0]) < 1e-4
        step = 100
        second = (log_density[best + step] - 2 * log_density[best] + log_density[best - step]) / (
            grid[step] - grid[0]
        ) ** 2
        torch.testing.assert_close(-second, hessian[user, 0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("q, k, scale", [(2, 4, 1.0), (5, 32, 2.0), (8, 3, 6.0)])
def test_the_mode_is_stationary_and_no_worse_than_its_neighbours(q, k, scale):
    design, offset, mask, mean, precision = problem(q, k, scale=scale)
    mode, hessian, factor = newton_posterior(design, offset, mask, mean, precision, steps=20)
    mode = mode.detach().requires_grad_()
    value = log_posterior(mode, design, offset, mask, mean, precision)
    (slope,) = torch.autograd.grad(value.sum(), mode)
    assert slope.abs().max() < 1e-8
    for _ in range(20):
        other = log_posterior(mode + 0.1 * torch.randn_like(mode), design, offset, mask, mean, precision)
        assert (other < value).all()
    torch.testing.assert_close(factor @ factor.transpose(1, 2), hessian, atol=1e-5, rtol=1e-5)


def test_the_default_number_of_steps_is_close_to_the_mode():
    design, offset, mask, mean, precision = problem(16, 32, users=200, scale=0.5)
    few = newton_posterior(design, offset, mask, mean, precision, steps=5)[0]
    many = newton_posterior(design, offset, mask, mean, precision, steps=30)[0]
    assert (few - many).norm(dim=-1).max() < 0.05 * many.norm(dim=-1).median()


def test_the_gradient_is_that_of_the_mode():
    design, offset, mask, mean, precision = problem(3, 5, users=1)
    inputs = [value.clone().requires_grad_() for value in (design, offset, mean, precision)]

    def mode_and_spread(design, offset, mean, precision):
        mode, hessian, _ = newton_posterior(design, offset, mask, mean, precision, steps=20)
        return mode, hessian

    assert torch.autograd.gradcheck(mode_and_spread, inputs, atol=1e-5)


def test_the_gradient_is_finite_where_rewards_are_equal_and_where_they_are_extreme():
    for scale in (0.0, 1e4):
        design = torch.full((2, 3, 4), scale, requires_grad=True)
        mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        mode, _, factor = newton_posterior(design, scale * mask, mask, torch.zeros(4), torch.ones(4), 5)
        (mode.sum() + torch.cholesky_inverse(factor).sum()).backward()
        assert torch.isfinite(mode).all() and torch.isfinite(design.grad).all()


def make(**settings):
    torch.manual_seed(0)
    model = build_user_model("bayes_head", D, {"dim": 6, "hidden": 16, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def encode(model, pairs, order):
    index = torch.tensor([order], dtype=torch.long)
    return model.encode(pairs, index, torch.ones_like(index, dtype=torch.bool))


@torch.no_grad()
def test_no_pairs_are_the_prior_and_evidence_adds_up():
    model, pairs = make(), torch.randn(5, 2, D)
    prior = encode(model, pairs, [])
    torch.testing.assert_close(prior["weights"][0], model.prior_mean)
    torch.testing.assert_close(prior["covariance"][0].diagonal(), (-model.prior_log_precision).exp())
    once, twice = encode(model, pairs, [0, 1]), encode(model, pairs, [0, 1, 0, 1])
    assert model.entropy(twice) < model.entropy(once) < model.entropy(prior)


@torch.no_grad()
def test_what_the_common_reward_explains_is_no_evidence():
    """A pair whose choice r0 makes certain moves the user less than one that r0 leaves open."""
    design, mask = torch.ones(2, 1, 1), torch.ones(2, 1)
    mode, _, _ = newton_posterior(design, torch.tensor([[6.0], [0.0]]), mask, torch.zeros(1), torch.ones(1))
    assert 0 < mode[0, 0] < 0.05 < mode[1, 0]


@torch.no_grad()
def test_probability_averages_the_posterior():
    model, pairs = make(), torch.randn(5, 2, D)
    state = encode(model, pairs, [0, 1, 2])
    chosen, rejected = torch.randn(4, D), torch.randn(4, D)
    many = state.rows(torch.zeros(4, dtype=torch.long))
    p = model.probability(chosen, rejected, many)
    g = torch.Generator().manual_seed(0)
    draws = torch.zeros(4)
    for _ in range(3000):
        drawn = model.sample(many, g)
        draws += torch.sigmoid(model.score(chosen, drawn) - model.score(rejected, drawn))
    torch.testing.assert_close(p, draws / 3000, atol=0.03, rtol=0)
    assert torch.equal(moderate(torch.tensor([1.5]), torch.tensor([0.0])), torch.tensor([1.5]))


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="`dim` of `bayes_head` is 0"):
        build_user_model("bayes_head", D, {"dim": 0})
