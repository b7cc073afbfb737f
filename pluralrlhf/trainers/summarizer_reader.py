"""The reward model's side of PLUS: it scores pairs under texts, and learns to read them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from ..errors import ConfigError, loading
from ..modeling import PersonalizedRewardModel
from ..user_models import bradley_terry_loss
from .summarizer_config import SummarizerConfig
from .summarizer_state import ReplayBuffer
from .text_data import TextPairData


class SummaryReader:
    """A reward model that reads summaries, with its optimiser and the summaries that it has seen of late.

    Args:
        model: The reward model; moved to the accelerator's device.
        pairs: The pairs that rows are numbers of.
        args: Learning rate, batch size, replay and form of the reward.
        accelerator: Averages gradients over processes.

    Attributes:
        model, optimizer, replay: What learns, by what, and from what besides the fresh summaries.
        frozen: The model as it was after `keep_frozen`, or None.
    """

    def __init__(self, model: PersonalizedRewardModel, pairs: TextPairData, args: SummarizerConfig, accelerator: Any):
        self.model, self.pairs, self.args, self.accelerator = model.to(accelerator.device), pairs, args, accelerator
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=args.reward_learning_rate,
            weight_decay=args.reward_weight_decay,
        )
        self.replay = ReplayBuffer(args.replay_size)
        self.frozen: PersonalizedRewardModel | None = None

    def rewards(self, texts: Sequence[str], targets: Sequence[Sequence[int]]) -> np.ndarray:
        """(n,) how well each text predicts the choices in its target pairs, on average over them.

        With `frozen_reader_weight` the frozen model has its share.
        """
        found, weight = self._rewards(self.model, texts, targets), self.args.frozen_reader_weight
        if not weight or self.frozen is None:
            return found
        return (1 - weight) * found + weight * self._rewards(self.frozen, texts, targets)

    def _rewards(self, model, texts: Sequence[str], targets: Sequence[Sequence[int]]) -> np.ndarray:
        """(n,) mean (log-)probability of the choices in each text's target pairs."""
        owner = np.repeat(np.arange(len(texts)), [len(rows) for rows in targets])
        margins = self.margins(np.concatenate([np.asarray(r) for r in targets]), [texts[i] for i in owner], model)
        values = -np.logaddexp(0, -margins)
        values = np.exp(values) if self.args.reward_form == "probability" else values
        return np.bincount(owner, values, len(texts)) / np.bincount(owner, minlength=len(texts))

    @torch.no_grad()
    def margins(self, rows: np.ndarray, texts: Sequence[str], model: Any = None) -> np.ndarray:
        """(n,) r(x, y+ | z) - r(x, y- | z) of pairs under one text each."""
        model = model or self.model
        training = model.training
        model.eval()
        examples, index = _distinct(rows, texts)
        size, out = self.args.reward_batch_size, []
        for start in range(0, len(examples), size):
            batch = self._batch(examples[start : start + size])
            chosen, rejected = model(**batch).logits.squeeze(-1).float().chunk(2)
            out.append((chosen - rejected).cpu().numpy())
        model.train(training)
        return np.concatenate(out).astype(np.float64)[index]

    def _batch(self, examples: Sequence[tuple[int, str]]) -> dict[str, torch.Tensor]:
        rows = np.array([row for row, _ in examples])
        batch = self.pairs.under(rows, [self.pairs.shown_summary(text) for _, text in examples])
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}

    def update(self, examples: Sequence[tuple[str, Sequence[int]]], n_fresh: int) -> tuple[float, float]:
        """One Bradley-Terry update on (text, target rows); returns the loss and the accuracy on the first `n_fresh`.

        A pair that comes several times under one text, as it does once a group writes alike, is read once and counts
        as often as it comes.
        """
        rows = np.concatenate([np.asarray(targets) for _, targets in examples])
        distinct, index = _distinct(rows, [text for text, targets in examples for _ in targets])
        n_first = sum(len(targets) for _, targets in examples[:n_fresh])
        counts = torch.tensor(np.bincount(index, minlength=len(distinct)), dtype=torch.float32)
        fresh = torch.tensor(np.bincount(index[:n_first], minlength=len(distinct)), dtype=torch.float32)
        self.model.train()
        self.optimizer.zero_grad()
        total, right, size = 0.0, 0.0, self.args.reward_batch_size * 4
        for start in range(0, len(distinct), size):
            part = slice(start, start + size)
            chosen, rejected = self.model(**self._batch(distinct[part])).logits.squeeze(-1).chunk(2)
            weight = counts[part].to(chosen.device) / len(rows)
            loss = (weight * bradley_terry_loss(chosen, rejected)).sum()
            loss.backward()
            total += loss.item()
            correct = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
            right += (fresh[part].to(chosen.device) * correct).sum().item()
        self._average_gradients()
        if self.args.max_grad_norm:  # 0 clips nothing, as in transformers
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.model.eval()
        return total, right / max(1, n_first)

    def _average_gradients(self) -> None:
        if self.accelerator.num_processes > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def set_rate(self, rate: float) -> None:
        """Learning rate of the updates from here on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def keep_frozen(self) -> None:
        """Keeps the model as it is now, if `frozen_reader_weight` asks for it."""
        if self.args.frozen_reader_weight:
            # What is not the reward model's own is not copied.
            model, others = self.model, (self.model.user_model._summarizer, self.model._encoder)
            kept = [other[:] for other in others]
            for other in others:
                other.clear()
            self.frozen = copy.deepcopy(model).requires_grad_(False).eval()
            for other, values in zip(others, kept):
                other[:] = values

    def broadcast(self) -> None:
        """The first process's weights everywhere."""
        if self.accelerator.num_processes > 1:
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                torch.distributed.broadcast(tensor.data, 0)


