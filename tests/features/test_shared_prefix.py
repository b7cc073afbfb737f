"""Shared-prefix packing: the same rewards and gradients as sequence by sequence, with fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from pluralrlhf.errors import ConfigError, DataError
from pluralrlhf.features.shared_prefix import (
    check_shared_prefix,
    last_hidden_states,
    pack_shared_prefix,
    sequence_rewards,
    verify_shared_prefix,
)

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "num_labels": 1,
}


def make_model(kind: str, **kwargs) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    shape = {**SHAPE, **kwargs}
    config = {
        "qwen2": transformers.Qwen2Config,
        "llama": transformers.LlamaConfig,
        "gemma": transformers.GemmaConfig,
        "qwen3": transformers.Qwen3Config,
    }[kind](**shape, **({"head_dim": 8} if kind in ("gemma", "qwen3") else {}))
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def make_groups(seed: int = 0, n_groups: int = 3, n_pairs: int = 4) -> list[list[list[int]]]:
    """[user][prompt][response] of uneven lengths, two responses a prompt."""
    rng = np.random.default_rng(seed)

    def draw(low, high):
        return rng.integers(1, SHAPE["vocab_size"], size=rng.integers(low, high)).tolist()

    groups = []
    for _ in range(n_groups):
        user = draw(10, 20)
        prompts = [user + draw(3, 8) for _ in range(n_pairs)]
        groups.append([prompt + draw(2, 9) for prompt in prompts for _ in ("chosen", "rejected")])
    return groups


def naive_rewards(model, groups) -> torch.Tensor:
    return torch.cat([model(torch.tensor([ids])).logits[:, 0] for group in groups for ids in group])


def loss(rewards: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2]).mean()


@pytest.mark.parametrize("max_tokens", [None, 60, 400])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gemma"])
def test_rewards_and_gradients_are_those_of_the_naive_way(kind, max_tokens):
    model, groups = make_model(kind), make_groups()
    packed = pack_shared_prefix(groups, max_tokens=max_tokens)
    naive = naive_rewards(model, groups)
    rewards = sequence_rewards(model, packed)
    assert rewards.std() > 0.1
    torch.testing.assert_close(rewards, naive, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(loss(naive), list(model.parameters()), allow_unused=True)
    found = torch.autograd.grad(loss(rewards), list(model.parameters()), allow_unused=True)
    for a, b in zip(expected, found):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= 1e-4 * a.norm()


def test_eager_attention_gives_the_same():
    groups = make_groups()
    packed = pack_shared_prefix(groups)
    rewards = [sequence_rewards(make_model("qwen2"), packed)]
    model = make_model("qwen2")
    model.set_attn_implementation("eager")
    rewards.append(sequence_rewards(model, packed))
    torch.testing.assert_close(*rewards, atol=1e-5, rtol=1e-5)


def test_shared_tokens_are_there_once():
    user, prompt, chosen, rejected = [1, 2, 3], [4, 5], [6, 7], [8]
    packed = pack_shared_prefix([[user + prompt + chosen, user + prompt + rejected, [*user, 9]]])
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 3]]
    assert packed.visible_until.tolist() == [[9, 9, 9, 8, 8, 7, 7, 8, 9]]
    assert packed.token.tolist() == [6, 7, 8] and packed.row.tolist() == [0, 0, 0]
    assert (packed.n_tokens, packed.n_naive_tokens) == (9, 17)


def test_each_token_sees_its_ancestors_and_nothing_else():
    groups = make_groups(seed=3)
    for max_tokens in (None, 50, 1000):
        packed = pack_shared_prefix(groups, max_tokens=max_tokens)
        mask = packed.mask()[:, 0]
        sequences = [ids for group in groups for ids in group]
        for ids, row, token in zip(sequences, packed.row, packed.token):
            seen = packed.input_ids[row][mask[row, token]]
            assert seen.tolist() == ids
            assert packed.position_ids[row][mask[row, token]].tolist() == list(range(len(ids)))
        additive = packed.additive_mask()
        assert ((additive == 0) == packed.mask()).all() and torch.isfinite(additive).all()
        assert max_tokens is None or packed.input_ids.size(1) <= max_tokens


def test_sequences_that_are_equal_or_begin_another_one():
    model = make_model("qwen2")
    groups = [[[5, 6, 7, 8], [5, 6], [5, 6, 7, 8], [9]], [[5, 6]]]
    packed = pack_shared_prefix(groups)
    assert packed.n_tokens == 5 + 2 and packed.row.tolist() == [0, 0, 0, 0, 1]
    torch.testing.assert_close(sequence_rewards(model, packed), naive_rewards(model, groups), atol=1e-5, rtol=1e-5)


def test_padding_and_its_token_change_nothing():
    model, groups = make_model("llama"), make_groups()
    rewards = [
        sequence_rewards(model, pack_shared_prefix(groups, pad_token_id=pad, pad_to_multiple_of=multiple))
        for pad, multiple in ((0, 1), (7, 64))
    ]
    torch.testing.assert_close(*rewards, atol=1e-5, rtol=1e-5)


def test_a_budget_splits_and_fills_rows():
    groups = make_groups(n_groups=6)
    small, large = pack_shared_prefix(groups, max_tokens=45), pack_shared_prefix(groups, max_tokens=500)
    assert small.input_ids.size(0) > 6 > large.input_ids.size(0)
    assert large.n_tokens < small.n_tokens < small.n_naive_tokens
    with pytest.raises(DataError, match="`max_tokens` = 10"):
        pack_shared_prefix(groups, max_tokens=10)
    with pytest.raises(DataError, match="sequence 1 has no tokens"):
        pack_shared_prefix([[[1], []]])
    assert pack_shared_prefix([]).input_ids.shape == (0, 0)


def test_peft_models_are_unwrapped():
    from peft import LoraConfig, get_peft_model

    groups = make_groups()
    model = get_peft_model(
        make_model("qwen2"), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    rewards = sequence_rewards(model, pack_shared_prefix(groups))
    torch.testing.assert_close(rewards, naive_rewards(model, groups), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.BertConfig(), "no decoder"),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.MistralConfig(), "window of 4096"),
        (transformers.Gemma2Config(), "sliding_attention"),
        (transformers.Qwen3NextConfig(), "linear_attention"),
        (transformers.MambaConfig(), "linear_attention"),
        (transformers.BloomConfig(), "does not take positions"),
        (transformers.RwkvConfig(), "does not take positions"),
        (transformers.Qwen2Config(attn_implementation="flash_attention_2"), "flash_attention_2"),
    ],
)
def test_what_cannot_take_a_tree_is_refused(config, reason):
    with pytest.raises(ConfigError, match=reason):
        check_shared_prefix(config)


def test_a_model_is_checked_by_running_it():
    model = make_model("qwen2").model.train()
    verify_shared_prefix(model)
    assert model.training
    for layer in model.layers:
        layer.self_attn.register_forward_pre_hook(drop_mask, with_kwargs=True)
    with pytest.raises(ConfigError, match="one by one differently"):
        verify_shared_prefix(model)


def drop_mask(module, args, kwargs):
    return args, {**kwargs, "attention_mask": None}


def test_models_without_a_score_head_are_refused():
    with pytest.raises(ConfigError, match="`score` head"):
        sequence_rewards(make_model("qwen2").model, pack_shared_prefix(make_groups()))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma"])
def test_flex_attention_gives_the_same_on_cuda(kind):
    groups = make_groups(n_pairs=16)
    model = make_model(kind, hidden_size=64).cuda()
    packed = pack_shared_prefix(groups, pad_to_multiple_of=128).to("cuda")
    expected = sequence_rewards(model, packed)
    model.set_attn_implementation("flex_attention")
    found = sequence_rewards(model, packed)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(loss(expected), parameters), torch.autograd.grad(loss(found), parameters)):
        assert (a - b).norm() <= 1e-3 * a.norm()


def test_block_mask_is_the_dense_mask():
    from torch.nn.attention.flex_attention import create_mask

    packed = pack_shared_prefix(make_groups(n_pairs=16), pad_to_multiple_of=128)
    block = packed.block_mask()
    n_rows, width = packed.input_ids.shape
    dense = create_mask(block.mask_mod, n_rows, None, width, width, device="cpu")
    assert torch.equal(dense, packed.mask())


def test_hidden_states_are_in_the_order_given():
    model = make_model("qwen2").model
    groups = make_groups()
    for order in (slice(None), slice(None, None, -1)):
        shuffled = [group[order] for group in groups[order]]
        hidden = last_hidden_states(model, pack_shared_prefix(shuffled, max_tokens=100))
        alone = [model(torch.tensor([ids])).last_hidden_state[0, -1] for group in shuffled for ids in group]
        torch.testing.assert_close(hidden, torch.stack(alone), atol=2e-5, rtol=1e-4)
