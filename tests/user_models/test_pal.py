"""PAL: the reward is what its formula says, computed the long way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model

D = 10


def make(**settings):
    torch.manual_seed(0)
    return build_user_model("pal", D, {"prototypes": 4, "dim": 6, "hidden": 16, **settings}).eval()


def some_users(model, n=5):
    pairs = torch.randn(7, 2, D)
    index = torch.stack([torch.randperm(7)[:4] for _ in range(n)])
    return model.encode(pairs, index, torch.ones(n, 4, dtype=torch.bool))


@torch.no_grad()
def test_form_a_orders_responses_by_their_distance_to_the_ideal_point():
    model = make()
    state, a, b = some_users(model), torch.randn(5, D), torch.randn(5, D)
    point = model.ideal_point(state)
    distance = [((model.map(x) - point) ** 2).sum(-1) / 6**0.5 for x in (a, b)]
    torch.testing.assert_close(
        model.score(a, state) - model.score(b, state), distance[1] - distance[0], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("prompt_dim", [0, 4])
def test_form_b_mixes_cosines(prompt_dim):
    model = make(form="B", prompt_dim=prompt_dim)
    state, x = some_users(model), torch.randn(5, D)
    directions = (
        model.prompt_map(x[:, :prompt_dim]).view(5, 4, 6) if prompt_dim else model.prototypes.expand(5, -1, -1)
    )
    cosines = F.cosine_similarity(directions, model.map(x[:, prompt_dim:])[:, None], dim=-1)
    expected = model.log_scale.exp() * (state["weights"] * cosines).sum(-1)
    torch.testing.assert_close(model.score(x, state), expected, atol=1e-5, rtol=1e-5)


def test_every_parameter_of_form_b_learns():
    for prompt_dim in (0, 4):
        model = make(form="B", prompt_dim=prompt_dim).train()
        model(torch.randn(5, D), torch.randn(5, D), some_users(model)).loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@torch.no_grad()
def test_users_are_mixtures():
    weights = some_users(make())["weights"]
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="`form` of `pal` is 'C'"):
        make(form="C")
    with pytest.raises(ConfigError, match="only `form: B`"):
        make(prompt_dim=4)
    with pytest.raises(ConfigError, match="is 10 of 10 features"):
        make(form="B", prompt_dim=10)
