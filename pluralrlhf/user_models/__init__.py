"""User models: one file a method. To add one: its file, one line below, one recipe, one row of the README's table.

A method outside of the package has no line here: its class is registered with `register_user_model`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import Any

from ..errors import ConfigError
from .base import PairOutput, UserModel, UserState, bradley_terry_loss
from .contract import check_user_model
from .plugins import load_plugins
from .settings import build_config

# name -> (module, class), imported when used, or a class that was registered.
USER_MODELS: dict[str, tuple[str, str] | type[UserModel]] = {
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
        raise ConfigError(
            f"`user_model` is {name!r}, which is not known.{hint} Known: {', '.join(USER_MODELS)}. One outside of the "
            "package is known once its file is imported, or named by `--plugin FILE`."
        )
    if registered(name):
        return USER_MODELS[name]
    module, attribute = USER_MODELS[name]
    return getattr(importlib.import_module(f".{module}", __package__), attribute)


def register_user_model(cls: type[UserModel]) -> type[UserModel]:
    """Makes a method from outside of the package known by its `name`: a decorator of its class.

    Trainer, evaluation and `from_pretrained` find it once the file is imported; the command line imports what `--plugin`
    or the environment's `PLURALRLHF_PLUGINS` names. Registering a class again, as a notebook does, replaces it.

    Args:
        cls: A `UserModel` with a `name` and a `config_class` (a dataclass) of its own, `encode` and `score`.

    Raises:
        ConfigError: No such class, or a name that another method has.

    Example:
        >>> @pluralrlhf.register_user_model
        ... class Centroid(UserModel):
        ...     name, config_class = "centroid", CentroidConfig
    """
    if not (isinstance(cls, type) and issubclass(cls, UserModel)):
        raise ConfigError(f"`register_user_model` was given {cls!r:.60}; give a subclass of `UserModel`.")
    name, config_class = vars(cls).get("name"), getattr(cls, "config_class", None)
    if not (isinstance(name, str) and name) or not dataclasses.is_dataclass(config_class):
        raise ConfigError(
            f"{cls.__qualname__} has `name` {name!r} and `config_class` {config_class!r}; give it a name of its own, and "
            "the dataclass of its settings."
        )
    missing = [
        method
        for method in ("encode", "score")
        if cls.route == "head" and getattr(cls, method) is getattr(UserModel, method)
    ]
    if missing:
        raise ConfigError(f"{cls.__qualname__} lacks `{'` and `'.join(missing)}`, which every method has.")
    known = USER_MODELS.get(name)
    if known is not None and (isinstance(known, tuple) or known.__qualname__ != cls.__qualname__):
        raise ConfigError(f"`name` of {cls.__qualname__} is {name!r}, which another method has. Choose another.")
    USER_MODELS[name] = cls
    return cls


def registered(name: str) -> bool:
    """Whether a method comes from outside of the package."""
    return isinstance(USER_MODELS.get(name), type)


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
    "check_user_model",
    "load_plugins",
    "register_user_model",
    "registered",
    "user_model_class",
]

load_plugins()  # last: what they import from here is there now
