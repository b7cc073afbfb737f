"""The start of `ours`: hierarchical Bayes finds how a population weighs features, and the model begins with it."""

from __future__ import annotations

import pytest
import torch

from pluralrlhf.user_models import build_user_model
from pluralrlhf.user_models.population import by_user, fit_population, principal_directions

MEAN = torch.tensor([1.0, 0.0, -1.0])
FACTOR = torch.tensor([[1.5, 0.0, 0.0], [1.2, 0.5, 0.0], [0.0, 0.0, 0.2]])


def population(n_users=300, n_pairs=60, dim=3, seed=0):
    """Choices of users with weights N(MEAN, FACTOR FACTOR^T): differences, chosen minus rejected, and who chose."""
    generator = torch.Generator().manual_seed(seed)
    weights = MEAN + torch.randn(n_users, 3, generator=generator) @ FACTOR.T
    z = torch.randn(n_users, n_pairs, dim, generator=generator)
    chosen = torch.rand(n_users, n_pairs, generator=generator) < torch.sigmoid(
        (z[..., :3] @ weights[..., None])[..., 0]
    )
    return (z * (2.0 * chosen - 1)[..., None]).flatten(0, 1), torch.arange(n_users).repeat_interleave(n_pairs)


def test_the_population_that_made_the_choices_is_found():
    mean, covariance = fit_population(*population(), steps=20)
    torch.testing.assert_close(mean, MEAN, atol=0.2, rtol=0)
    torch.testing.assert_close(covariance, FACTOR @ FACTOR.T, atol=0.4, rtol=0)


def test_neither_the_order_of_the_choices_nor_the_size_of_a_block_matters():
    design, users = population(40, 20)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(1))
    found, other = fit_population(design, users), fit_population(design[order], users[order] + 7, block=9)
    for a, b in zip(found, other):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_few_choices_in_many_directions_say_little_of_everybody():
    generator = torch.Generator().manual_seed(0)
    pairs, users = 0.6 * torch.randn(2600, 40, generator=generator), torch.arange(600) // 20
    coins = (torch.rand(2600, 1, generator=generator) < 0.5).float() * 2 - 1

    def loss(everybody, share):
        """Of held-out pairs, in nats: some say what everybody wants, the others are coin flips."""
        right = torch.where(torch.rand(2600, generator=torch.Generator().manual_seed(1)) < share, 1.0, 0.0)[:, None]
        sides = right * (pairs @ everybody)[:, None].sign() + (1 - right) * coins
        chosen = pairs * sides
        mean, _ = fit_population(chosen[:600], users)
        return torch.nn.functional.softplus(-(chosen[600:] @ mean)).mean()

    everybody = torch.randn(40, generator=generator)
    assert loss(everybody, 0.0) < 0.71 and loss(everybody, 0.5) < 0.65


@pytest.mark.parametrize("n_users, n_pairs", [(1, 1), (1, 40), (3, 1)])
def test_few_users_leave_a_covariance_that_is_finite_and_positive(n_users, n_pairs):
    mean, covariance = fit_population(*population(n_users, n_pairs))
    assert mean.isfinite().all() and (torch.linalg.eigvalsh(covariance) > 0).all()


def test_rows_are_laid_out_by_user():
    rows, users = torch.arange(1.0, 6)[:, None], torch.tensor([4, 2, 4, 2, 4])
    table, mask = by_user(rows, users)
    assert table[..., 0].tolist() == [[2, 4, 0], [1, 3, 5]] and mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_directions_are_those_in_which_pairs_differ():
    differences = torch.randn(200, 2) @ torch.tensor([[3.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0]])
    directions = principal_directions(differences, 64)
    assert directions.shape == (5, 2)
    assert directions[0, 0].abs() > 10 * directions[1, 0].abs() and directions[2:].abs().max() < 1e-4
    assert (differences @ directions).square().sum(1).mean() == pytest.approx(18, rel=1e-3)
    assert principal_directions(differences, 1).shape == (5, 1)
    assert principal_directions(torch.zeros(3, 5), 64).shape == (5, 0)


def started(differences, users, **settings):
    torch.manual_seed(0)
    model = build_user_model("ours", differences.shape[1], {"networks": 0, **settings})
    model.warm_start(differences, users)
    return model.eval()


@torch.no_grad()
def test_before_the_first_step_the_prior_is_the_population():
    differences, users = population(dim=6)
    model = started(differences, users, types=1)
    projection = principal_directions(differences, 64)
    mean, covariance = fit_population(differences @ projection, users)
    nobody = model.encode(
        torch.zeros(0, 2, 6), torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.bool)
    )
    some = differences[:50]
    margin = model.score(some, nobody.rows(torch.zeros(50, dtype=torch.long))) - model.score(
        torch.zeros(50, 6), nobody.rows(torch.zeros(50, dtype=torch.long))
    )
    torch.testing.assert_close(margin, some @ projection @ mean, atol=1e-3, rtol=1e-3)
    basis = model.basis(some)[:, :15]
    expected = some @ projection @ covariance @ projection.T @ some.T
    torch.testing.assert_close(basis @ basis.T, expected, atol=1e-2, rtol=1e-2)


def accuracy(model, k):
    """On new users of the same population, from k of their choices, with no step of training."""
    differences, _ = population(100, 60, dim=6, seed=1)
    by = differences.unflatten(0, (100, 60))
    context = torch.stack([by[:, :k], torch.zeros_like(by[:, :k])], dim=2).flatten(0, 1)
    index = torch.arange(100 * k).view(100, k)
    state = model.encode(context, index, torch.ones(100, k, dtype=torch.bool))
    state = state.rows(torch.arange(100).repeat_interleave(28))
    targets = by[:, 32:].flatten(0, 1)
    return (model.score(targets, state) > model.score(torch.zeros_like(targets), state)).float().mean().item()


@torch.no_grad()
def test_a_start_knows_what_users_differ_in_and_no_start_or_strangers_choices_do_not():
    differences, users = population(60, 60, dim=6)
    model = started(differences, users)
    nobody, known = accuracy(model, 0), accuracy(model, 8)
    assert 0.6 < nobody < known - 0.05
    flips = 2.0 * (torch.rand(len(users), generator=torch.Generator().manual_seed(2)) < 0.5) - 1
    torch.manual_seed(0)
    cold = build_user_model("ours", 6, {"networks": 0}).eval()
    for other in (started(differences * flips[:, None], users), cold):
        assert accuracy(other, 0) < nobody - 0.05 and accuracy(other, 8) < known - 0.05


@torch.no_grad()
def test_pairs_without_differences_start_nothing():
    torch.manual_seed(0)
    before = build_user_model("ours", 4).learners[-1].map.weight
    assert torch.equal(started(torch.zeros(5, 4), torch.arange(5), networks=2).learners[-1].map.weight, before)
