"""Command line: one thin module a command, imported only when it runs, so that `-h` is instant."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
import warnings

from ..errors import ConfigError, PluralRLHFError

# command -> subcommand -> (module, what it does); a module has `main(argv, prog) -> int | None`.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "data": {
        "list": ("data_list", "the data sources and what each gives"),
        "build": ("data_build", "build a dataset folder from a source"),
        "inspect": ("data_inspect", "users, pairs, disagreement, leaks and examples of a dataset folder"),
        "cache": ("data_cache", "what the feature cache holds: list, verify, prune, clear"),
    },
    "train": {
        "policy": ("train_policy", "train a policy on conversations with simulated users (CURIO)"),
        "reward": ("train_reward", "train a personalised reward model"),
        "summarizer": ("train_summarizer", "train a summariser of users and its reader together (PLUS)"),
    },
    "eval": {
        "diagnostics": (
            "eval_diagnostics",
            "beyond accuracy: vote shares, groups, agreed pairs, collapse, wrong labels",
        ),
        "elicitation": ("eval_elicitation", "interviews replayed on recorded choices: which questions teach most"),
        "policy": ("eval_policy", "evaluate a conversational policy on held-out simulated users"),
        "reward": ("eval_reward", "evaluate reward models on held-out users, with controls and intervals"),
        "summarizer": ("eval_summarizer", "what summaries say: accuracy, faithfulness, controls, copying"),
        "transfer": ("eval_transfer", "do summaries serve another model: responses with and without, and a judge"),
        "suite": ("eval_suite", "build, train and evaluate everything that a suite YAML names"),
    },
    "user": {
        "elicit": ("user_elicit", "an interview in the terminal: which of two responses, until the model is sure"),
        "summarize": ("user_summarize", "a history in, a summary out, with what it came from"),
        "score": ("user_score", "rewards of given responses under a summary"),
        "diff": ("user_diff", "how rewards move when a summary is edited"),
        "export": ("user_export", "a user's summary for other programs"),
        "forget": ("user_forget", "remove a user's states and history"),
    },
    "score": {
        "": ("score", "rewards of many candidates for many users, to parquet"),
    },
    "report": {
        "": ("report", "tables, figures and one static page from evaluation results"),
    },
}


def _usage(command: str | None = None) -> str:
    lines = ["usage: pluralrlhf [--plugin FILE] COMMAND ...  (each takes -h; FILE registers a method of your own)", ""]
    for name, subcommands in COMMANDS.items():
        if command in (None, name):
            lines += [f"  {name + ' ' + sub:<18} {text}" for sub, (_, text) in subcommands.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `pluralrlhf`; returns the exit status (2 for a mistake of the caller's, 130 for Ctrl-C)."""
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141


def _dispatch(argv: list[str] | None) -> int:
    plugins, argv = _plugins(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("pluralrlhf"))
        return 0
    command, *rest = argv
    subcommands = COMMANDS.get(command)
    if subcommands is None:
        print(f"error: unknown command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    if "" in subcommands:
        module, prog = subcommands[""][0], f"pluralrlhf {command}"
    elif rest and rest[0] in subcommands:
        module, prog = subcommands[rest[0]][0], f"pluralrlhf {command} {rest[0]}"
        rest = rest[1:]
    else:
        asked = bool(rest) and rest[0] in ("-h", "--help")
        found = "" if asked or not rest else f"error: unknown command {command + ' ' + rest[0]!r}\n\n"
        print(found + _usage(command), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return run_module(module, [*rest, *plugins], prog)


def command_of(prog: str, argv: list[str] | None) -> str:
    """The command that runs, as it can be typed again."""
    return shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)]) + with_plugins()


_named: list[str] = []  # what `--plugin` named for the command that runs


def with_plugins() -> str:
    """What a command that goes on from this one's results has to end with: ` --plugin FILE`, or nothing."""
    return "".join(f" --plugin {shlex.quote(name)}" for name in _named)


def _plugins(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words of `argv` that name plugins, and the others."""
    named, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--plugin":
            named += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith("--plugin="):
            named += word.split("=", 1)
        else:
            rest.append(word)
    return named, rest


def _import_plugins(argv: list[str]) -> list[str]:
    """The words that are left of `argv` once the plugins that it names are imported."""
    words, rest = _plugins(argv)
    _named[:] = words[1::2]
    if len(words) % 2:
        raise ConfigError("`--plugin` is the last word; give the file that registers a method after it.")
    if words:
        from ..user_models import load_plugins
        from ..user_models.plugins import name_plugins

        name_plugins(_named)
        load_plugins()
    return rest


def _nobody_reads() -> bool:
    """Whether standard output was closed by who read it, such as `head`; if so, nothing more is written to it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run_module(module: str, argv: list[str], prog: str) -> int:
    """Runs one command, turning the errors that are the caller's to fix into one line and exit status 2."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Advice for other libraries' maintainers, in the way of the one line that a mistake should print.
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    command = None
    try:
        argv = _import_plugins(argv)
        command = importlib.import_module(f".{module}", __package__)
        status = command.main(argv, prog) or 0
        sys.stdout.flush()
        return status
    except PluralRLHFError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141
    except OSError as error:
        if error.filename is None:
            raise
        reason = (error.strerror or type(error).__name__).lower()
        print(
            f"error: {error.filename}: {reason}. Name another file or folder, or change its rights.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted: {getattr(command, 'INTERRUPTED', 'the same command begins anew')}", file=sys.stderr)
        return 130
