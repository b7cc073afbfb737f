"""Scoring with `packing: shared_prefix`: the same rewards from fewer tokens."""

from __future__ import annotations

import pytest
import torch
from tiny import pet_rows, tiny_backbone, tiny_tokenizer

from pluralrlhf import PersonalizedReward
from pluralrlhf.errors import ConfigError
from pluralrlhf.modeling import PersonalizedRewardModel

PETS = ["cat", "dog", "bird", "fish", "rabbit"]
PROMPTS = [f"which of the {n} pet ?" for n in ("best", "least") for _ in PETS]
RESPONSES = [f"the {pet} is best ." for pet in PETS] * 2
HEADS = {
    "btl": {"head": "linear"},
    "vpl": {"latent_dim": 4, "hidden": 16, "decoder_hidden": 16},
    "icl": {},
    "extract": {},
}


def make(name: str) -> PersonalizedRewardModel:
    torch.manual_seed(0)
    backbone = tiny_backbone(initializer_range=0.2)
    model = PersonalizedRewardModel.from_backbone(
        backbone, name, HEADS[name], tokenizer=tiny_tokenizer(), pooling="last"
    )
    return model.eval()


def history(user: int) -> list[dict]:
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pet_rows(1, 4, first_user=user)]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_packed_rewards_are_those_of_single_texts(name, batch_size, monkeypatch):
    model, read = make(name), [0, 0]
    states = model.encode_users([history(0), history(1)])
    each = states.rows(torch.arange(len(PROMPTS)) % 2)
    packed_states = model.packed_states

    def count(trees):
        read[0], read[1] = read[0] + trees.n_tokens, read[1] + trees.n_naive_tokens
        return packed_states(trees)

    for arguments in (
        (PROMPTS, RESPONSES),
        (PROMPTS, RESPONSES, states.rows(slice(0, 1))),
        (PROMPTS, RESPONSES, each),
    ):
        plain = model.score(*arguments)
        monkeypatch.setattr(model, "packed_states", count)
        packed = model.score(*arguments, batch_size=batch_size, packing="shared_prefix")
        monkeypatch.undo()
        torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-4)
    assert 0 < read[0] < 0.8 * read[1]
    matrix = model.score_matrix(states, PROMPTS, RESPONSES)
    torch.testing.assert_close(
        model.score_matrix(states, PROMPTS, RESPONSES, packing="shared_prefix"), matrix, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(matrix[:, 0], torch.stack([model.score(PROMPTS[:1], RESPONSES[:1], one)[0] for one in (
        states.rows(slice(0, 1)), states.rows(slice(1, 2)))]), atol=1e-5, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("packing", [None, "shared_prefix"])
@pytest.mark.parametrize("name", ["extract", "icl", "vpl"])
def test_a_policys_reward_is_the_models(name, packing):
    model = make(name)
    users = ["u0", "u1"] * (len(PROMPTS) // 2)
    known = {"u0": history(0), "u1": model.encode_user(history(1))}
    reward = PersonalizedReward(model, known, packing=packing)
    expected = model.score_matrix(model.encode_users([history(0), history(1)]), PROMPTS, RESPONSES)
    assert (expected[0] - expected[1]).abs().max() > 5e-5
    expected = torch.where(torch.tensor([user == "u0" for user in users]), *expected)
    values = reward(prompts=PROMPTS, completions=RESPONSES, user_id=users)
    torch.testing.assert_close(torch.tensor(values), expected, atol=1e-5, rtol=1e-4)
    references = [{"prompt": prompt, "responses": RESPONSES[:3]} for prompt in dict.fromkeys(PROMPTS)]
    scaled = PersonalizedReward(model, known, scale="standardize", references=references, packing=packing)
    assert scaled(prompts=PROMPTS, completions=RESPONSES, user_id=users) != values
    assert reward.forget("u0") == 4 and reward.forget("u1") == 0


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ConfigError, match="`packing` is 'tree'"):
        make("btl").score(PROMPTS, RESPONSES, packing="tree")
    model = PersonalizedRewardModel.from_backbone(tiny_backbone(), "soft_tokens", {}, tokenizer=tiny_tokenizer())
    with pytest.raises(ConfigError, match="changes what the backbone reads"):
        model.score(PROMPTS, RESPONSES, packing="shared_prefix")
    with pytest.raises(ConfigError, match="changes what the backbone reads"):
        PersonalizedReward(model, packing="shared_prefix")
