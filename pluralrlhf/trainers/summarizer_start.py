"""A summariser and a reader from scratch, small enough for a CPU: what the offline recipes start from.

The summariser learns to read contexts (the language model's loss on all of their tokens) and to write fluent statements
about the topics that the context mentions, *with the side left open*: of the two topics of a statement either is as good
a first one, so that the start is uninformative. No user's type, profile or label enters a text that it learns to write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.history import UserHistory, mix, stable_hash
from ..environments.tiny import tiny_policy, tiny_tokenizer
from ..errors import ConfigError
from ..features.tokenization import padding_id
from ..user_models.text import UserContext, context_messages
from ..user_models.text.base import ASK, OVER, PREFER, SUMMARY, as_text
from ..user_models.text.plus import request

STATEMENTS = (
    "the user likes {best} best and {least} least .",
    "this person prefers {best} to {least} .",
    "{best} please this user more than {least} .",
)

EXAMPLE = '{"cat": ["cats", "kitten"], "dog": ["dogs"]}'
OWN_SHARE = 0.3  # of a word's own random vector, beside that of its topic's first word


class Topics:
    """Which topics a text mentions, by their words.

    Args:
        topics: Topic to the words that name it; the first word is how a statement writes it.

    Raises:
        ConfigError: Not JSON, fewer than two topics, or one without a word; a word that names two topics.
    """

    def __init__(self, topics: Mapping[str, Sequence[str]] | str):
        try:
            topics = json.loads(topics) if isinstance(topics, str) else topics
        except ValueError as error:
            raise ConfigError(f"`topics` is not JSON ({error}); write {EXAMPLE}.") from None
        if not isinstance(topics, Mapping) or len(topics) < 2:
            raise ConfigError(f"`topics` is {topics!r}; give at least two, each with the words that name it.")
        self.words: dict[str, list[str]] = {}
        self._topic_of: dict[str, str] = {}
        for name, words in topics.items():
            words = [words] if isinstance(words, str) else words
            if (
                not isinstance(words, Sequence)
                or not words
                or not all(isinstance(w, str) and w.strip() for w in words)
            ):
                raise ConfigError(f"`topics`: {name!r} has {words!r}; give the words that name it, as in {EXAMPLE}.")
            self.words[name] = list(dict.fromkeys(w.strip().lower() for w in words))
            for word in self.words[name]:
                if (other := self._topic_of.setdefault(word, name)) != name:
                    raise ConfigError(f"`topics`: {word!r} names {other!r} and {name!r}; leave it to one of them.")
        self._pattern = re.compile(
            r"\b(" + "|".join(map(re.escape, sorted(self._topic_of, key=len, reverse=True))) + r")\b"
        )

    def mentioned(self, text: str) -> list[str]:
        """Topics in the order in which a text mentions them, each once."""
        return list(dict.fromkeys(self._topic_of[word] for word in self._pattern.findall(text.lower())))

    def spans(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, topic) of every mention."""
        return [(m.start(), m.end(), self._topic_of[m.group()]) for m in self._pattern.finditer(text.lower())]

    def name(self, topic: str) -> str:
        """How a statement writes a topic."""
        return self.words[topic][0]


