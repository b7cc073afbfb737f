"""Settings of `SummarizerTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ..errors import ConfigError
from ..user_models import build_config, user_model_class

METHODS = ("plus", "plus_untrained", "plus_frozen_rm")


@dataclass
class SummarizerConfig(GRPOConfig):
    r"""`trl.GRPOConfig` plus the context, the reward model's own learning, and what keeps summaries honest.

    Differences from TRL's defaults: `gradient_checkpointing=False`, and `bf16` only where there is an accelerator.
    TRL's fields are the summariser's: `num_generations` summaries a context, `per_device_train_batch_size` summaries a
    step, `beta` its KL penalty, `max_completion_length` its longest summary in tokens.

    Parameters:
        method (`str`, *optional*, defaults to `"plus"`):
            `plus`; `plus_untrained`: only the reward model learns; `plus_frozen_rm`: only the summariser learns, once
            the reward model is warm.
        n_context (`int`, *optional*, defaults to `8`), `min_context` (`int`, *optional*, defaults to `1`):
            A context holds this many pairs, drawn between the two.
        n_targets (`int`, *optional*, defaults to `2`):
            Pairs outside the context that a summary is judged by; the same for a group.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "user_model_kwargs", "topics"]

    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass to save memory."}
    )
    max_completion_length: int = field(default=64, metadata={"help": "Longest summary, in tokens."})
    beta: float = field(default=0.01, metadata={"help": "KL penalty to the initial summariser."})
    method: str = field(default="plus", metadata={"help": "`plus`, `plus_untrained` or `plus_frozen_rm`."})
    user_model_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of the user model, as JSON (`source`, `max_words` ...)."}
    )

    # Contexts and targets
    n_context: int = field(default=8, metadata={"help": "Most pairs of context."})
    min_context: int = field(default=1, metadata={"help": "Fewest pairs of context; each step draws the number."})
    n_targets: int = field(default=2, metadata={"help": "Pairs outside the context that judge a summary."})
    reward_form: str = field(
        default="log_probability",
        metadata={
            "help": "`log_probability`: log sigma(r+ - r-), as published. `probability`: sigma(r+ - r-), which a reader "
            "that is sure of itself does not turn into a reward for saying nothing."
        },
    )
    max_context_tokens: int | None = field(
        default=None, metadata={"help": "Longest prompt of the summariser; pairs that do not fit are left out."}
    )
    length_target: int | None = field(
        default=None, metadata={"help": "Words that a summary may have for free; more are penalised."}
    )
    length_penalty: float = field(
        default=0.1, metadata={"help": "Reward lost for each `length_target` words too many."}
    )

    # The reward model
    reward_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Frozen encoder (`offline`, an id, a folder) whose features of summary and response the reward model "
            "reads, in place of a `reward_model` that is trained whole."
        },
    )
    reward_feature_noise: float = field(
        default=0.0, metadata={"help": "Noise on these features in training, in their standard deviations."}
    )
    reward_learning_rate: float = field(default=9e-6, metadata={"help": "Learning rate of the reward model."})
    reward_weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the reward model."})
    reward_updates_per_step: int = field(
        default=1, metadata={"help": "Updates of the reward model for each batch of summaries."}
    )
    reward_max_length: int | None = field(
        default=1024,
        metadata={"help": "Longest sequence of the reward model, in tokens; the user's text is cut first."},
    )
    reward_batch_size: int = field(default=64, metadata={"help": "Pairs that the reward model scores at once."})
    warmup_reward_steps: int = field(
        default=60, metadata={"help": "Updates of the reward model on texts drawn from the context, before all else."}
    )
    warmup_reward_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate at their beginning, if another than `reward_learning_rate`: it falls linearly to that."
        },
    )
    warmup_batch_size: int = field(default=32, metadata={"help": "Contexts in each of these updates."})
    anchor_share: float = field(
        default=0.5,
        metadata={"help": "Texts drawn from the context in each later update, as a share of the fresh summaries."},
    )
    replay_share: float = field(
        default=0.5, metadata={"help": "Recent summaries in each update, as a share of the fresh ones."}
    )
    replay_size: int = field(default=512, metadata={"help": "Recent summaries that are kept for this."})
    frozen_reader_weight: float = field(
        default=0.0,
        metadata={"help": "Share of the summariser's reward that the reward model as it was after warm-up gives."},
    )
    freeze_summarizer_after: int | None = field(
        default=None, metadata={"help": "Step after which the summariser stays as it is and the reward model goes on."}
    )
    topics: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Topic -> words that name it, as JSON. Warm-up texts then state which topic of the shown context "
            "was preferred; without topics they are sentences of it."
        },
    )

    # Evaluation
    max_eval_pairs_per_user: int = field(default=8, metadata={"help": "Targets of each validation user."})
    keep_best: bool = field(
        default=True,
        metadata={"help": "Save the pair of models that was best on validation users (accuracy, then log loss)."},
    )

    def __post_init__(self):
        import torch

        if self.bf16 is None:
            self.bf16 = bool(torch.cuda.is_available()) and not self.fp16
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if self.num_generations_eval is None:
            # Validation is this trainer's own: one greedy summary a user.
            self.num_generations_eval = 1
        super().__post_init__()
        if self.method not in METHODS:
            raise ConfigError(f"`method` is {self.method!r}; use {', '.join(METHODS)}.")
        if self.reward_form not in ("log_probability", "probability"):
            raise ConfigError(f"`reward_form` is {self.reward_form!r}; use log_probability or probability.")
        if self.fsdp or self.deepspeed:
            name = "fsdp" if self.fsdp else "deepspeed"
            raise ConfigError(
                f"`{name}` is set, but two models are trained at once, and only one of them could be sharded. Use DDP "
                "(`accelerate launch --num_processes N`), with LoRA or a quantised base where memory is short."
            )
        for name, least in (("n_context", 1), ("min_context", 1), ("n_targets", 1), ("warmup_reward_steps", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; it must be at least {least}.")
        if self.min_context > self.n_context:
            raise ConfigError(f"`min_context` ({self.min_context}) is above `n_context` ({self.n_context}).")
        for name in ("anchor_share", "replay_share", "frozen_reader_weight", "length_penalty"):
            if getattr(self, name) < 0 or (name == "frozen_reader_weight" and getattr(self, name) > 1):
                raise ConfigError(f"`{name}` is {getattr(self, name)}; a share is expected.")
        if self.save_strategy == "steps":
            self.check_boundary(self.save_steps, "save_steps")
        build_config(user_model_class(self.method).config_class, self.user_model_kwargs, self.method)

    @property
    def micro_steps_per_generation(self) -> int:
        """Micro-steps from one generation to the next."""
        return self.steps_per_generation * self.num_iterations

    def check_boundary(self, step: float, name: str) -> None:
        """Refuses a checkpoint between two generations: what was generated is not saved, so it could not be exact."""
        if step >= 1 and int(step) * self.gradient_accumulation_steps % self.micro_steps_per_generation:
            raise ConfigError(
                f"`{name}` ({int(step)}) does not fall on a boundary between generations (every "
                f"{self.micro_steps_per_generation} micro-steps, {self.gradient_accumulation_steps} a step), so that "
                "resuming could not be exact. Use a multiple."
            )
