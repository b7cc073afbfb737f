"""MRM: the inner steps are gradient descent on the context's mean loss, and are trained through."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pluralrlhf.user_models import build_user_model

D = 10


def make(**settings):
    torch.manual_seed(0)
    return build_user_model("mrm", D, {"n_base": 5, "hidden": 16, **settings}).eval()


def encode(model, pairs, order):
    index = torch.tensor([order], dtype=torch.long)
    return model.encode(pairs, index, torch.ones_like(index, dtype=torch.bool))["weights"]


def test_the_inner_steps_are_gradient_descent():
    model, pairs = make(inner_steps=3, inner_lr=0.7), torch.randn(6, 2, D)
    design, _ = model.pairs(pairs)
    w = model.initial.detach().clone().requires_grad_()
    for _ in range(3):
        loss = -F.logsigmoid(design.detach()[[0, 3, 4]] @ w).mean()
        (slope,) = torch.autograd.grad(loss, w)
        w = (w - 0.7 * slope).detach().requires_grad_()
    torch.testing.assert_close(encode(model, pairs, [0, 3, 4])[0], w)


@torch.no_grad()
def test_no_context_is_the_initialisation_and_a_longer_context_moves_no_further():
    model, pairs = make(), torch.randn(6, 2, D)
    torch.testing.assert_close(encode(model, pairs, [])[0], model.initial)
    torch.testing.assert_close(encode(model, pairs, [1, 2, 1, 2]), encode(model, pairs, [1, 2]))


def test_a_fixed_step_size_is_not_trained():
    assert not make(learned_inner_lr=False).inner_log_lr.requires_grad
