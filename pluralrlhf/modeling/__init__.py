"""The reward model and its registration with transformers' `Auto*` classes."""

from transformers import AutoConfig, AutoModelForSequenceClassification

from .configuration import PersonalizedRewardModelConfig
from .model import PersonalizedRewardModel, RewardOutput

AutoConfig.register(PersonalizedRewardModelConfig.model_type, PersonalizedRewardModelConfig)
AutoModelForSequenceClassification.register(PersonalizedRewardModelConfig, PersonalizedRewardModel)

__all__ = ["PersonalizedRewardModel", "PersonalizedRewardModelConfig", "RewardOutput"]
