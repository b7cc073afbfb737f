"""Tiny models, tokenizers and data made in memory."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

WORDS = (
    "a the my your cat dog kitten puppy pet best likes is for me you which what should adopt get nice soft loyal calm "
    "loud funny small big home walk sleep play today tell about User: Assistant: user assistant ? . , ! :"
).split()
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)


def tiny_tokenizer(chat_template: bool = True) -> PreTrainedTokenizerFast:
    """Word-level tokenizer with separate pad, eos and chat tokens."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", "<eos>", "<|im_start|>", "<|im_end|>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat_template:
        fast.chat_template = TEMPLATE
    return fast


def tiny_config(**kwargs) -> Qwen2Config:
    # At the default range of 0.02 a tiny random model cannot learn.
    settings = {
        "vocab_size": len(WORDS) + 5,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": None,
    }
    return Qwen2Config(**(settings | kwargs))


def tiny_backbone(seed: int = 0, **kwargs) -> Qwen2Model:
    torch.manual_seed(seed)
    return Qwen2Model(tiny_config(**kwargs))


def message(text: str, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pet_rows(n_users: int = 12, n_pairs: int = 10, seed: int = 0, first_user: int = 0, conversational: bool = True):
    """Pairs of users who like cats (even numbers) or dogs (odd ones)."""
    rng = np.random.default_rng(seed)
    adjectives = ["nice", "soft", "loyal", "calm", "loud", "funny", "small", "big"]
    rows = []
    for user in range(first_user, first_user + n_users):
        for number in range(n_pairs):
            adjective = adjectives[int(rng.integers(len(adjectives)))]
            sides = [
                f"the {adjective} {animal} is best ."
                for animal in (("cat", "dog") if user % 2 == 0 else ("dog", "cat"))
            ]
            prompt = f"which pet is {adjectives[number % 8]} ?"
            row = {"user_id": f"u{user}", "pair_id": f"u{user}-{number}", "item_ids": [f"i{number}"]}
            texts = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            row |= {key: message(text, roles[key]) for key, text in texts.items()} if conversational else texts
            rows.append(row)
    return rows


def pet_dataset(*args, **kwargs) -> Dataset:
    return Dataset.from_list(pet_rows(*args, **kwargs))


def pets_trainer(folder, user_model, user_model_kwargs, *, learning_rate, max_steps):
    """A trained trainer of frozen features on pets, whose outputs and cache are in `folder`."""
    from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer

    args = PersonalizedRewardConfig(
        str(folder / "out"), encoder="offline", user_model=user_model, user_model_kwargs=user_model_kwargs,
        per_device_train_batch_size=64, learning_rate=learning_rate, max_steps=max_steps, n_context=6,
        feature_cache=str(folder / "c"), report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = PersonalizedRewardTrainer(args=args, train_dataset=pet_dataset(40, 12))
    trainer.train()
    return trainer
