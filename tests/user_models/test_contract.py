"""What holds for every head-route user model; a new method is picked up by its name."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import USER_MODELS, UserState, build_config, build_user_model, user_model_class
from pluralrlhf.user_models.base import standard_normal

D = 12
HEAD_ROUTE = [name for name in USER_MODELS if getattr(user_model_class(name), "route", "head") == "head"]
QUIRKS = [(name, {}) for name in HEAD_ROUTE] + [("vpl", {"published_quirks": True}), ("vpl", {"flow": 2})]
QUIRKS += [("dpl", {"head": "categorical"})]


@pytest.fixture(params=QUIRKS, ids=lambda p: p[0] + "".join(f"-{k}" for k in p[1]))
def model(request):
    torch.manual_seed(0)
    model = build_user_model(request.param[0], D, request.param[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def context(n_users=5, k=4, n_pairs=9, seed=1):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n_pairs, 2, D, generator=g)
    index = torch.stack([torch.randperm(n_pairs, generator=g)[:k] for _ in range(n_users)])
    return features, index, torch.ones(n_users, k, dtype=torch.bool)


def rewards(model, features, index, mask, targets):
    return model.score(targets, model.encode(features, index, mask))


@torch.no_grad()
def test_the_order_of_the_context_changes_nothing(model):
    features, index, mask = context()
    targets = torch.randn(5, D)
    expected = rewards(model, features, index, mask, targets)
    permuted = index[:, torch.randperm(4)]
    torch.testing.assert_close(rewards(model, features, permuted, mask, targets), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_and_the_rest_of_the_batch_change_nothing(model):
    features, index, mask = context()
    targets = torch.randn(5, D)
    expected = rewards(model, features, index, mask, targets)
    padded = torch.cat([index, torch.full((5, 3), 7)], 1)
    padded_mask = torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(rewards(model, features, padded, padded_mask, targets), expected, atol=1e-5, rtol=1e-5)
    alone = torch.cat(
        [rewards(model, features, index[i : i + 1], mask[i : i + 1], targets[i : i + 1]) for i in range(5)]
    )
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_context_is_valid_and_the_same_however_it_is_written(model):
    features, index, _ = context()
    targets = torch.randn(5, D)
    masked = rewards(model, features, index, torch.zeros(5, 4, dtype=torch.bool), targets)
    empty = rewards(
        model, torch.zeros(0, 2, D), torch.zeros(5, 0, dtype=torch.long), torch.zeros(5, 0, dtype=torch.bool), targets
    )
    assert torch.isfinite(masked).all()
    torch.testing.assert_close(masked, empty, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns_and_the_loss_is_finite_also_without_context(model):
    model.train()
    features, index, mask = context()
    mask[0] = False
    chosen, rejected = torch.randn(5, D), torch.randn(5, D)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer, learned = torch.optim.Adam(trained.values(), 1e-2), set()
    for _ in range(3):  # what begins at zero lets nothing through to the layers before it in the first step
        out = model(chosen, rejected, model.encode(features, index, mask), None, torch.full((5,), 3))
        optimizer.zero_grad()
        out.loss.backward()
        assert torch.isfinite(out.loss)
        for name, parameter in trained.items():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            learned |= {name} if parameter.grad.any() else set()
        optimizer.step()
    assert learned == trained.keys(), f"never a gradient: {sorted(trained.keys() - learned)}"


@torch.no_grad()
def test_the_matrix_of_scores_equals_scoring_one_by_one(model):
    features, index, mask = context()
    responses = torch.randn(6, D)
    state = model.encode(features, index, mask)
    matrix = model.score_matrix(responses, state, max_elements=100)
    for user in range(5):
        tiled = state.rows(torch.full((6,), user))
        torch.testing.assert_close(matrix[user], model.score(responses, tiled), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_probabilities_are_of_the_sign_of_the_pair(model):
    features, index, mask = context()
    state = model.encode(features, index, mask)
    a, b = torch.randn(5, D), torch.randn(5, D)
    p, q = model.probability(a, b, state), model.probability(b, a, state)
    assert ((p > 0) & (p < 1)).all()
    torch.testing.assert_close(p + q, torch.ones(5), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_state_survives_json(model):
    features, index, mask = context()
    state = model.encode(features, index, mask).rows(slice(2, 3))
    back = UserState.from_json(state.to_json())
    targets = torch.randn(1, D)
    assert torch.equal(model.score(targets, back), model.score(targets, state))


@pytest.mark.parametrize("name", HEAD_ROUTE)
def test_unknown_settings_are_errors(name):
    with pytest.raises(ConfigError, match=r"unknown keys \['betta'\]"):
        build_user_model(name, D, {"betta": 1})


def test_an_unknown_method_suggests_a_close_one():
    with pytest.raises(ConfigError, match="Did you mean `vpl`"):
        user_model_class("vpll")


@torch.no_grad()
def test_what_is_masked_is_never_read(model):
    features, index, mask = context()
    targets = torch.randn(5, D)
    mask[:, 2:] = False
    expected = rewards(model, features, index, mask, targets)
    torch.testing.assert_close(rewards(model, features, index.masked_fill(~mask, 99), mask, targets), expected)


@torch.no_grad()
def test_users_with_histories_of_other_lengths_side_by_side(model):
    features, index, mask = context()
    targets = torch.randn(5, D)
    expected = rewards(model, features, index, mask, targets)
    mask[1, 1:] = False
    expected[1] = rewards(model, features, index, mask, targets)[1]
    one = [
        model.encode(features, index[i : i + 1, : mask[i].sum()], mask[i : i + 1, : mask[i].sum()]) for i in range(5)
    ]
    torch.testing.assert_close(model.score(targets, UserState.cat(one)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_log_odds_are_those_of_the_probability(model):
    features, index, mask = context()
    chosen, rejected = torch.randn(2, 5, D).unbind()
    state = model.encode(features, index, mask)
    odds, probability = model.log_odds(chosen, rejected, state), model.probability(chosen, rejected, state)
    if model.moderates(state):
        torch.testing.assert_close(odds.sigmoid(), probability, atol=1e-5, rtol=1e-4)
    else:
        expected = model.score(chosen, state) - model.score(rejected, state)
        torch.testing.assert_close(odds, expected, atol=1e-5, rtol=1e-4)


def test_a_seed_on_the_processor_serves_every_device():
    """Draws are made where the generator is, and are then moved."""
    drawn = standard_normal(torch.empty(3, 2, device="meta"), torch.Generator().manual_seed(0))
    assert drawn.device.type == "meta" and drawn.shape == (3, 2)
    here = [standard_normal(torch.empty(3, 2), torch.Generator().manual_seed(0)) for _ in range(2)]
    torch.testing.assert_close(*here, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vpl", {"predictive_samples": -1}),
        ("vpl", {"hidden": 0}),
        ("vpl", {"cycles": 0}),
        ("spl", {"flow": -1}),
        ("btl", {"hidden": 0}),
        ("btl", {"layers": -1}),
        ("fast_weights", {"eta": float("nan")}),
        ("neural_process", {"dropout": 1.5}),
        ("ours", {"noise_share": float("inf")}),
    ],
)
def test_settings_that_mean_nothing_are_errors(name, settings):
    with pytest.raises(ConfigError, match=f"`{next(iter(settings))}` of"):
        build_user_model(name, D, settings)


def test_a_state_of_another_schema_is_refused():
    for state, message in (({"mean": [float("nan")]}, "not finite"), ([1], "is a list"), ({"mean": "x"}, "no number")):
        with pytest.raises(ConfigError, match=message):
            UserState.from_json({"schema": 1, "method": "vpl", "state": state})
    with pytest.raises(ConfigError, match="schema 99"):
        UserState.from_json({"schema": 99, "method": "vpl", "state": {}})
    with pytest.raises(ConfigError, match="holds 3"):
        UserState("vpl", {"mean": torch.zeros(3, 2)}).to_json()


def learn(name: str, settings: dict, steps: int = 200):
    """Trains on users who want a hidden direction or its opposite; returns accuracy at k = 0 and 8, and flipped."""
    torch.manual_seed(0)
    direction = torch.randn(D)
    model = build_user_model(name, D, settings)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def draw(n_users, k):
        sign = torch.where(torch.arange(n_users) % 2 == 0, 1.0, -1.0)
        pairs = torch.randn(n_users, k + 1, 2, D)
        swap = ((pairs[:, :, 0] - pairs[:, :, 1]) @ direction) * sign[:, None] < 0
        pairs[swap] = pairs[swap].flip(1)
        index = torch.arange(n_users * k).view(n_users, k)
        return pairs[:, :k].reshape(-1, 2, D), index, torch.ones(n_users, k, dtype=torch.bool), pairs[:, k]

    for step in range(steps):
        features, index, mask, target = draw(64, [0, 2, 8][step % 3])
        out = model(target[:, 0], target[:, 1], model.encode(features, index, mask), None, torch.full((64,), 8))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        features, index, mask, target = draw(2000, 8)
        results = []
        for pairs, use in ((features, mask & False), (features, mask), (features.flip(1), mask)):
            state = model.encode(pairs, index, use)
            margin = model.score(target[:, 0], state) - model.score(target[:, 1], state)
            results.append((margin > 0).float().mean().item())
        return results


PERSONAL = [name for name in HEAD_ROUTE if user_model_class(name).uses_context]


@pytest.mark.parametrize("name", PERSONAL)
def test_opposite_users_get_opposite_answers(name):
    unknown, known, flipped = learn(name, {})
    assert abs(unknown - 0.5) < 0.06
    assert known > 0.85
    assert flipped < 0.15


def test_the_test_of_learning_can_fail():
    unknown, known, flipped = learn("btl", {}, steps=60)
    assert max(abs(unknown - 0.5), abs(known - 0.5), abs(flipped - 0.5)) < 0.06


SIMPLE = {"int": ["x", 1.5, True], "float": ["1e-3", True], "str": [3, None], "bool": ["yes", 1]}


@pytest.mark.parametrize("name", USER_MODELS)
def test_a_setting_of_another_type_is_named_before_anything_is_built(name):
    config = user_model_class(name).config_class
    for field in dataclasses.fields(config):
        for value in SIMPLE.get(field.type, ()):
            with pytest.raises(ConfigError, match=f"`user_model_kwargs` of `{name}`: `{field.name}` is .*; give a? ?"):
                build_config(config, {field.name: value}, name)
    build_config(config, {f.name: f.default for f in dataclasses.fields(config)}, name)
    with pytest.raises(ConfigError, match=r"`user_model_kwargs` is 'hidden=1', not settings by name. Write JSON"):
        build_config(config, "hidden=1", name)


def test_whole_numbers_are_numbers():
    assert build_config(user_model_class("spl").config_class, {"guide": 1}, "spl").guide == 1