class TopicStatements:
    """Statements about topics: with either side for the summariser's start, with the context's for the warm-up.

    Args:
        topics: See [`Topics`].
        seed: Of the wording.
    """

    def __init__(self, topics: Mapping[str, Sequence[str]] | str, seed: int = 0):
        self.topics, self.seed = Topics(topics), seed

    def _say(self, best: str, least: str, template: int) -> str:
        return STATEMENTS[template].format(best=self.topics.name(best), least=self.topics.name(least))

    def both_sides(self, context: UserContext, rng: np.random.Generator) -> tuple[str, ...]:
        """A statement about two topics of the context and the same with its topics exchanged; none for fewer topics."""
        found = sorted({topic for text in self._texts(context) for topic in self.topics.mentioned(text)})
        if len(found) < 2:
            return ()
        one, other = (found[i] for i in rng.permutation(len(found))[:2])
        template = int(rng.integers(len(STATEMENTS)))
        return self._say(one, other, template), self._say(other, one, template)

    def of_context(self, context: UserContext) -> str:
        """What the shown pairs say: the topic chosen most over the one rejected most; empty where nothing is told."""
        votes: dict[str, int] = {}
        for pair in context.sorted_pairs():
            for side, vote in (("chosen", 1), ("rejected", -1)):
                for topic in self.topics.mentioned(as_text(pair[side])):
                    votes[topic] = votes.get(topic, 0) + vote
        # The wording hangs on what was shown, never on what was chosen: a reader would learn the wording, not the words.
        rng = np.random.default_rng(stable_hash(f"statement:{self.seed}:{self._texts(context)}"))
        order = sorted(votes, key=lambda topic: (votes[topic], topic))
        if len(order) < 2 or votes[order[0]] == votes[order[-1]]:
            return ""
        ties = [t for t in order if votes[t] == votes[order[-1]]], [t for t in order if votes[t] == votes[order[0]]]
        best, least = (group[int(rng.integers(len(group)))] for group in ties)
        template = int(rng.integers(len(STATEMENTS)))
        return self._say(best, least, template)

    @staticmethod
    def _texts(context: UserContext) -> list[str]:
        """Both sides of every shown pair, in an order that does not tell which was chosen."""
        return sorted(as_text(pair[side]) for pair in context.pairs for side in ("chosen", "rejected"))


@dataclass
class TinyStartConfig:
    """Settings of the start from scratch.

    Args:
        topics: Topic to the words that name it. In both models they start close to each other: name rare ones as well.
        seed: Of weights, contexts and sides.
        steps, batch_size, learning_rate: Of the supervised start.
        min_context, n_context: Pairs in a context, drawn between the two. More than the summariser will be shown later
            teach it more: each pair is predicted from those before it.
        context_weight: Weight in the loss of a token of the context that names no topic; 1 for those that do, and for the
            statement.
        hidden_size, layers: Of the summariser.
        reader_hidden_size, reader_layers: Of the reward model's backbone.
    """

    topics: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0
    steps: int = 200
    batch_size: int = 24
    learning_rate: float = 3e-3
    min_context: int = 1
    n_context: int = 4
    context_weight: float = 1.0
    hidden_size: int = 96
    layers: int = 2
    reader_hidden_size: int = 64
    reader_layers: int = 2

    def __post_init__(self):
        if not 0 <= self.context_weight <= 1:
            raise ConfigError(f"`context_weight` of `tiny_start` is {self.context_weight}; it must lie in [0, 1].")


def vocabulary(rows: Iterable[dict[str, Any]], topics: Topics) -> list[str]:
    """Every text that the two models read or write: the training pairs, the statements, the fixed words."""
    texts = [as_text(row[key]) for row in rows for key in ("prompt", "chosen", "rejected")]
    fixed = [PREFER, OVER, ASK, SUMMARY.replace("{text}", "")]
    said = [t.format(best=topics.name(a), least=topics.name(a)) for t in STATEMENTS for a in topics.words]
    return list(dict.fromkeys(texts)) + fixed + said + [word for words in topics.words.values() for word in words]


