"""TRL's parser with errors for the reader: one line, exit status 2."""

from __future__ import annotations

import difflib
import sys
from typing import Any

from ..errors import ConfigError


def parse(parser, argv: list[str] | None):
    """Parses command line and `--config` YAML with a `TrlParser`; unknown keys are errors.

    Raises:
        ConfigError: A file that is missing or not YAML, an unknown key, a value of the wrong type.
    """
    import yaml

    parser.description = (
        f"{parser.description} `--config FILE` reads the settings below from a YAML file; what is given on the command "
        "line wins."
    )
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            action.help = "A certain `checkpoint-...` folder to go on from; `--resume true` finds the last one itself."
    # One line for a value of the wrong type, rather than two hundred of usage.
    parser.error = lambda message: (_ for _ in ()).throw(ConfigError(f"{message}. See `-h`."))
    try:
        return parser.parse_args_and_config(args=sys.argv[1:] if argv is None else argv)
    except FileNotFoundError as error:
        raise ConfigError(f"`--config`: there is no file {error.filename!r}. Check the path.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"`--config` is not valid YAML: {str(error).splitlines()[0]}.") from None
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(_explained(parser, str(error))) from None


def init_kwargs(model_args, frozen: bool = False) -> dict[str, Any] | None:
    """What `ModelConfig` says of loading a model; of a frozen encoder only what is not the default, if anything."""
    dtype = model_args.dtype if model_args.dtype not in (None, "auto") else "float32"
    found = {"revision": model_args.model_revision, "dtype": dtype}
    if frozen:
        found = {name: value for name, value in found.items() if value not in ("main", "float32")}
    if model_args.attn_implementation:
        found["attn_implementation"] = model_args.attn_implementation
    return found or None


def _explained(parser, message: str) -> str:
    """The parser's message, and for a name that it does not know a close one that it does."""
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    unknown = [word.strip("'\",[]").lstrip("-") for word in message.split() if word.strip("'\",[]").startswith("--")]
    if "Expecting property name" in message:
        return f"a setting that takes JSON: {message}. Put names in double quotes: `--user_model_kwargs '{{\"dim\": 8}}'`."
    if not unknown or not ("nknown arguments" in message or "not used" in message):
        return f"{message} See `-h` for the names."
    hints = [close[0] for name in unknown if (close := difflib.get_close_matches(name, known, n=1))]
    hint = f" Did you mean {', '.join(f'`{name}`' for name in hints)}?" if hints else ""
    return f"unknown setting {', '.join(f'`{name}`' for name in unknown)}.{hint} See `-h` for the names."
