"""Fast weights: the two statements about reversed labels, and the two reductions."""

from __future__ import annotations

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model

D = 10


def make(**settings):
    torch.manual_seed(0)
    return build_user_model("fast_weights", D, {"dim": 6, "hidden": 16, **settings}).eval()


def encode(model, pairs, order):
    index = torch.tensor([order], dtype=torch.long)
    return model.encode(pairs, index, torch.ones_like(index, dtype=torch.bool))


@torch.no_grad()
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reversing_every_label_negates_the_update_and_the_change_of_every_margin(reduction):
    model, pairs = make(reduction=reduction), torch.randn(5, 2, D)
    own, reversed_, none = (
        encode(model, p, o) for p, o in ((pairs, [0, 2, 3]), (pairs.flip(1), [0, 2, 3]), (pairs, []))
    )
    torch.testing.assert_close(own["weights"], -reversed_["weights"], atol=1e-6, rtol=1e-6)
    assert own["weights"].abs().sum() > 0 and not none["weights"].any()
    a, b = torch.randn(20, D), torch.randn(20, D)
    margins = [
        model.score(a, state.rows(torch.zeros(20, dtype=torch.long)))
        - model.score(b, state.rows(torch.zeros(20, dtype=torch.long)))
        for state in (own, reversed_, none)
    ]
    torch.testing.assert_close(margins[0] - margins[2], -(margins[1] - margins[2]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sum_grows_with_the_context_and_a_mean_does_not():
    pairs = torch.randn(5, 2, D)
    for reduction, factor in (("sum", 2.0), ("mean", 1.0)):
        model = make(reduction=reduction)
        once, twice = encode(model, pairs, [1, 4]), encode(model, pairs, [1, 4, 1, 4])
        torch.testing.assert_close(twice["weights"], factor * once["weights"])


@torch.no_grad()
def test_the_update_is_additive_over_contexts():
    model, pairs = make(), torch.randn(5, 2, D)
    parts = encode(model, pairs, [0, 1])["weights"] + encode(model, pairs, [2])["weights"]
    torch.testing.assert_close(encode(model, pairs, [0, 1, 2])["weights"], parts)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="`reduction` of `fast_weights` is 'max'"):
        build_user_model("fast_weights", D, {"reduction": "max"})