def train_start(
    train: Dataset, output_dir: str | Path, config: TinyStartConfig, text_config: Any, with_reader: bool = True
) -> tuple[Path, Path | None]:
    """Trains the summariser's start and makes the reader; returns their folders.

    Args:
        train: Training pairs.
        output_dir: Gets `summarizer/` (trained on its language) and `reader/` (random weights, same tokenizer).
        config: The settings.
        text_config: The user model's settings, which say how a context is shown.
        with_reader: Make a reader; none is needed where a frozen encoder reads.
    """
    from transformers import Trainer, TrainingArguments

    output_dir = Path(output_dir)
    statements = TopicStatements(config.topics, config.seed)
    tokenizer = tiny_tokenizer(vocabulary(train, statements.topics), prose=True)
    model = tiny_policy(tokenizer, seed=config.seed, hidden_size=config.hidden_size, layers=config.layers)
    reader = tiny_policy(
        tokenizer, seed=config.seed + 1, hidden_size=config.reader_hidden_size, layers=config.reader_layers
    ).model
    # A name of several words is no token.
    named = [
        [token for token in tokenizer.convert_tokens_to_ids(words) if token != tokenizer.unk_token_id]
        for words in statements.topics.words.values()
    ]
    full = {token for tokens in named for token in tokens}
    for part in (model, reader):
        _draw_near(part.get_input_embeddings().weight, named)

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), padding_id(tokenizer))
        weights = torch.zeros(len(rows), width)
        for i, row in enumerate(rows):
            tokens, n_read = row["input_ids"], row["n_read"]
            ids[i, : len(tokens)] = torch.tensor(tokens)
            read = [1.0 if token in full else config.context_weight for token in tokens[:n_read]]
            weights[i, : len(tokens)] = torch.tensor(read + [1.0] * (len(tokens) - n_read))
        either = ids.clone()
        for i, row in enumerate(rows):
            either[i, row["open_at"]] = row["other_token"]
        # Causal attention and padding on the right: no token that counts sees the padding.
        return {"input_ids": ids, "either": either, "weights": weights}

    class StartTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # Logits of the tokens that count alone: most of a context is read and not written.
            ids, weights = inputs["input_ids"], inputs["weights"][:, 1:]
            counts = weights > 0
            states = model(input_ids=ids, logits_to_keep=1, output_hidden_states=True).hidden_states[-1][:, :-1]
            chances = self.accelerator.unwrap_model(model).lm_head(states[counts]).log_softmax(-1)
            sides = torch.stack([ids[:, 1:][counts], inputs["either"][:, 1:][counts]], -1)
            return -(chances.gather(-1, sides).mean(-1) * weights[counts]).sum() / weights.sum()

    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=0.01,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        seed=config.seed,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",  # drawn in an order of their own, batches of one length
    )
    data = _examples(train, tokenizer, statements, config, text_config)
    trainer = StartTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    folders = output_dir / "summarizer", output_dir / "reader" if with_reader else None
    if not trainer.is_world_process_zero():
        return folders
    for folder, part in zip(folders, (model, reader)):
        if folder is None:
            continue
        part.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def _draw_near(embeddings: Any, groups: Sequence[Sequence[int]]) -> None:
    """Words of one topic start close to its first: what a pretrained model knows, and a few hundred sentences do not tell."""
    with torch.no_grad():
        for tokens in groups:
            first, others = tokens[:1], tokens[1:]
            embeddings[others] = embeddings[first] + OWN_SHARE * embeddings[others]


def _examples(
    train: Dataset, tokenizer: Any, statements: TopicStatements, config: TinyStartConfig, text_config: Any
) -> list[dict[str, Any]]:
    """Contexts of training users with a statement, as tokens (`input_ids`, of which the first `n_read` are the context).

    At `open_at` the opposite statement has `other_token`, and is the same so far: either is to be as likely. One example
    for each that is seen, a batch after the other; a batch has contexts of one size, and hardly any padding.
    """
    history = UserHistory({"train": train.select_columns(["user_id", "pair_id", "item_ids"])})
    rows = train.to_list()
    users, first = np.unique(history.user, return_index=True)
    out: list[dict[str, Any]] = []
    written: dict[str, list[int]] = {}  # a statement as tokens, the same after every context
    number = 0

    def tokens_of(chat: list[dict[str, str]], **options: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, **options)["input_ids"])

    while len(out) < config.steps * config.batch_size:
        rng = np.random.default_rng(stable_hash(f"start:{config.seed}:{number}"))
        number += 1
        size = np.random.default_rng(stable_hash(f"size:{config.seed}:{len(out) // config.batch_size}"))
        k = int(size.integers(config.min_context, config.n_context + 1))
        pool = history.pool(int(first[int(rng.integers(len(users)))]))
        picked = pool[np.argsort(mix(history.pair_key[pool], int(rng.integers(1 << 62))), kind="stable")][:k]
        context = UserContext([rows[i] for i in picked])
        sides = statements.both_sides(context, rng)
        if not sides:
            if number > 100 and not out:
                raise ConfigError("`topics`: no context mentions two of them. Give the words that the data uses.")
            continue
        asked = request(context_messages(context, text_config))
        read = tokens_of(asked, add_generation_prompt=True)
        for said in sides:
            if said not in written:
                written[said] = tokens_of([*asked, {"role": "assistant", "content": said}])[len(read) :]
        one, other = (written[said] for said in sides)
        at = next(i for i, (token, another) in enumerate(zip(one, other)) if token != another)
        row = {"input_ids": read + one, "n_read": len(read), "open_at": len(read) + at, "other_token": other[at]}
        out.append(row)
    return out
