"""One scale for all users: order within a user stays, size between users goes."""

from __future__ import annotations

import pytest
import torch
from tiny import message, pet_dataset, pets_trainer

from pluralrlhf import PersonalizedReward
from pluralrlhf.errors import ConfigError
from pluralrlhf.rewards.scale import RewardScale

PROMPT = "which pet ?"
REFERENCES = [
    {
        "prompt": PROMPT,
        "responses": [f"the {a} {p} is best ." for a in ("nice", "soft", "loud") for p in ("cat", "dog")],
    }
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    trainer = pets_trainer(folder, "bayes_head", {"dim": 4, "hidden": 32}, learning_rate=3e-3, max_steps=50)
    return trainer.reward_model


@torch.no_grad()
def test_a_user_with_rewards_of_another_size_has_the_same_standardized_rewards(model):
    scale = RewardScale(model, "standardize", REFERENCES)
    rewards = torch.tensor([0.5, -1.0, 2.0])
    quiet = torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0, 2.0])
    scale._known = {"quiet": quiet, "loud": 50 * quiet - 7}
    out = scale(rewards, [PROMPT] * 3, ["quiet"] * 3, {})
    loud = scale(50 * rewards - 7, [PROMPT] * 3, ["loud"] * 3, {})
    torch.testing.assert_close(out, loud, atol=1e-4, rtol=1e-4)
    # The references themselves have mean 0 and deviation 1.
    own = scale(quiet, [PROMPT] * 6, ["quiet"] * 6, {})
    assert abs(own.mean()) < 1e-6 and own.std(correction=0) == pytest.approx(1.0)


@pytest.mark.parametrize("scale", ["none", "standardize", "spo"])
def test_scaling_keeps_a_users_order_and_spo_is_a_share_of_wins(model, scale):
    data = pet_dataset(2, 6, first_user=100)
    reward = PersonalizedReward(model, data, scale=scale, references=REFERENCES)
    plain = PersonalizedReward(model, data)
    completions = ["the cat is best .", "the dog is best .", "the small cat is nice .", "get a dog"]
    for user in ("u100", "u101"):
        arguments = {"prompts": [PROMPT] * 4, "completions": completions, "user_id": [user] * 4}
        values, unscaled = torch.tensor(reward(**arguments)), torch.tensor(plain(**arguments))
        assert values.argsort().tolist() == unscaled.argsort().tolist()
        if scale == "none":
            assert torch.equal(values, unscaled)
        if scale == "spo":
            state = reward._states[user]
            responses = REFERENCES[0]["responses"]
            others = model.score([PROMPT] * 6, responses, state)
            torch.testing.assert_close(values, torch.sigmoid(unscaled[:, None] - others).mean(1), atol=1e-5, rtol=1e-5)
            assert values.min() > 0 and values.max() < 1


def test_messages_and_texts_are_one_prompt_and_contexts_are_not_kept(model):
    reward = PersonalizedReward(model, scale="spo", references=REFERENCES)
    pairs = [{"prompt": PROMPT, "chosen": "the cat is best .", "rejected": "the dog is best ."}]
    text = reward(prompts=[PROMPT], completions=["a cat"], context=[pairs])
    chat = reward(prompts=[message(PROMPT, "user")], completions=[message("a cat", "assistant")], context=[pairs])
    assert text == pytest.approx(chat, abs=1e-4)
    assert not reward.scale._known


def test_forgetting_a_user_forgets_the_scale(model):
    reward = PersonalizedReward(model, pet_dataset(1, 5, first_user=100), scale="standardize", references=REFERENCES)
    reward(prompts=[PROMPT], completions=["a cat"], user_id=["u100"])
    assert reward.scale._known
    reward.forget("u100")
    assert not reward.scale._known


def test_pairs_serve_as_references_and_mistakes_are_named(model):
    rows = pet_dataset(3, 4)
    assert len(RewardScale(model, "standardize", rows).prompts) > 2
    with pytest.raises(ConfigError, match="`scale` is 'minmax'"):
        PersonalizedReward(model, {}, scale="minmax")
    with pytest.raises(ConfigError, match="`references` holds 0"):
        PersonalizedReward(model, {}, scale="spo")
    reward = PersonalizedReward(model, {}, unknown_users="prior", scale="spo", references=REFERENCES)
    with pytest.raises(ConfigError, match="1 of 1 prompts have none in `references`"):
        reward(prompts=["another ?"], completions=["a cat"], user_id=["u"])


def test_conversations_are_scaled_as_a_multi_turn_trainer_gives_them(model):
    # `MultiTurnGRPOTrainer` pays the end reward with whole conversations as completions.
    talk = [
        {"role": "assistant", "content": "do you like walks ?"},
        {"role": "user", "content": "me ? sleep !"},
        {"role": "assistant", "content": "get a cat ."},
    ]
    prompt = message(PROMPT, "user")
    plain = PersonalizedReward(model, pet_dataset(1, 5, first_user=100))
    scaled = PersonalizedReward(model, pet_dataset(1, 5, first_user=100), scale="spo", references=REFERENCES)
    arguments = {"prompts": [prompt], "completions": [talk], "user_id": ["u100"], "trainer_state": None}
    own = plain(**arguments)[0]
    others = scaled.scale.reference_rewards(plain._states["u100"])[0]
    assert scaled(**arguments)[0] == pytest.approx(float(torch.sigmoid(own - others).mean()), abs=1e-5)
