"""What holds for every user model that changes what the backbone computes; and that one of them learns opposite types."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import pet_dataset, pet_rows, tiny_backbone, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer
from pluralrlhf.errors import ConfigError
from pluralrlhf.modeling import PersonalizedRewardModel, conditioned
from pluralrlhf.trainers.peft import peft_config_for
from pluralrlhf.user_models import UserState

RESPONSES = ["the nice cat is best .", "the small dog is best .", "cat", "a soft puppy is nice for you and me ."]
PROMPTS = ["which pet is nice ?"] * 4
PAIRS = pet_rows(1, 5)
FORMS = [
    ("soft_tokens", {"form": "cluster", "n_tokens": 3, "n_clusters": 3}),
    ("soft_tokens", {"form": "individual", "n_tokens": 3, "eta": 0.3, "steps": 2}),
    ("p_ttt", {"layers": 2, "every": 1}),
]


@pytest.fixture(params=FORMS, ids=lambda p: f"{p[0]}-{p[1].get('form', 'layers')}")
def model(request):
    torch.manual_seed(1)
    model = PersonalizedRewardModel.from_backbone(
        tiny_backbone(), request.param[0], request.param[1], tokenizer=tiny_tokenizer(), max_length=64
    )
    with torch.no_grad():
        for parameter in model.user_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def scores(model, pairs=PAIRS):
    return model.score(PROMPTS, RESPONSES, model.encode_user(pairs))


def tokens(model, texts, prefix):
    found = model.tokenizer(texts, padding=True, return_tensors="pt")
    return {f"{prefix}{key}": found[key] for key in ("input_ids", "attention_mask")}


def pair_batch(model, n=4):
    texts = [[pair[side][0]["content"] for pair in PAIRS[:n]] for side in ("chosen", "rejected")]
    batch = tokens(model, texts[0], "chosen_") | tokens(model, texts[1], "rejected_")
    batch |= tokens(model, RESPONSES, "context_")
    return batch | {"context_index": torch.tensor([[0, 1]] * n), "context_mask": torch.ones(n, 2).bool()}


def test_the_user_counts_and_the_order_of_the_pairs_and_the_batch_do_not(model):
    expected = scores(model)
    assert torch.isfinite(expected).all()
    assert (expected - model.score(PROMPTS, RESPONSES)).abs().max() > 1e-3
    torch.testing.assert_close(scores(model, PAIRS[::-1]), expected, atol=1e-5, rtol=1e-5)
    user = model.encode_user(PAIRS)
    alone = torch.cat([model.score(PROMPTS[:1], [response], user) for response in RESPONSES])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    both = model.encode_users([PAIRS[:2], PAIRS, []])
    matrix = model.score_matrix(both, PROMPTS, RESPONSES)
    torch.testing.assert_close(matrix[1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(matrix[2], model.score(PROMPTS, RESPONSES), atol=1e-5, rtol=1e-5)


def test_so_many_texts_are_read_at_once_as_is_said(model, monkeypatch):
    user, read = model.encode_user(PAIRS), []
    expected = model.score(PROMPTS, RESPONSES, user)
    tokenize = conditioned.tokens
    monkeypatch.setattr(conditioned, "tokens", lambda m, p, r: read.append(len(r)) or tokenize(m, p, r))
    torch.testing.assert_close(model.score(PROMPTS, RESPONSES, user, batch_size=3), expected, atol=1e-5, rtol=1e-5)
    assert read == [3, 1]


def test_no_context_is_the_same_however_it_is_written(model, tmp_path):
    expected = model.score(PROMPTS, RESPONSES)
    torch.testing.assert_close(scores(model, []), expected, atol=1e-6, rtol=1e-6)
    batch = pair_batch(model)
    with torch.no_grad():
        masked = model(**(batch | {"context_mask": torch.zeros(4, 2).bool()})).logits
        absent = model(**{key: value for key, value in batch.items() if not key.startswith("context")}).logits
    torch.testing.assert_close(masked, absent, atol=1e-6, rtol=1e-6)
    inputs = tokens(model, RESPONSES, "")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        assert loaded(**inputs).logits.shape == (4, 1)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(model):
    batch = pair_batch(model)
    expected = model(**batch).logits
    for left in (True, False):
        padded = {
            key: torch.nn.functional.pad(value, (5, 0) if left else (0, 5))
            if key.endswith(("input_ids", "attention_mask")) else value
            for key, value in batch.items()
        }  # fmt: skip
        torch.testing.assert_close(model(**padded).logits, expected, atol=1e-5, rtol=1e-5)


def test_inference_mode_changes_nothing_and_texts_in_pieces_neither(model, monkeypatch):
    expected = scores(model)
    monkeypatch.setattr(conditioned, "_CHUNK", 3)
    with torch.inference_mode():
        torch.testing.assert_close(scores(model), expected, atol=1e-5, rtol=1e-5)


def test_saving_and_loading_is_exact_and_without_pickles(model, tmp_path):
    expected = scores(model)
    model.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    loaded = PersonalizedRewardModel.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # Matrix products round by where in memory their operands lie.
    torch.testing.assert_close(scores(loaded), expected, atol=1e-6, rtol=1e-6)


def test_a_state_survives_json(model):
    user = model.encode_user([pair | {"pair_id": str(i)} for i, pair in enumerate(PAIRS)])
    written = json.loads(json.dumps(user.to_json()))
    assert written["pair_ids"] == ["0", "1", "2", "3", "4"]
    assert torch.equal(model.score(PROMPTS, RESPONSES, UserState.from_json(written)), scores(model))


def test_every_parameter_is_part_of_every_step(model):
    model.train()
    for share in (1.0, 0.0):
        batch = pair_batch(model)
        batch["context_mask"] &= torch.rand(4, 2) < share
        model.zero_grad()
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_an_adapter_trains_with_the_user_model_and_loads_exactly(model, tmp_path):
    adapted = get_peft_model(model, peft_config_for(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])))
    model.attach_adapter(adapted)
    adapted.train()
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    # The second matrix of an adapter is zero at first: only the second step reaches the first.
    for _ in range(2):
        optimizer.zero_grad()
        adapted(**pair_batch(model)).loss.backward()
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimizer.step()
    moved = {name for name, p in adapted.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert {name for name in before if "lora" in name} <= moved
    assert any("user_model" in name for name in moved)
    expected = scores(model)
    model.save_pretrained(tmp_path)
    loaded = PersonalizedRewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(scores(loaded), expected, atol=1e-6, rtol=1e-6)


# Learning


def trained(folder, user_model, settings, max_steps, learning_rate=3e-3):
    args = PersonalizedRewardConfig(
        str(folder), user_model=user_model, user_model_kwargs=settings, max_length=64, learning_rate=learning_rate,
        per_device_train_batch_size=16, max_steps=max_steps, n_context=4, eval_n_context=[0, 4], report_to="none",
        disable_tqdm=True, save_strategy="no", bf16=False, use_cpu=True, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = PersonalizedRewardTrainer(
        tiny_backbone(), args, pet_dataset(24, 10), {"validation": pet_dataset(8, 10, seed=1, first_user=100)},
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    trainer.train()
    return trainer


def accuracies(trainer):
    """Accuracy on new users at k = 0 and 4."""
    found = trainer.evaluate()
    return found["eval_validation_accuracy_k0"], found["eval_validation_accuracy_k4"]


@pytest.mark.parametrize(
    "user_model, settings", FORMS, ids=lambda p: p if isinstance(p, str) else p.get("form", "layers")
)
def test_new_users_of_opposite_types_get_opposite_answers(tmp_path, user_model, settings):
    trainer = trained(tmp_path, user_model, settings, 60)
    unknown, known = accuracies(trainer)
    assert abs(unknown - 0.5) < 0.1 and known > 0.9
    model, user = trainer.reward_model, pet_rows(1, 6, seed=5, first_user=200)
    turned = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in user]
    target = [user[0]["prompt"]] * 2, [user[0]["chosen"], user[0]["rejected"]]
    cat, dog = model.score(*target, model.encode_user(user)), model.score(*target, model.encode_user(turned))
    assert cat[0] > cat[1] and dog[0] < dog[1]


def test_the_test_of_learning_can_fail(tmp_path):
    unknown, known = accuracies(trained(tmp_path, "btl", {"head": "linear"}, 20))
    assert unknown == known and abs(known - 0.5) < 0.2


# Mistakes


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"encoder": "offline"}, "`encoder` is 'offline', but `soft_tokens` changes"),
        ({"packing": "shared_prefix"}, "`packing` is 'shared_prefix', but"),
        ({"context_refresh_steps": 5}, "`context_refresh_steps` is 5, but"),
        ({"user_model_kwargs": {"form": "both"}}, "`form` of `soft_tokens` is 'both'"),
        ({"user_model_kwargs": {"n_tokens": 0}}, "`n_tokens` of `soft_tokens` is 0"),
        ({"user_model_kwargs": {"rate": 0}}, "`rate` of `soft_tokens` is 0"),
    ],
)
def test_settings_that_do_not_fit_are_errors(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        PersonalizedRewardConfig(str(tmp_path), user_model="soft_tokens", use_cpu=True, bf16=False, **settings)


def test_features_are_refused():
    with pytest.raises(ConfigError, match="cannot work on the frozen features"):
        PersonalizedRewardModel.from_encoder("offline", "soft_tokens")
    model = PersonalizedRewardModel.from_backbone(tiny_backbone(), "soft_tokens", tokenizer=tiny_tokenizer())
    with pytest.raises(ConfigError, match="give `input_ids`"):
        model(features=torch.zeros(2, 32))
    with pytest.raises(ConfigError, match="2 `prompts` and 1 `responses`"):
        model.score(["a", "b"], ["c"])
