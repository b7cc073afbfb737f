"""SPL: the guide makes swapped contexts mirror, and the flow is invertible."""

from __future__ import annotations

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import UserState, build_user_model
from pluralrlhf.user_models.spl import InverseAutoregressiveFlow, active_units

D = 10


def make(**settings):
    torch.manual_seed(0)
    return build_user_model("spl", D, {"latent_dim": 8, "hidden": 32, "decoder_hidden": 32, **settings})


def test_the_guide_is_zero_for_mirrored_posteriors_and_one_for_equal_ones():
    model = make(guide_variance=0.0)
    mean, precision = torch.randn(4, 8), torch.rand(4, 8) + 1
    for swap, expected in ((-mean, 0.0), (mean, 1.0)):
        state = UserState(
            "spl",
            {
                "mean": mean,
                "precision": precision,
                "swap_mean": swap,
                "swap_precision": precision,
                "any": torch.ones(4, dtype=torch.bool),
            },
        )
        assert abs(model.guide_loss(state).item() - expected) < 1e-5


def test_training_the_guide_alone_mirrors_the_posterior():
    """Users who want more or less of feature 0: the latent then has a direction that swapping reverses."""
    model = make().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    index, mask = torch.arange(32).view(8, 4), torch.ones(8, 4, dtype=torch.bool)
    values = []
    for step in range(80):
        pairs = torch.randn(32, 2, D, generator=torch.Generator().manual_seed(step))
        wanted = torch.where(torch.arange(32) % 8 < 4, 2.0, -2.0)
        pairs[:, :, 0] = torch.stack([wanted, -wanted], dim=1)
        loss = model.guide_loss(model.encode(pairs, index, mask))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[0] > 0.3 > 0.15 > values[-1]


def test_users_without_context_have_no_guide():
    model = make().train()
    state = model.encode(torch.randn(3, 2, D), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3).bool())
    assert model.guide_loss(state) == 0
    state = model.eval().encode(torch.randn(3, 2, D), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3).bool())
    assert set(state.tensors) == {"mean", "precision"}


def test_the_flow_is_autoregressive_with_a_positive_diagonal():
    torch.manual_seed(0)
    flow = InverseAutoregressiveFlow(5)
    torch.nn.init.normal_(flow.linear.weight)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow(z[None])[0].flip(0), torch.randn(5))
    assert not jacobian.triu(1).any()
    assert (jacobian.diagonal() > 0).all()
    model = make(flow=2).eval()
    state = model.encode(torch.randn(4, 2, D), torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool))
    assert torch.isfinite(model.score(torch.randn(1, D), state)).all()


def test_active_units_count_dimensions_that_vary():
    mean = torch.zeros(100, 3)
    mean[:, 1] = torch.linspace(-1, 1, 100)
    mean[:, 2] = torch.linspace(-0.01, 0.01, 100)
    assert active_units(mean) == 1


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="make it even"):
        make(latent_dim=7)
    with pytest.raises(ConfigError, match="`published_quirks`"):
        make(published_quirks=True)
