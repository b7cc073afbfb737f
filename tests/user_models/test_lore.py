"""LoRe and PReF: weights on the simplex or free, the mode of the user's own posterior."""

from __future__ import annotations

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model
from pluralrlhf.user_models.linear import simplex_posterior

D = 10


def make(**settings):
    torch.manual_seed(0)
    model = build_user_model("lore", D, {"rank": 5, "hidden": 16, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def encode(model, pairs, order):
    index = torch.tensor([order], dtype=torch.long)
    return model.encode(pairs, index, torch.ones_like(index, dtype=torch.bool))


@torch.no_grad()
@pytest.mark.parametrize("basis", ["linear", "mlp"])
def test_weights_are_on_the_simplex_or_free(basis):
    pairs = 3 * torch.randn(8, 2, D)
    weights = encode(make(basis=basis), pairs, list(range(8)))["weights"]
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1))
    free = encode(make(basis=basis, weights="free"), pairs, list(range(8)))["weights"]
    assert not torch.allclose(free.sum(-1), torch.ones(1), atol=1e-3)


def test_the_simplex_weights_are_a_stationary_point_of_the_posterior():
    g = torch.Generator().manual_seed(0)
    design = torch.randn(4, 6, 3, generator=g, dtype=torch.float64)
    mask = torch.ones(4, 6, dtype=torch.float64)
    mean, precision = torch.randn(3, generator=g, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    w, covariance = simplex_posterior(design, 0 * mask, mask, mean, precision, steps=40)
    # log w + c are the logits; of all c the prior picks one, since the likelihood does not depend on it.
    a = w.log()
    a = (a - (a - mean).mean(-1, keepdim=True)).requires_grad_()
    value = torch.nn.functional.logsigmoid((design @ a.softmax(-1)[..., None]).squeeze(-1)).sum()
    (slope,) = torch.autograd.grad(value - 0.5 * ((a - mean) ** 2).sum(), a)
    assert slope.abs().max() < 1e-6
    # A weight gained is lost elsewhere: the covariance has no spread along the sum.
    assert covariance.sum(-1).abs().max() < 1e-10


@torch.no_grad()
def test_without_context_the_weights_are_those_of_the_prior():
    model, pairs = make(), torch.randn(3, 2, D)
    torch.testing.assert_close(encode(model, pairs, [])["weights"][0], model.prior_mean.softmax(-1))
    free = make(weights="free")
    torch.testing.assert_close(encode(free, pairs, [])["weights"][0], free.prior_mean)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="`rank` of `lore` is 1"):
        build_user_model("lore", D, {"rank": 1})
    with pytest.raises(ConfigError, match="`weights` of `lore` is 'softmax'"):
        build_user_model("lore", D, {"weights": "softmax"})
