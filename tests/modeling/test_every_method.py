"""What holds for a whole model with any head-route method: whatever it is built, adapted, saved and asked with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import pet_rows, tiny_backbone, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from pluralrlhf.data.contexts import distinct_contexts, distinct_pairs
from pluralrlhf.modeling import PersonalizedRewardModel
from pluralrlhf.trainers.peft import peft_config_for
from pluralrlhf.user_models import USER_MODELS, user_model_class

RESPONSES = ["the nice cat is best .", "the small dog is best .", "cat", "a soft puppy is nice for you and me ."]
PROMPTS = ["which pet is nice ?"] * 4
PAIRS = pet_rows(1, 5)
HEAD_ROUTE = [name for name in USER_MODELS if user_model_class(name).route == "head"]


@pytest.fixture(params=HEAD_ROUTE)
def model(request):
    torch.manual_seed(1)
    model = PersonalizedRewardModel.from_backbone(
        tiny_backbone(), request.param, {}, tokenizer=tiny_tokenizer(), max_length=64
    )
    with torch.no_grad():
        for parameter in model.user_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def scores(model, pairs=PAIRS):
    return model.score(PROMPTS, RESPONSES, model.encode_user(pairs))


def test_the_order_of_a_users_pairs_and_the_batch_change_nothing(model):
    expected = scores(model)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(scores(model, PAIRS[::-1]), expected, atol=1e-5, rtol=1e-5)
    user = model.encode_user(PAIRS)
    alone = torch.cat([model.score(PROMPTS[:1], [response], user) for response in RESPONSES])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    both = model.encode_users([PAIRS[:2], PAIRS])
    torch.testing.assert_close(model.score_matrix(both, PROMPTS, RESPONSES)[1], expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_user_is_the_model_without_a_context(model, tmp_path):
    expected = model.score(PROMPTS, RESPONSES)
    torch.testing.assert_close(scores(model, []), expected, atol=1e-6, rtol=1e-6)
    batch = model.tokenizer(RESPONSES, padding=True, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)


def test_saving_and_loading_is_exact(model, tmp_path):
    expected = scores(model)
    model.save_pretrained(tmp_path)
    loaded = PersonalizedRewardModel.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # Factorisations round by where in memory their matrices lie.
    torch.testing.assert_close(scores(loaded), expected, atol=1e-6, rtol=1e-6)


def test_targets_that_read_the_same_context_share_its_encoding(model):
    generator = torch.Generator().manual_seed(0)
    d = model.config.feature_dim
    chosen, rejected = torch.randn(2, 6, d, generator=generator).unbind()
    pairs = torch.randn(4, 2, d, generator=generator)
    rows = np.array([[0, 1, -1], [2, -1, -1], [0, 1, -1], [-1, -1, -1], [2, -1, -1], [0, 1, 3]])
    flip = np.zeros(rows.shape, bool)
    flip[4] = True
    contexts, turned, of_target = distinct_contexts(rows, flip)
    assert len(contexts) == 5 and of_target[0] == of_target[2]
    np.testing.assert_array_equal(contexts[of_target], rows)
    np.testing.assert_array_equal(turned[of_target], flip)

    def run(rows, flip, **more):
        index, mask, distinct, sides = distinct_pairs(rows, flip)
        features = pairs[distinct]
        features[sides] = features[sides].flip(1)
        model.zero_grad()
        out = model(
            chosen_features=chosen, rejected_features=rejected, context_features=features,
            context_index=torch.from_numpy(index), context_mask=torch.from_numpy(mask),
            n_user_pairs=torch.tensor([3, 2, 3, 1, 2, 3]), **more,
        )  # fmt: skip
        out.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return out.logits.detach(), out.loss.detach(), gradients

    shared, each = run(contexts, turned, target_context=torch.from_numpy(of_target)), run(rows, flip)
    assert shared[2]
    torch.testing.assert_close(shared, each, atol=1e-5, rtol=1e-4)


def test_a_backbone_in_half_precision_leaves_the_user_model_in_full(model):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, *pairs = torch.randn(6, 4, model.config.feature_dim, generator=generator).unbind()
    index = torch.tensor([[0, 1], [2, 3], [1, 1], [0, 0]])
    inputs = {
        "chosen_features": chosen, "rejected_features": rejected, "context_features": torch.stack(pairs[:2], 1),
        "context_index": index, "context_mask": index > 0, "n_user_pairs": torch.tensor([2, 2, 2, 1]),
    }  # fmt: skip
    full = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**inputs)
        half.loss.backward()
        text = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    torch.testing.assert_close(half.logits, full.logits, atol=0, rtol=0)
    torch.testing.assert_close(half.loss, full.loss, atol=0, rtol=0)
    assert text.dtype == torch.float32 and torch.isfinite(text).all()


@torch.no_grad()
def test_what_no_user_changes_may_be_computed_once(model):
    head, generator = model.user_model, torch.Generator().manual_seed(0)
    features, pairs = torch.randn(2, 5, head.feature_dim, generator=generator), torch.randn(4, 2, head.feature_dim)
    index, mask = (
        torch.tensor([[0, 1, 2]] * 3 + [[3, 0, 0]] * 2),
        torch.tensor([[True] * 3] * 3 + [[True, False, False]] * 2),
    )
    twin = head.on_embedded()
    embedded = head.embed(pairs.flatten(0, 1)).unflatten(0, (-1, 2))
    state, other = head.encode(pairs, index, mask), twin.encode(embedded, index, mask)
    torch.testing.assert_close(other.tensors, state.tensors, atol=1e-6, rtol=1e-5)
    for ask in ("score_pair", "probability"):
        expected = getattr(head, ask)(*features, state)
        found = getattr(twin, ask)(*(head.embed(side) for side in features), state)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_an_adapter_trains_with_the_user_model_and_loads_exactly(model, tmp_path):
    adapted = get_peft_model(model, peft_config_for(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])))
    model.attach_adapter(adapted)
    adapted.train()
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in before) and any("user_model" in name for name in before)
    texts = [[side[c][0]["content"] for side in PAIRS[:4]] for c in ("chosen", "rejected")]
    batch = {
        f"{side}_{key}": value
        for side, rows in zip(("chosen", "rejected"), texts)
        for key, value in model.tokenizer(rows, padding=True, return_tensors="pt").items()
        if key in ("input_ids", "attention_mask")
    }
    context = model.tokenizer(RESPONSES, padding=True, return_tensors="pt")
    batch |= {"context_input_ids": context["input_ids"], "context_attention_mask": context["attention_mask"]}
    batch |= {"context_index": torch.tensor([[0, 1]] * 4), "context_mask": torch.ones(4, 2).bool()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    # The second matrix of an adapter is zero at first: only the second step reaches the first.
    for _ in range(2):
        optimizer.zero_grad()
        adapted(**batch, n_user_pairs=torch.full((4,), 5)).loss.backward()
        optimizer.step()
    moved = {name for name, p in adapted.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert {name for name in before if "lora" in name} <= moved
    assert any("user_model" in name for name in moved)
    adapted.eval()
    expected = scores(model)
    torch.testing.assert_close(scores(model, PAIRS[::-1]), expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = PersonalizedRewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(scores(loaded), expected, atol=1e-6, rtol=1e-6)
