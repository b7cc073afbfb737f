"""Ours: evidence, types, and doubt: a context that contradicts itself leads back to everybody's reward."""

from __future__ import annotations

import math

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model
from pluralrlhf.user_models.linear import margin_variance

D = 4


def one_dimensional(**settings):
    """A model of one learner whose phi is the first feature, with a wide prior; and that learner."""
    torch.manual_seed(0)
    model = build_user_model(
        "ours", D, {"dim": 1, "networks": 0, "types": 1, "hidden": 8, "fast_dim": 0, **settings}
    ).eval()
    (learner,) = model.learners
    with torch.no_grad():
        learner.map.weight.copy_(torch.eye(D)[:1].expand(learner.map.weight.shape))
        learner.prior_log_precision.fill_(-1.0)
        if settings.get("types", 1) == 1:
            learner.prior_mean.zero_()
        if hasattr(learner, "log_temper"):
            learner.log_temper.zero_()
    return model, learner


def contexts(labels):
    """Pairs that differ by 1 in the first feature; +1: more is preferred, -1: less."""
    pairs = torch.zeros(len(labels), 2, D)
    pairs[:, 0, 0] = torch.tensor(labels) / 2
    pairs[:, 1, 0] = -pairs[:, 0, 0]
    return pairs


def encode(model, pairs):
    return model.encode(pairs, torch.arange(len(pairs))[None], torch.ones(1, len(pairs), dtype=torch.bool))


@torch.no_grad()
def test_the_evidence_is_the_integral_of_the_likelihood_over_the_prior():
    model, learner = one_dimensional()
    for labels in ([1.0] * 6, [1.0, 1.0, -1.0], [1.0, -1.0] * 4, [1.0]):
        w = torch.linspace(-40, 40, 200001, dtype=torch.float64)
        precision = math.exp(-1)
        prior = torch.exp(-precision / 2 * w**2) * math.sqrt(precision / (2 * math.pi))
        likelihood = torch.sigmoid(w[:, None] * torch.tensor(labels, dtype=torch.float64)).prod(1)
        evidence = (prior * likelihood).sum() * (w[1] - w[0])
        odds = torch.exp(learner.doubt_logit).item() * 2.0 ** -len(labels) / evidence
        doubt = encode(model, contexts(labels))["explanations"][0, -1].item()
        assert abs(doubt - odds / (1 + odds)) < 0.12 * doubt + 0.002


@torch.no_grad()
def test_a_context_that_contradicts_itself_is_believed_less():
    model, _ = one_dimensional()
    doubt = [encode(model, contexts(labels))["explanations"][0, -1] for labels in ([1.0] * 8, [1.0, -1.0] * 4)]
    assert doubt[1] > 3 * doubt[0]
    longer = [encode(model, contexts([1.0, -1.0] * n))["explanations"][0, -1] for n in (1, 4, 16)]
    assert longer[0] < longer[1] < longer[2]


@torch.no_grad()
def test_without_doubt_and_with_one_type_it_is_the_bayesian_head():
    head = build_user_model("bayes_head", D, {"dim": 3, "hidden": 8}).eval()
    settings = {"dim": 3, "networks": 2, "population": False, "types": 1, "hidden": 8, "fast_dim": 0, "doubt": False}
    model = build_user_model("ours", D, settings).eval()
    model.learners = model.learners[1:]  # the one with a network for the reward of everybody
    learner = model.learners[0]
    learner.base.load_state_dict(head.base.state_dict())
    learner.map.load_state_dict(head.map.state_dict())
    learner.prior_mean.copy_(head.prior_mean.normal_()[None])
    learner.prior_log_precision.copy_(head.prior_log_precision.normal_()[None])
    pairs, features = torch.randn(5, 2, D), torch.randn(4, D)
    ours, theirs = (encode(m, pairs) for m in (model, head))
    torch.testing.assert_close(ours["weights"], theirs["weights"])
    torch.testing.assert_close(ours["covariance"].squeeze(1), theirs["covariance"])
    torch.testing.assert_close(model.score_matrix(features, ours), head.score_matrix(features, theirs))


@torch.no_grad()
def test_types_are_told_apart_and_their_weights_sum_to_one():
    model, learner = one_dimensional(types=2, doubt=False)
    learner.prior_mean.copy_(torch.tensor([[2.0], [-2.0]]))
    learner.prior_log_precision.fill_(2.0)
    for sign, likely in ((1.0, 0), (-1.0, 1)):
        state = encode(model, contexts([sign] * 6))
        assert state["explanations"][0, likely] > 0.9
        assert state["weights"][0, 0] * sign > 0
        torch.testing.assert_close(state["explanations"].sum(), torch.tensor(1.0))
    nobody = encode(model, contexts([]))
    assert abs(nobody["weights"].item()) < 1e-5
    # Two types that disagree are spread, whatever each of them is sure of.
    assert nobody["covariance"].item() > 4


def test_training_flips_labels_and_evaluation_does_not():
    (model, _), pairs = one_dimensional(noise_share=0.9), contexts([1.0] * 8)
    evaluated = [encode(model, pairs)["weights"].item() for _ in range(3)]
    trained = [encode(model.train(), pairs)["weights"].item() for _ in range(20)]
    assert len(set(evaluated)) == 1 and len({round(value, 4) for value in trained}) > 3


