"""P-TTT: what turning labels does to the fast weights and to margins, and which backbones are refused."""

from __future__ import annotations

import pytest
import torch
from tiny import pet_rows, tiny_backbone, tiny_tokenizer

from pluralrlhf.errors import ConfigError
from pluralrlhf.modeling import PersonalizedRewardModel

PAIRS = pet_rows(1, 5)
TURNED = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS]
PROMPTS, RESPONSES = ["which pet is nice ?"] * 3, ["the nice cat is best .", "the small dog is best .", "puppy"]


def build(**settings):
    torch.manual_seed(0)
    settings = {"layers": 2, "every": 1} | settings
    model = PersonalizedRewardModel.from_backbone(tiny_backbone(), "p_ttt", settings, tokenizer=tiny_tokenizer())
    with torch.no_grad():
        model.user_model.value.add_(0.3 * torch.randn_like(model.user_model.value))
    return model.eval()


def changes(model):
    """What the user's labels, and the same labels turned, add to the differences between rewards."""
    base = model.score(PROMPTS, RESPONSES)
    found = [model.score(PROMPTS, RESPONSES, model.encode_user(pairs)) - base for pairs in (PAIRS, TURNED)]
    return [change[1:] - change[:1] for change in found]


def test_turned_labels_negate_the_update_exactly():
    model = build()
    update, turned = (model.encode_user(pairs)["updates"] for pairs in (PAIRS, TURNED))
    assert update.abs().max() > 0.1
    torch.testing.assert_close(turned, -update, atol=1e-5, rtol=1e-5)


def test_turned_labels_negate_the_change_of_a_margin_to_first_order_only():
    model, errors = build(), []
    for eta in (0.02, 0.002):
        with torch.no_grad():
            model.user_model.eta.fill_(eta)
        ours, turned = changes(model)
        errors.append(float((ours + turned).abs().max() / ours.abs().max()))
    # What does not cancel shrinks with the step, and is there.
    assert errors[0] > 2e-3 and errors[1] < 0.3 * errors[0]


def test_evidence_adds_up_unless_it_is_averaged():
    once, twice = (build().encode_user(PAIRS * n)["updates"] for n in (1, 2))
    torch.testing.assert_close(twice, 2 * once, atol=1e-4, rtol=1e-4)
    once, twice = (build(reduction="mean").encode_user(PAIRS * n)["updates"] for n in (1, 2))
    torch.testing.assert_close(twice, once, atol=1e-5, rtol=1e-5)


def test_nothing_is_left_in_the_backbone_after_a_read_that_fails():
    model = build()
    expected = model.score(PROMPTS, RESPONSES)
    state = model.encode_user(PAIRS)
    state.tensors["updates"] = state["updates"][..., :-1]
    with pytest.raises(RuntimeError):
        model.score(PROMPTS, RESPONSES, state)
    assert torch.equal(model.score(PROMPTS, RESPONSES), expected)
    assert not any(module._forward_hooks for module in model.backbone.modules())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layers": 4, "every": 6}, "this backbone has 2 modules whose names end with 'mlp.down_proj'"),
        ({"module": "fc2"}, "has 0 modules whose names end with 'fc2'"),
        ({"reduction": "max"}, "`reduction` of `p_ttt` is 'max'"),
        ({"eta": 0}, "`eta` of `p_ttt` is 0"),
        ({"layers": 0}, "`layers` of `p_ttt` is 0"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_recomputed_activations_are_refused():
    model = build()
    model.backbone.gradient_checkpointing_enable()
    model.train()
    ids = torch.full((2, 3), 5)
    with pytest.raises(ConfigError, match="Set it to false for `p_ttt`"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
