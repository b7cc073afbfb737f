"""DPL: exact likelihoods of both heads, and spread where users disagree."""

from __future__ import annotations

import math

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model

D = 6


def make(**settings):
    torch.manual_seed(0)
    return build_user_model("dpl", D, {"hidden": 16, **settings})


def nobody(model, n):
    return model.encode(torch.zeros(0, 2, D), torch.zeros(n, 0, dtype=torch.long), torch.zeros(n, 0).bool())


@torch.no_grad()
def test_the_mean_variance_loss_is_minus_the_logarithm_of_phi():
    model, a, b = make(), torch.randn(50, D), torch.randn(50, D)
    state = nobody(model, 50)
    (mean, variance), (other, other_variance) = model.moments(a), model.moments(b)
    z = (mean - other) / (variance + other_variance).sqrt()
    phi = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    torch.testing.assert_close(model.probability(a, b, state), phi, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(a, b, state).loss, -phi.log().mean(), atol=1e-5, rtol=1e-5)
    reference = make(loss="reference")
    expected = torch.nn.functional.softplus(-math.sqrt(2 * math.pi) * z).mean()
    torch.testing.assert_close(reference(a, b, state).loss, expected, atol=1e-4, rtol=1e-4)


def test_the_loss_of_a_pair_far_on_the_wrong_side_is_finite_and_has_a_slope():
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    out = model(torch.randn(64, D), torch.randn(64, D), nobody(model, 64))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@torch.no_grad()
def test_the_categorical_probability_is_the_sum_over_pairs_of_values():
    model, a, b = make(head="categorical", atoms=4), torch.randn(3, D), torch.randn(3, D)
    p, q = model.distribution(a), model.distribution(b)
    wins = sum(p[:, i] * q[:, j] * (1.0 if i > j else 0.5) for i in range(4) for j in range(i + 1))
    torch.testing.assert_close(model.probability(a, b, nobody(model, 3)), wins)
    torch.testing.assert_close(wins + model.probability(b, a, nobody(model, 3)), torch.ones(3))


@pytest.mark.parametrize("head", ["mean_variance", "categorical"])
def test_contested_responses_are_open_and_agreed_ones_are_not(head):
    """Feature 0 is liked by everybody; of two responses that differ in feature 1 either wins as often."""
    model = make(head=head)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        sign = torch.randint(0, 2, (256, 1), generator=generator) * 2.0 - 1
        better, worse = torch.zeros(256, D), torch.zeros(256, D)
        contested = torch.arange(256) % 2 == 0
        better[contested, 1], worse[contested, 1] = sign[contested, 0], -sign[contested, 0]
        better[~contested, 0], worse[~contested, 0] = 1.0, -1.0
        out = model(better, worse, nobody(model, 256))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    with torch.no_grad():
        _, variance = model.moments(torch.eye(D)[:2])
        p = model.probability(torch.eye(D)[:2], -torch.eye(D)[:2], nobody(model, 2))
    if head == "categorical":  # A Gaussian of equal means says one half whatever its variance is.
        assert variance[1] > 2 * variance[0]
    assert p[0] > 0.9 and abs(p[1] - 0.5) < 0.1
    assert 0 < out.metrics["r2"] < 1


def test_settings_and_margins_are_checked():
    with pytest.raises(ConfigError, match="`head` of `dpl` is 'gaussian'"):
        make(head="gaussian")
    model = make(head="categorical")
    with pytest.raises(ConfigError, match="margin"):
        model(torch.randn(2, D), torch.randn(2, D), nobody(model, 2), margin=torch.ones(2))
