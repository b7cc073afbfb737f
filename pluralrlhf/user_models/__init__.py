"""User models: one file a method. To add one: its file, one line below, one recipe, one row of the README's table."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from ..errors import ConfigError
from .base import PairOutput, UserModel, UserState, bradley_terry_loss
from .settings import build_config

# name -> (module, class); imported when used.
USER_MODELS: dict[str, tuple[str, str]] = {
    "btl": ("btl", "BTL"),
    "vpl": ("vpl", "VPL"),
    "bayes_head": ("bayes_head", "BayesHead"),
    "fast_weights": ("fast_weights", "FastWeights"),
    "lore": ("lore", "LoRe"),
    "pal": ("pal", "PAL"),
    "mrm": ("mrm", "MRM"),
    "dpl": ("dpl", "DPL"),
    "neural_process": ("neural_process", "NeuralProcess"),
    "spl": ("spl", "SPL"),
    "ours": ("ours", "Ours"),
    "soft_tokens": ("soft_tokens", "SoftTokens"),
    "p_ttt": ("p_ttt", "PTTT"),
    "plus": ("text.plus", "Plus"),
    "icl": ("text.icl", "ICL"),
    "oracle": ("text.oracle", "Oracle"),
    "plus_untrained": ("text.plus_untrained", "PlusUntrained"),
    "plus_frozen_rm": ("text.plus_frozen_rm", "PlusFrozenRM"),
    "extract": ("text.extract", "Extract"),
    "random_sentence": ("text.random_sentence", "RandomSentence"),
}

# What a model is built with unless another is named. On unseen participants of Polis no method is above it at any number
# of pairs, none with its gain loses as little to wrong labels, and where nothing is to be found it loses nothing
# (evals/results).
DEFAULT_USER_MODEL = "ours"


def user_model_class(name: str) -> type[UserModel]:
    """The class of a user model.

    Raises:
        ConfigError: No method of that name; close ones are suggested.
    """
    if name not in USER_MODELS:
        close = difflib.get_close_matches(name, USER_MODELS, n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        raise ConfigError(f"`user_model` is {name!r}, which is not known.{hint} Known: {', '.join(USER_MODELS)}.")
    module, attribute = USER_MODELS[name]
    return getattr(importlib.import_module(f".{module}", __package__), attribute)


def build_user_model(name: str, feature_dim: int, settings: dict[str, Any] | None = None) -> UserModel:
    """Builds a user model from its name and its settings (`user_model_kwargs`)."""
    cls = user_model_class(name)
    return cls(feature_dim, build_config(cls.config_class, settings, name))


__all__ = [
    "DEFAULT_USER_MODEL",
    "USER_MODELS",
    "PairOutput",
    "UserModel",
    "UserState",
    "bradley_terry_loss",
    "build_config",
    "build_user_model",
    "user_model_class",
]
