"""A reward model as a TRL reward: a policy learns to write what each of two opposite users wants."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, DatasetDict
from tiny import message, pet_dataset, pet_rows, pets_trainer, tiny_config, tiny_tokenizer
from transformers import Qwen2ForCausalLM

from pluralrlhf import PersonalizedReward
from pluralrlhf.errors import ConfigError


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    trainer = pets_trainer(folder, "vpl", {"latent_dim": 8, "hidden": 64}, learning_rate=2e-3, max_steps=80)
    return trainer.reward_model


def test_a_reward_is_its_users(reward_model):
    data = pet_dataset(2, 6, first_user=100)
    reward = PersonalizedReward(reward_model, data, n_context=4)
    assert reward.__name__ == "personalized_reward"
    prompts, completions = ["which pet ?"] * 4, ["the cat is best .", "the dog is best ."] * 2
    values = reward(prompts=prompts, completions=completions, user_id=["u100", "u100", "u101", "u101"], other=1)
    assert values[0] > values[1] and values[3] > values[2]
    contexts = [pet_rows(1, 4, first_user=u) for u in (100, 100, 101, 101)]
    plain = [[{k: p[k] for k in ("prompt", "chosen", "rejected")} for p in c] for c in contexts]
    by_context = PersonalizedReward(reward_model)(prompts=prompts, completions=completions, context=plain)
    assert by_context[0] > by_context[1] and by_context[3] > by_context[2]
    conversational = reward(
        prompts=[message(p, "user") for p in prompts],
        completions=[message(c, "assistant") for c in completions],
        user_id=["u100", "u100", "u101", "u101"],
    )
    assert conversational == pytest.approx(values, abs=1e-4)


def test_unknown_users_are_an_error_or_the_prior(reward_model):
    arguments = {"prompts": ["p"], "completions": ["a cat"], "user_id": ["stranger"]}
    with pytest.raises(ConfigError, match="1 of 1 users have no pairs in `history`: 'stranger'\\. Add"):
        PersonalizedReward(reward_model, {})(**arguments)
    logged = {}
    value = PersonalizedReward(reward_model, {}, unknown_users="prior")(**arguments, log_metric=logged.__setitem__)
    assert logged == {"unknown_users": 1.0}
    assert value == pytest.approx(reward_model.score(["p"], ["a cat"]).tolist())
    with pytest.raises(ConfigError, match="neither a `user_id` nor a `context`"):
        PersonalizedReward(reward_model, {})(prompts=["p"], completions=["c"])
    with pytest.raises(ConfigError, match="`unknown_users` is 'skip'"):
        PersonalizedReward(reward_model, {}, unknown_users="skip")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "runs/x"}, r"`model` is the text 'runs/x'; give a loaded model: `Pers.*from_pretrained\(FOLDER\)`"),
        ({"n_context": -1}, "`n_context` is -1; give a whole number of at least 0"),
        ({"n_context": "8"}, "`n_context` is '8'"),
        ({"history": "folder"}, r"`history` is the text 'folder'; give a dataset of pairs: `load_pairs"),
        ({"history": 3}, "`history` is a int"),
        ({"history": {"u1": "folder"}}, r"`history\['u1'\]` is the text 'folder'; give a list of pairs"),
        (
            {"history": DatasetDict(train=pet_dataset(1, 2))},
            r"DatasetDict of splits \(train\); give one .*`history\['train'\]`",
        ),
        (
            {"history": [{"prompt": "p", "chosen": "a", "rejected": "b"}]},
            "`history`, row 1: no user_id. Each pair needs",
        ),
        ({"history": [{**pet_rows(1, 1)[0], "user_id": None}]}, "`history`, row 1: no user_id"),
        ({"history": [{**pet_rows(1, 1)[0], "user_id": float("nan")}]}, "`history`, row 1: no user_id"),
        ({"scale": "spo", "references": ["a", "b"]}, "`references`, number 1, is a str; give rows with `prompt`"),
    ],
)
def test_arguments_of_another_kind_are_named(reward_model, settings, message):
    with pytest.raises(ConfigError, match=message):
        PersonalizedReward(**({"model": reward_model} | settings))


def test_forgetting_removes_history_and_state(reward_model):
    reward = PersonalizedReward(reward_model, pet_dataset(1, 5, first_user=100))
    reward(prompts=["p"], completions=["a cat"], user_id=["u100"])
    assert reward.forget("u100") == 5
    numbered = pet_dataset(1, 5).remove_columns("user_id").add_column("user_id", [7] * 5)
    assert PersonalizedReward(reward_model, numbered).forget(7) == 5
    with pytest.raises(ConfigError, match="no pairs"):
        reward(prompts=["p"], completions=["a cat"], user_id=["u100"])


@pytest.mark.parametrize("trainer_name", ["GRPOTrainer", pytest.param("RLOOTrainer", marks=pytest.mark.slow)])
def test_a_policy_learns_what_each_user_wants(tmp_path, reward_model, trainer_name):
    import trl

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(chat_template=False)
    # The policy is told who asks by a word; whom that word stands for it learns from the reward.
    policy = Qwen2ForCausalLM(tiny_config(hidden_size=64, intermediate_size=128, tie_word_embeddings=True))
    rows = [
        {"prompt": f"tell {'me' if u % 2 else 'you'} about your pet :", "user_id": f"u{u}"} for u in range(100, 108)
    ]
    config = getattr(trl, trainer_name.replace("Trainer", "Config"))(
        output_dir=str(tmp_path), per_device_train_batch_size=32, num_generations=8, max_completion_length=4,
        max_steps=25, learning_rate=3e-3, bf16=False, gradient_checkpointing=False, report_to="none", beta=0.0,
        disable_tqdm=True, save_strategy="no", logging_steps=1, temperature=1.0,
    )  # fmt: skip
    reward = PersonalizedReward(reward_model, pet_dataset(8, 6, first_user=100))
    trainer = getattr(trl, trainer_name)(
        model=policy, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows * 8),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5
    answers = {}
    for row in rows[:2]:
        ids = tokenizer(row["prompt"], return_tensors="pt")
        out = trainer.model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        answers[row["user_id"]] = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answers["u100"] != answers["u101"]
    users = list(answers)
    own = reward(prompts=["p"] * 2, completions=[answers[u] for u in users], user_id=users)
    other = reward(prompts=["p"] * 2, completions=[answers[u] for u in users[::-1]], user_id=users)
    assert own[0] > other[0] and own[1] > other[1]
