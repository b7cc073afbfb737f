"""The supervised start of the exercise world: a policy that asks at random and recommends right when it can.

Demonstrations come from train users. The questions of a demonstration are drawn at random (so the start has no skill
at asking); its recommendation is the user's own strategy (so the start learns the posterior, and is right given full
information). In half of them the deciding attributes are asked, in random order among others, and the loss leaves out
the questions: the recommender learns the rule without the asker learning what to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..features.tokenization import padding_id
from .base import Conversation, Turn, UserProfile, stable_random, stable_seed
from .exercise import (
    AGREEMENTS,
    ASKS,
    ATTRIBUTES,
    CARRIERS,
    CHANGES,
    CONFUSED,
    CUE,
    N_DECIDING,
    NUMBERS,
    OPENINGS,
    RECOMMENDS,
    STRATEGIES,
    SUGGESTS,
    VAGUE,
    ExerciseWorld,
    path_of,
)


def vocabulary() -> list[str]:
    """Every text of the world, for a word-level tokenizer."""
    nested = (*CARRIERS, *VAGUE, *CHANGES, AGREEMENTS, CONFUSED, ASKS, SUGGESTS, RECOMMENDS)
    texts = [text for group in nested for text in group] + [*OPENINGS.values(), CUE, *NUMBERS, *STRATEGIES]
    texts += [word for topic, *values in ATTRIBUTES for words in values for word in (topic, *words)]
    return [" ".join(w for w in text.split() if "{" not in w) for text in texts]


def question(attribute: int, rng, leading: float = 0.15) -> str:
    """A question about an attribute, leading with probability `leading`."""
    topic, zero, one = ATTRIBUTES[attribute]
    if rng.random() < leading:
        return SUGGESTS[0].format(value=rng.choice((zero, one))[0])
    return rng.choice(ASKS).format(v0=zero[0], v1=one[0], topic=topic)


def demonstration(world: ExerciseWorld, profile: UserProfile, seed: int) -> tuple[Conversation, bool]:
    """One demonstration, and whether its questions may be learnt from."""
    rng = stable_random("demonstration", seed)
    world = replace(world, cue=rng.random() < 0.7, max_turns=None)
    informed = rng.random() < 0.5
    if informed:
        path = path_of(world.values(profile)[:N_DECIDING])
        others = [a for a in range(N_DECIDING) if a not in path and rng.random() < 0.4]
        asked = [*path, *others, *rng.sample(range(N_DECIDING, len(ATTRIBUTES)), rng.randrange(4))]
        rng.shuffle(asked)
    else:
        n = world.n_questions if world.cue else rng.randrange(0, 9)
        asked = rng.sample(range(len(ATTRIBUTES)), n)
    world = replace(world, n_questions=len(asked), max_turns=None) if world.cue else world
    conversation = Conversation(profile, world.prompt(profile), seed=stable_seed("heard", seed))
    for attribute in asked:
        text = question(attribute, rng)
        conversation.turns.append(Turn(text, world.parse(text)))
        conversation.turns[-1].user = world.scripted_reply(conversation).text
    text = RECOMMENDS[0].format(strategy=STRATEGIES[profile.type_index])
    conversation.turns.append(Turn(text, world.parse(text)))
    return conversation, not informed


def demonstrations(world: ExerciseWorld, n: int, seed: int) -> list[tuple[Conversation, bool]]:
    """`n` demonstrations with train users."""
    users = world.users("train")
    return [demonstration(world, users[stable_seed(seed, i) % len(users)], stable_seed(seed, i, 1)) for i in range(n)]


def encode(conversation: Conversation, learn_questions: bool, tokenizer: Any) -> dict[str, list[int]]:
    """`input_ids` and `labels`: with `learn_questions` both parties' language is learnt, else the last utterance."""
    ids: list[int] = []
    labels: list[int] = []
    messages = conversation.messages
    for i, message in enumerate(messages):
        agent = message["role"] == "assistant"
        marker = "<agent>" if agent else "<user>"
        tokens = tokenizer(f"{marker} {message['content']} <end>", add_special_tokens=False)["input_ids"]
        learn = learn_questions or i == len(messages) - 1
        ids += tokens
        labels += tokens if learn else [-100] * len(tokens)
    return {"input_ids": ids, "labels": labels}


