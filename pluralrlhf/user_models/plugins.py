"""Methods that live outside of the package: files or modules which register theirs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path

from ..errors import ConfigError

VARIABLE = "PLURALRLHF_PLUGINS"
_loaded: set[str] = set()


def name_plugins(names: list[str]) -> None:
    """Adds files or modules to `PLURALRLHF_PLUGINS`, where this process and those that it starts look for methods."""
    known = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    new = [os.path.abspath(name) if _is_file(name) else name for name in names]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*known, *new]))


def load_plugins() -> None:
    """Imports what `PLURALRLHF_PLUGINS` names, each once: `.py` files or modules, split as in `PATH`.

    Raises:
        ConfigError: One of them does not exist or cannot be imported.
    """
    for name in os.environ.get(VARIABLE, "").split(os.pathsep):
        if name and name not in _loaded:
            _loaded.add(name)
            try:
                _load(name)
            except BaseException:
                _loaded.discard(name)
                raise


def _is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _load(name: str) -> None:
    try:
        if not _is_file(name):
            importlib.import_module(name)
            return
        if not Path(name).is_file():
            raise ConfigError(f"`--plugin` {name}: there is no such file. Check the path.")
        module_name = f"pluralrlhf_plugin_{Path(name).stem}"
        spec = importlib.util.spec_from_file_location(module_name, name)
        if spec is None or spec.loader is None:
            raise ConfigError(f"`--plugin` {name} is no Python file; give one that ends in `.py`, or a module.")
        # Where dataclasses, and whoever asks for a class's source, look a module up.
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else own[-1] if own else None
        where = f", line {line}" if line else ""
        raise ConfigError(
            f"`--plugin` {name}{where}: {type(error).__name__}: {error}. It must be importable, and register its method "
            "with `@pluralrlhf.register_user_model`."
        ) from error
