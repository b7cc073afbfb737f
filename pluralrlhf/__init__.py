"""Personalised RLHF: reward models and policies that learn what each user wants.

Importing the package registers the reward model with transformers' `Auto*` classes; the rest is imported on first use.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING

_HOME = {
    "Interview": ".evaluation.interview",
    "MultiTurnGRPOConfig": ".trainers.multi_turn_config",
    "MultiTurnGRPOTrainer": ".trainers.multi_turn_trainer",
    "PersonalizedReward": ".rewards.personalized",
    "PersonalizedRewardConfig": ".trainers.reward_config",
    "PersonalizedRewardModel": ".modeling",
    "PersonalizedRewardModelConfig": ".modeling",
    "PersonalizedRewardTrainer": ".trainers.reward_trainer",
    "SummarizerConfig": ".trainers.summarizer_config",
    "SummarizerTrainer": ".trainers.summarizer_trainer",
    "USER_MODELS": ".user_models",
    "UserHistory": ".data.history",
    "UserState": ".user_models",
    "check_user_model": ".user_models",
    "load_encoder": ".features.encoder_loading",
    "load_pairs": ".data",
    "register_user_model": ".user_models",
}

__all__ = [
    "USER_MODELS",
    "Interview",
    "MultiTurnGRPOConfig",
    "MultiTurnGRPOTrainer",
    "PersonalizedReward",
    "PersonalizedRewardConfig",
    "PersonalizedRewardModel",
    "PersonalizedRewardModelConfig",
    "PersonalizedRewardTrainer",
    "SummarizerConfig",
    "SummarizerTrainer",
    "UserHistory",
    "UserState",
    "check_user_model",
    "load_encoder",
    "load_pairs",
    "register_user_model",
]

if TYPE_CHECKING:
    from .data import load_pairs
    from .data.history import UserHistory
    from .evaluation.interview import Interview
    from .features.encoder_loading import load_encoder
    from .modeling import PersonalizedRewardModel, PersonalizedRewardModelConfig
    from .rewards.personalized import PersonalizedReward
    from .trainers.multi_turn_config import MultiTurnGRPOConfig
    from .trainers.multi_turn_trainer import MultiTurnGRPOTrainer
    from .trainers.reward_config import PersonalizedRewardConfig
    from .trainers.reward_trainer import PersonalizedRewardTrainer
    from .trainers.summarizer_config import SummarizerConfig
    from .trainers.summarizer_trainer import SummarizerTrainer
    from .user_models import USER_MODELS, UserState, check_user_model, register_user_model


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _not_the_optional_kernel(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward from kernels-community" not in str(record.msg)


# Imported with PEFT on CPUs of some kinds, bitsandbytes asks for a package that only makes its 4-bit products faster.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_not_the_optional_kernel)

# `AutoModelForSequenceClassification` must know the model once the package is imported. The command line imports the
# model where it uses it, so that `pluralrlhf -h` does not wait for torch.
if os.path.basename((getattr(sys, "argv", None) or [""])[0]) != "pluralrlhf":
    importlib.import_module(".modeling", __name__)