@dataclass
class StartConfig:
    """Settings of the supervised start."""

    seed: int = 0
    steps: int = 1400
    batch_size: int = 48
    learning_rate: float = 3e-3
    hidden_size: int = 96
    layers: int = 2
    weight_decay: float = 0.5


def train_start(world: ExerciseWorld, output_dir: str | Path, config: StartConfig | None = None) -> Path:
    """Trains and saves the start with transformers' `Trainer`; the folder holds model and tokenizer.

    Raises:
        ConfigError: If the world is not strict: the start speaks the closed grammar only.
    """
    import torch
    from transformers import Trainer, TrainingArguments

    from .tiny import tiny_policy, tiny_tokenizer

    config = config or StartConfig()
    if not world.strict:
        raise ConfigError("`strict` is False; a start from scratch needs the closed grammar (`strict=True`).")
    tokenizer = tiny_tokenizer(vocabulary())
    model = tiny_policy(tokenizer, seed=config.seed, hidden_size=config.hidden_size, layers=config.layers)
    data = [encode(*pair, tokenizer) for pair in demonstrations(world, 16_384, config.seed)]

    def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": padding_id(tokenizer), "labels": -100}
        batch = {k: torch.tensor([row[k] + [v] * (width - len(row[k])) for row in rows]) for k, v in fill.items()}
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {**batch, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}

    def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        # Every demonstration weighs the same: one strategy's name against sixty words would otherwise not be learnt.
        logits, targets = outputs.logits[:, :-1], labels[:, 1:]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return (nll.sum(dim=1) / (targets != -100).sum(dim=1).clamp(min=1)).mean()

    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=config.weight_decay,
        train_sampling_strategy="group_by_length",
        logging_steps=200,
        save_strategy="no",
        report_to="none",
        seed=config.seed,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=collate, compute_loss_func=loss_of
    )
    trainer.train()
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return Path(output_dir)


def informed_accuracy(
    world: ExerciseWorld, model: Any, tokenizer: Any, split: str = "validation", n: int = 256, seed: int = 0
) -> float:
    """How often the policy recommends right when the user has just stated all five deciding values.

    Deciding questions in random order, answered plainly (no vague answers, changes of subject or errors); the
    recommendation is greedy.
    """
    from .generation import CachedGenerator, ChatFormat

    plain = replace(world, n_questions=N_DECIDING, cue=True, max_turns=None, vague=0.0, change=0.0, noise=0.0)
    chat = ChatFormat(tokenizer)
    contexts, users = [], plain.users(split)
    for i in range(n):
        rng = stable_random("informed", seed, i)
        conversation = Conversation(users[i % len(users)], plain.prompt(users[0]), seed=stable_seed(seed, i))
        for attribute in rng.sample(range(N_DECIDING), N_DECIDING):
            text = question(attribute, rng, leading=0.0)
            conversation.turns.append(Turn(text, plain.parse(text)))
            conversation.turns[-1].user = plain.scripted_reply(conversation).text
        contexts.append((conversation, chat.prompt_ids(conversation.messages)))
    generator = CachedGenerator(model.eval(), padding_id(tokenizer))
    generator.start([ids for _, ids in contexts])
    ids, _ = generator.generate(12, chat.stop_ids, temperature=0.0)
    right = 0
    for (conversation, _), tokens in zip(contexts, ids):
        text = chat.text(tokens)
        conversation.turns.append(Turn(text, plain.parse(text)))
        right += plain.success(conversation)
    return right / n
