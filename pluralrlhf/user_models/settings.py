"""A method's settings: its dataclass from `user_model_kwargs`, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError


def build_config(config_class: type, settings: dict[str, Any] | None, method: str):
    """Builds a method's dataclass from `user_model_kwargs`.

    Raises:
        ConfigError: No settings by name, a key that the method does not have, or a value of another type.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(
            f"`user_model_kwargs` is {settings!r:.60}, not settings by name. Write JSON, such as '{{\"hidden\": 64}}', or "
            "lines of `name: value` under `user_model_kwargs:` in YAML."
        )
    settings = dict(settings or {})
    names = [field.name for field in dataclasses.fields(config_class)]
    unknown = sorted(set(settings) - set(names))
    if unknown:
        raise ConfigError(
            f"`user_model_kwargs` of `{method}` has unknown keys {unknown}. Known: {', '.join(names) or 'none'}."
        )
    hints = typing.get_type_hints(config_class)
    for name, value in settings.items():
        kinds = _kinds(hints[name])
        # A truth value is an integer to Python, and an integer is a number to everybody.
        if kinds and not (type(value) in kinds or (float in kinds and type(value) is int)):
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            raise ConfigError(f"`user_model_kwargs` of `{method}`: `{name}` is {value!r:.60}; give {wanted}.")
    return config_class(**settings)


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def _kinds(hint: Any) -> tuple[type, ...]:
    """The simple types that an annotation allows; none where it allows others, which the method checks itself."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return tuple(dict.fromkeys(map(type, parts)))
    if origin in (typing.Union, types.UnionType):
        kinds = [_kinds(part) for part in parts]
        return tuple(itertools.chain(*kinds)) if all(kinds) else ()
    return (hint,) if hint in _KINDS else ()


def check_sizes(config: Any, method: str, **least: int) -> None:
    """Raises a `ConfigError` where a setting is below its least value, or not finite."""
    for name, value in least.items():
        if not value <= getattr(config, name) < math.inf:
            raise ConfigError(
                f"`{name}` of `{method}` is {getattr(config, name)}; it must be a finite number of at least {value}."
            )