@torch.no_grad()
def test_gradient_steps_go_down_the_contexts_loss_and_are_trusted_as_far_as_the_context_is():
    model, learner = one_dimensional(fast_dim=1, fast_steps=3)
    for labels in ([1.0] * 8, [1.0, -1.0, 1.0] * 4):
        state = encode(model, contexts(labels))
        v = torch.zeros((), requires_grad=True)
        for _ in range(3):
            with torch.enable_grad():
                loss = -torch.nn.functional.logsigmoid(v * torch.tensor(labels)).sum()
                (slope,) = torch.autograd.grad(loss, v)
            step = learner.fast_log_lr[0].exp() / (len(labels) + learner.log_kappa.exp())
            v = (v - step * slope).detach().requires_grad_()
        torch.testing.assert_close(state["weights"][0, 1], (1 - state["explanations"][0, -1]) * v.detach())
    assert not encode(model, contexts([]))["weights"][0, 1].any()
    drawn = model.sample(state, torch.Generator().manual_seed(0))
    assert drawn["weights"][0, 1] == state["weights"][0, 1] and drawn["weights"][0, 0] != state["weights"][0, 0]


@torch.no_grad()
def test_strength_goes_from_everybodys_reward_to_the_whole_evidence():
    torch.manual_seed(0)
    model = build_user_model("ours", D, {"dim": 3, "fast_dim": 2}).eval()
    pairs, nobody = torch.randn(6, 2, D), encode(model, torch.zeros(0, 2, D))
    whole = encode(model, pairs)
    for strength in (0.0, 0.25, 1.0):
        model.strength.fill_(strength)
        state = encode(model, pairs)
        expected = nobody["weights"] + strength * (whole["weights"] - nobody["weights"])
        torch.testing.assert_close(state["weights"], expected)
        torch.testing.assert_close(state["explanations"].sum(), torch.tensor(1.0))
    model.strength.zero_()
    torch.testing.assert_close(encode(model, pairs)["covariance"], nobody["covariance"])
    assert "strength" in model.state_dict()


def three_learners():
    torch.manual_seed(0)
    model = build_user_model("ours", D, {"dim": 3, "fast_dim": 2, "hidden": 8, "noise_share": 0.0})
    alone = []
    for number in range(3):
        single = build_user_model("ours", D, {"dim": 3, "fast_dim": 2, "hidden": 8, "noise_share": 0.0})
        single.learners = model.learners[number : number + 1]
        alone.append(single)
    return model, alone


@torch.no_grad()
def test_the_reward_is_the_mean_of_the_learners_and_the_variance_too():
    model, alone = three_learners()
    context, features, others = torch.randn(6, 2, D), torch.randn(5, D), torch.randn(5, D)
    states = [encode(single.eval(), context) for single in (model, *alone)]
    rewards = [single.score_matrix(features, state) for single, state in zip((model, *alone), states)]
    torch.testing.assert_close(rewards[0], sum(rewards[1:]) / 3)
    each = torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(model.score(features, states[0].rows(each)), rewards[0][0])
    margins, variances = [], []
    for single, state in zip((model, *alone), states):
        rows, difference = state.rows(each), single.basis(features) - single.basis(others)
        variances.append(margin_variance(difference, rows["covariance"]))
        margins.append(single.score(features, rows) - single.score(others, rows))
    torch.testing.assert_close(variances[0], sum(variances[1:]) / 3)
    drawn = model.random_state(4000, torch.Generator().manual_seed(0))
    spread = model.score_matrix(features, drawn).var(0)
    expected = margin_variance(model.basis(features), drawn["covariance"][:5])
    torch.testing.assert_close(spread, expected, rtol=0.1, atol=0.01)


def test_each_learner_is_trained_on_its_own_error():
    model, alone = three_learners()
    context, chosen, rejected = torch.randn(6, 2, D), torch.randn(5, D), torch.randn(5, D)
    each, losses = torch.zeros(5, dtype=torch.long), []
    for single in (model, *alone):
        losses.append(single(chosen, rejected, encode(single, context).rows(each)).loss)
    torch.testing.assert_close(losses[0], sum(losses[1:]) / 3)
    (losses[1]).backward()
    trained = [any(p.grad is not None and p.grad.any() for p in learner.parameters()) for learner in model.learners]
    assert trained == [True, False, False]


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="`noise_share` of `ours` is 1"):
        build_user_model("ours", D, {"noise_share": 1})
    with pytest.raises(ConfigError, match="`networks` of `ours` is 0"):
        build_user_model("ours", D, {"networks": 0, "population": False})
    assert build_user_model("ours", D, {"doubt": False}).config.noise_share == 0
    with pytest.raises(ConfigError, match="`doubt` false"):
        build_user_model("ours", D, {"doubt": False, "noise_share": 0.1})
    for settings in ({"noise_share": float("nan")}, {"fast_dim": -1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            build_user_model("ours", D, settings)


@pytest.mark.parametrize("settings", [{}, {"fast_dim": 0}, {"doubt": False}, {"networks": 1, "population": False}])
@torch.no_grad()
def test_nobody_is_a_user_too(settings):
    model = build_user_model("ours", D, settings).eval()
    assert model.score_matrix(torch.randn(3, D), encode(model, torch.zeros(0, 2, D))).shape == (1, 3)
