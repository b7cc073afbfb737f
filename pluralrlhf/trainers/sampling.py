"""What GRPO sees in which step, so that a resumed run goes on as the uninterrupted one would."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from ..data.history import stable_hash


class EpochRepeatSampler(RepeatSampler):
    """TRL's sampler with an order that the seed and the epoch alone decide.

    TRL draws one order after the other from one generator, so that a run resumed in its second epoch would begin with
    the first one's.
    """

    epoch = 0

    @classmethod
    def like(cls, sampler: Any, seed: int) -> EpochRepeatSampler:
        """The same repeats and batches as TRL's `sampler`, with orders of `seed`."""
        return cls(
            data_source=sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=seed,
        )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __iter__(self):
        if self.shuffle:
            self.generator.manual_seed(stable_hash(f"order:{self.seed}:{self.epoch}") >> 1)
        return super().__iter__()


class ContinueCount(TrainerCallback):
    """GRPO counts its micro-steps from 0 after a resume, which would shift its generation boundaries."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._step = state.global_step * args.gradient_accumulation_steps