def _distinct(rows: np.ndarray, texts: Sequence[str]) -> tuple[list[tuple[int, str]], np.ndarray]:
    """The different (row, text), in the order of their first appearance, and the place of each given one."""
    place: dict[tuple[int, str], int] = {}
    index = [place.setdefault((int(row), text), len(place)) for row, text in zip(rows, texts, strict=True)]
    return list(place), np.array(index)


def load_reader(model: Any, args: SummarizerConfig) -> PersonalizedRewardModel:
    """The reward model that reads summaries: on its own backbone, or on the features of `args.reward_encoder`.

    Raises:
        ConfigError: Both or neither of `model` and `args.reward_encoder`, or a model that reads no summaries.
    """
    if (model is None) == (args.reward_encoder is None):
        raise ConfigError(
            "Give `reward_model` (what is trained to read summaries) or `reward_encoder` (a frozen encoder, whose "
            f"features are read); {'both are' if model is not None else 'neither is'} given."
        )
    if args.reward_encoder is not None:
        settings = {
            "max_new_tokens": args.max_completion_length,
            **(args.user_model_kwargs or {}),
            "reader": "embedding",
        }
        return PersonalizedRewardModel.from_encoder(args.reward_encoder, args.method, settings)
    if isinstance(model, PersonalizedRewardModel):
        if not hasattr(model.user_model, "attach"):
            raise ConfigError(f"`reward_model` has the user model {model.config.user_model!r}; one of plus is needed.")
        return model
    if not isinstance(model, str):
        raise ConfigError("`reward_model` is an id, a folder, or a `PersonalizedRewardModel`.")
    with loading("reward_model", model):
        config = AutoConfig.from_pretrained(model)
    if config.model_type == PersonalizedRewardModel.config_class.model_type:
        return load_reader(PersonalizedRewardModel.from_pretrained(model), args)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = {"max_new_tokens": args.max_completion_length, **(args.user_model_kwargs or {})}
    return PersonalizedRewardModel.from_backbone(
        model,
        args.method,
        settings,
        tokenizer=tokenizer,
        pooling="last",
        max_length=args.reward_max_length,
        dtype=torch.float32,
    )
