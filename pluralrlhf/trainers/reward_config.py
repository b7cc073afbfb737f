"""Arguments of `PersonalizedRewardTrainer`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import RewardConfig

from ..data.schema import FEW_PAIRS
from ..errors import ConfigError
from ..user_models import DEFAULT_USER_MODEL, build_config, user_model_class

_ACCURACY, _LOG_LOSS = ("validation_accuracy", True), ("validation_log_loss", False)


@dataclass
class PersonalizedRewardConfig(RewardConfig):
    r"""Arguments of [`PersonalizedRewardTrainer`]: TRL's [`~trl.RewardConfig`] and what a user model needs.

    Parameters whose defaults differ from TRL's: `bf16` and `gradient_checkpointing` are off for frozen features and on
    CPU, memory is pinned only where there is an accelerator, `per_device_eval_batch_size` is 1024 for frozen features;
    `gradient_checkpointing` is also off for user models that cannot be recomputed (`p_ttt`);
    with `load_best_model_at_end` the metric is `validation_accuracy`, the mean over validation users, or
    `validation_log_loss` where there are fewer validation pairs than `data.schema.FEW_PAIRS` (200).
    """

    _VALID_DICT_FIELDS = [*RewardConfig._VALID_DICT_FIELDS, "user_model_kwargs"]

    # The user model
    user_model: str = field(
        default=DEFAULT_USER_MODEL,
        metadata={
            "help": "User model: btl, vpl ... (`pluralrlhf.USER_MODELS`), or one that `--plugin FILE` registers."
        },
    )
    user_model_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of the user model, as JSON; unknown keys are an error."}
    )

    # Features
    encoder: str | None = field(
        default=None,
        metadata={
            "help": "Frozen text encoder whose cached features are the model's input: `offline` (MiniLM of the "
            "`offline` extra), a sentence-transformers or AutoModel id, or a folder."
        },
    )
    encoder_input: str = field(
        default="auto",
        metadata={
            "help": "What a frozen encoder embeds: `response`, `joined`, `concat`, or `auto`: `response` where all "
            "pairs have one prompt, `concat` otherwise."
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={"help": "Pooling of an AutoModel's states: last, mean or cls. Chosen by its kind if unset."},
    )
    feature_cache: str | None = field(default=None, metadata={"help": "Folder of the feature cache."})
    feature_noise: float = field(
        default=0.3,
        metadata={"help": "Standard deviation of noise added to standardised frozen features in training."},
    )

    # Contexts
    n_context: int = field(
        default=32, metadata={"help": "Most pairs of context in training; each step draws 0 to this many."}
    )
    no_context_share: float = field(
        default=0.1, metadata={"help": "Extra share of training targets without any context: the unknown user."}
    )
    eval_n_context: list[int] = field(
        default_factory=lambda: [0, 8], metadata={"help": "Numbers of context pairs at evaluation during training."}
    )
    context_group_size: int = field(
        default=24, metadata={"help": "Targets of one user that share the order of their context in an epoch."}
    )
    pairs_per_user: int | None = field(
        default=None, metadata={"help": "At most so many targets a user and epoch, drawn anew each epoch."}
    )
    max_eval_pairs_per_user: int | None = field(
        default=None, metadata={"help": "At most so many targets a user at evaluation during training."}
    )

    # Speed
    packing: str | None = field(
        default=None,
        metadata={
            "help": "`shared_prefix` computes what texts begin with in common once: a user's text, a prompt, in one "
            "packed sequence. Losses and gradients stay the same. For a decoder with full attention."
        },
    )
    packing_tokens: int = field(
        default=4096, metadata={"help": "Tokens in a packed row; a longer text gets a row of its own."}
    )

    context_refresh_steps: int | None = field(
        default=None,
        metadata={
            "help": "For a trained backbone: contexts are features in a table that a copy of the backbone, taken every so "
            "many steps, has filled without gradients; a step then costs what it costs without contexts, whatever "
            "`n_context`. Unset: contexts are encoded in every step, with gradients. The saved model encodes contexts "
            "with its final weights, so that a copy that is never refreshed trains something else than what is used."
        },
    )
    device_features: bool | None = field(
        default=None,
        metadata={
            "help": "For frozen features: keep them in the accelerator's memory. Unset: where they fit into a quarter of "
            "it."
        },
    )

    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={"help": "Pairs in a batch of the evaluation on each device. Unset: 8, or 1024 for frozen features."},
    )

    choose_best_metric: bool = field(
        default=False,
        metadata={
            "help": "Choose `metric_for_best_model` by the number of validation pairs; so where it is not given and "
            "`load_best_model_at_end` is."
        },
    )

    def __post_init__(self):
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = 8 if self.encoder is None else 1024
        self._check()
        frozen_or_cpu = self.encoder is not None or not _has_accelerator()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not frozen_or_cpu
        self.dataloader_pin_memory = self.dataloader_pin_memory and _has_accelerator()
        # Transformers reads it in its own `__post_init__`.
        method = user_model_class(self.user_model)
        self.gradient_checkpointing = self.gradient_checkpointing and self.encoder is None and method.recomputable
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better, self.choose_best_metric = *_ACCURACY, True
        # Several processes without an accelerator form no group unless they are told to use the CPU.
        self.use_cpu = self.use_cpu or (int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _has_accelerator())
        super().__post_init__()
        # Fails here, before anything is loaded, rather than after an hour of embedding.
        settings = build_config(method.config_class, self.user_model_kwargs, self.user_model)
        if getattr(settings, "route", method.route) == "backbone":
            self._check_backbone_route()

    def choose_metric(self, n_pairs: int) -> None:
        """By what the best checkpoint is chosen on so many validation pairs, unless the caller has said it.

        The accuracy of a few pairs is chance: the highest of ten may be that of a model that has learned the training
        users by heart. The log loss of the same pairs tells.
        """
        if self.choose_best_metric:
            self.metric_for_best_model, self.greater_is_better = _LOG_LOSS if n_pairs < FEW_PAIRS else _ACCURACY

    def _check_backbone_route(self) -> None:
        """Raises a `ConfigError` where a setting is for responses whose features do not depend on the user."""
        for name, value in (
            ("encoder", self.encoder),
            ("packing", self.packing),
            ("context_refresh_steps", self.context_refresh_steps),
        ):
            if value is not None:
                raise ConfigError(
                    f"`{name}` is {value!r}, but `{self.user_model}` changes what a backbone computes, so that texts "
                    f"have no features without their user. Leave `{name}` out, and give a backbone to train "
                    "(`model_name_or_path`)."
                )

    def _check(self) -> None:
        if self.encoder_input not in ("auto", "response", "joined", "concat"):
            raise ConfigError(f"`encoder_input` is {self.encoder_input!r}; use auto, response, joined or concat.")
        if self.packing not in (None, "shared_prefix"):
            raise ConfigError(f"`packing` is {self.packing!r}; it must be 'shared_prefix', or unset for none.")
        if self.packing is not None and self.encoder is not None:
            raise ConfigError(
                "`packing: shared_prefix` is for a backbone that is trained; the features of `encoder` are computed "
                "once and cached. Leave `packing` out."
            )
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise ConfigError(
                    f"`{name}` would put the user model, whose arithmetic needs float32, into half precision. Leave it out."
                )
        for name, least in (("n_context", 0), ("context_group_size", 1), ("packing_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; it must be at least {least}.")
        if self.context_refresh_steps is not None and self.encoder is not None:
            raise ConfigError("`context_refresh_steps` is for a backbone that is trained; frozen features stay fresh.")
        for name in ("pairs_per_user", "max_eval_pairs_per_user", "context_refresh_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` is {value}; it must be at least 1, or unset.")
        if isinstance(self.eval_n_context, int):
            self.eval_n_context = [self.eval_n_context]
        sizes = self.eval_n_context
        if not isinstance(sizes, list | tuple) or not sizes or not all(type(k) is int and k >= 0 for k in sizes):
            raise ConfigError(f"`eval_n_context` is {sizes!r}; give whole numbers of at least 0, such as [0, 8].")
        for name in ("learning_rate", "weight_decay", "per_device_train_batch_size", "per_device_eval_batch_size"):
            value, least = getattr(self, name), 1 if name.startswith("per_device") else 0
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"`{name}` is {value}; it must be a finite number of at least {least}.")
        if not 0 <= self.no_context_share < 1:
            raise ConfigError(f"`no_context_share` is {self.no_context_share}; it must be at least 0 and below 1.")
        if self.feature_noise < 0:
            raise ConfigError(f"`feature_noise` is {self.feature_noise}; it must be at least 0.")


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
