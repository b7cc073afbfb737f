"""Simulated users, worlds, and the conversations between them and a policy."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from ..errors import ConfigError

# world -> (module, class)
WORLDS = {"exercise": ("exercise", "ExerciseWorld"), "tutor": ("tutor", "TutorWorld")}


def make_world(name: str, **settings: Any):
    """A world by name.

    Raises:
        ConfigError: For an unknown world or a setting that it does not have.
    """
    if name not in WORLDS:
        raise ConfigError(f"`world` is {name!r}; use one of {', '.join(WORLDS)}.")
    module, class_name = WORLDS[name]
    world = getattr(importlib.import_module(f".{module}", __name__), class_name)
    known = {f.name for f in dataclasses.fields(world) if f.init}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"The world {name!r} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    return world(**settings)
