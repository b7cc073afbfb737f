"""TRL's parser with errors for the reader: one line, exit status 2."""

from __future__ import annotations

import sys

from ..errors import ConfigError


def parse(parser, argv: list[str] | None):
    """Parses command line and `--config` YAML with a `TrlParser`; unknown keys are errors.

    Raises:
        ConfigError: A file that is missing or not YAML, an unknown key, a value of the wrong type.
    """
    import yaml

    try:
        return parser.parse_args_and_config(args=sys.argv[1:] if argv is None else argv)
    except FileNotFoundError as error:
        raise ConfigError(f"`--config`: there is no file {error.filename!r}. Check the path.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"`--config` is not valid YAML: {str(error).splitlines()[0]}.") from None
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{error} See `-h` for the names.") from None
