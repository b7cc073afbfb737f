"""Neural process: targets are scored independently of each other, and masked tokens are never read."""

from __future__ import annotations

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model

D = 10


def make(**settings):
    torch.manual_seed(0)
    return build_user_model("neural_process", D, {"width": 16, "hidden": 32, **settings}).eval()


@torch.no_grad()
def test_a_reward_does_not_depend_on_the_other_responses():
    model, pairs = make(), torch.randn(6, 2, D)
    index = torch.tensor([[0, 1, 2], [3, 4, 5]])
    state = model.encode(pairs, index, torch.ones(2, 3, dtype=torch.bool))
    responses = torch.randn(7, D)
    together, alone = model.score_matrix(responses, state), model.score_matrix(responses[3:4], state)
    torch.testing.assert_close(together[:, 3:4], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masked_pairs_are_never_read():
    model, pairs = make(), torch.randn(6, 2, D)
    mask = torch.tensor([[True, True, False]])
    targets = torch.randn(1, D)
    expected = model.score(targets, model.encode(pairs, torch.tensor([[0, 1, 2]]), mask))
    pairs[2:] = float("nan")
    state = model.encode(torch.nan_to_num(pairs, 1e6), torch.tensor([[0, 1, -1]]), mask)
    torch.testing.assert_close(model.score(targets, state), expected)


@torch.no_grad()
def test_a_duplicated_pair_changes_the_answer():
    """The token that stands for no evidence competes with the pairs, so that their number counts."""
    model, pairs = make(), torch.randn(2, 2, D)
    once = model.encode(pairs, torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool))
    often = model.encode(pairs, torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.bool))
    targets = torch.randn(1, D)
    assert (model.score(targets, once) - model.score(targets, often)).abs() > 1e-4


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="no multiple of `heads`"):
        make(width=10, heads=4)
