"""VPL: evidence adds up, k = 0 is the prior; the published form has its quirks and no more."""

from __future__ import annotations

import math

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model
from pluralrlhf.user_models.vpl import PlanarFlow, VPLConfig

D = 10


def make(**settings):
    torch.manual_seed(3)
    model = build_user_model("vpl", D, {"latent_dim": 8, "hidden": 32, "decoder_hidden": 32, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def encode(model, pairs, order):
    index = torch.tensor([order], dtype=torch.long)
    return model.encode(pairs, index, torch.ones_like(index, dtype=torch.bool))


@torch.no_grad()
def test_more_pairs_never_raise_the_entropy_and_no_pairs_are_the_prior():
    model = make()
    for seed in range(20):
        pairs = 5 * torch.randn(12, 2, D, generator=torch.Generator().manual_seed(seed))
        entropies = [model.entropy(encode(model, pairs, list(range(k)))).item() for k in range(13)]
        assert all(b <= a + 1e-5 for a, b in zip(entropies, entropies[1:]))
    prior = encode(model, pairs, [])
    torch.testing.assert_close(prior["mean"][0], model.prior_mean)
    torch.testing.assert_close(prior["precision"][0], model.prior_log_precision.exp())
    assert model.kl(prior).abs().item() < 1e-5


@torch.no_grad()
def test_a_duplicated_pair_is_evidence_by_default_and_not_in_the_published_form():
    pairs = torch.randn(3, 2, D)
    model = make()
    once, twice = encode(model, pairs, [0, 1]), encode(model, pairs, [0, 1, 0, 1])
    prior = model.prior_log_precision.exp()
    torch.testing.assert_close(twice["precision"] - prior, 2 * (once["precision"] - prior), atol=1e-4, rtol=1e-4)
    assert model.entropy(twice).item() < model.entropy(once).item()
    quirky = make(published_quirks=True)
    once, twice = encode(quirky, pairs, [0, 1]), encode(quirky, pairs, [0, 1, 0, 1])
    torch.testing.assert_close(once["mean"], twice["mean"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(once["precision"], twice["precision"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_published_quirks_clamp_and_normalise_in_training_only():
    model = make(published_quirks=True, latent_dim=16)
    state = encode(model, 50 * torch.randn(4, 2, D), [0, 1, 2, 3])
    assert state["mean"].abs().max() <= 1
    assert state["precision"].rsqrt().min() >= math.exp(-0.5) - 1e-6
    assert not model.prior_mean.requires_grad
    length = model.train().sample(state)["mean"].norm(dim=-1)
    torch.testing.assert_close(length, torch.full((1,), 4.0))
    assert (model.eval().sample(state)["mean"].norm(dim=-1) - 4).abs() > 1e-3


def test_kl_and_entropy_agree_with_torch():
    model = make()
    state = encode(model, torch.randn(4, 2, D), [0, 1, 2])
    q = torch.distributions.Normal(state["mean"], state["precision"].rsqrt())
    p = torch.distributions.Normal(model.prior_mean, (-0.5 * model.prior_log_precision).exp())
    torch.testing.assert_close(model.kl(state), torch.distributions.kl_divergence(q, p).sum(-1))
    torch.testing.assert_close(model.entropy(state), q.entropy().sum(-1))


def test_elbo_counts_the_kl_once_a_user():
    state = encode(make(), torch.randn(4, 2, D), [0, 1, 2]).rows(torch.zeros(6, dtype=torch.long))
    once = make(beta="elbo")
    term, metrics = once.regularizer(state, torch.full((6,), 6))
    # Six target pairs of one user: their mean is a sixth of the KL, their sum the KL.
    torch.testing.assert_close(term, metrics["kl"] / 6)
    with pytest.raises(ConfigError, match="n_user_pairs"):
        once.regularizer(state, None)


def test_annealing_follows_the_optimiser_step_alone():
    model = make(annealing="cyclical", cycles=2)
    weights = []
    for step in range(0, 101):
        model.set_step(step, 100)
        weights.append(model.annealing_weight())
    assert weights[0] == pytest.approx(0.1) and weights[100] == 1.0
    assert weights[25] == pytest.approx(1.0) and weights[49] == 1.0 and weights[50] == pytest.approx(0.1)
    assert make().annealing_weight() == 1.0
    linear = make(annealing="linear")
    linear.set_step(25, 100)
    assert linear.annealing_weight() == pytest.approx(0.55)


def test_planar_flow_is_invertible():
    torch.manual_seed(0)
    for _ in range(20):
        flow = PlanarFlow(4)
        with torch.no_grad():
            flow.u.copy_(3 * torch.randn(4))
        z = torch.randn(1, 4)
        jacobian = torch.autograd.functional.jacobian(lambda x, f=flow: f(x)[0], z)[:, 0]
        assert torch.linalg.det(jacobian) > 0


@pytest.mark.parametrize("beta", ["much", -1, float("nan")])
def test_a_beta_that_is_no_weight_is_an_error(beta):
    with pytest.raises(ConfigError, match="`beta` of `vpl`"):
        VPLConfig(beta=beta)
