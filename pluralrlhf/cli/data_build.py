"""`pluralrlhf data build SOURCE --out DIR`: the flags are the fields of the source's dataclass and of the builder."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from ..data.sources import SOURCES, Source, source_class
from ..data.splits import MIXED_ITEMS, UNSEEN_ITEMS_OF_VALIDATION_USERS, USER_WITHOUT_A_PAIR, SplitConfig
from ..errors import ConfigError

_PROG = "pluralrlhf data build"
_MANY_CLOSE = 0.15  # of the pairs; of normal or uniform ratings 0.06 are close
_MEANINGS = {
    MIXED_ITEMS: "one item of the pair is kept from training and one is not; `--test_items 0` keeps none",
    USER_WITHOUT_A_PAIR: "users whose ratings make no pair, being equal, too close or of different prompts; the dataset "
    "does not have them",
    UNSEEN_ITEMS_OF_VALIDATION_USERS: "validation is on items that training sees",
}
# Defaults of the numbers are `SplitConfig`'s.
_BUILDER_HELP = {
    "seed": "seed of the splits",
    "validation_users": "share of users in `validation`",
    "test_users": "share of users never seen in training",
    "test_items": "share of items never seen in training; 0 keeps all items seen",
    "test_pairs": "share of the training users' pairs held out",
    "n_user_folds": "divide users into this many folds; fold --user_fold is the test users, in place of --test_users",
    "user_fold": "which fold of users is the test users",
    "n_item_folds": "divide items into this many folds; fold --item_fold is the unseen items, in place of --test_items",
    "item_fold": "which fold of items is the unseen items",
}


class _Parser(argparse.ArgumentParser):
    """Reports mistakes as `ConfigError`, with close matches for a misspelled flag."""

    def error(self, message: str) -> typing.NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = message.partition("unrecognized arguments: ")[2].split()
        close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=2) if unknown else []
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"{message}.{hint} See `{self.prog} -h`")


def main(argv: list[str], prog: str = _PROG) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(prog))
        return 0 if argv else 2
    name, *rest = argv
    if name.startswith("-"):
        raise ConfigError(f"the first argument is the source, not {name}: `{prog} SOURCE --out DIR ...`")
    cls = source_class(name)
    parser = build_parser(cls, f"{prog} {name}")
    values = vars(parser.parse_args(rest))
    if config := values.pop("config"):
        # The file's settings are read as flags, by the same rules, and become the defaults of the real ones.
        parser.set_defaults(**vars(parser.parse_args(_config_flags(config, parser))))
        values = vars(parser.parse_args(rest))
        values.pop("config")
    if not values["out"]:
        raise ConfigError(f"`--out` is missing: name the folder to make. See `{prog} {name} -h`")
    from ..data.destination import check_destination
    from ..data.writer import build_dataset

    builder = {key: values.pop(key) for key in _builder_keys()}
    check_destination(builder["out"], builder["overwrite"])
    source = cls(seed=builder["seed"], **values) if _takes_seed(cls) else cls(**values)
    out = build_dataset(source, builder.pop("out"), **builder)
    _print_summary(out)
    return 0


def build_parser(cls: type[Source], prog: str) -> argparse.ArgumentParser:
    """The parser of one source: its dataclass's fields, then the builder's settings."""
    example = "example:\n" + "".join(f"  {line}\n" for line in cls.example_setup.splitlines())
    example += f"  {prog} {cls.example}{' ' if cls.example else ''}--out data_{cls.name}"
    parser = _Parser(
        prog=prog,
        description=f"{cls.summary}",
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", metavar="DIR", help="the dataset folder to make")
    parser.add_argument("--config", metavar="FILE", help="YAML with any of these settings; flags override it")
    own = parser.add_argument_group(f"settings of {cls.name}")
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if f.init and f.name != "seed":
            add_field(own, f, hints[f.name])
    splits = parser.add_argument_group("splits (by hash: stable under re-ordering and appending)")
    split_hints = typing.get_type_hints(SplitConfig)
    for f in dataclasses.fields(SplitConfig):
        add_field(splits, f, split_hints[f.name], help=_BUILDER_HELP[f.name])
    rest = parser.add_argument_group("rows")
    rest.add_argument(
        "--min_pairs_per_user",
        type=int,
        metavar="N",
        help="leave out users with fewer pairs, and count them "
        + ("(default: a user with one pair is an error)" if cls.min_pairs_per_user is None else "")
        + (f"(default: {cls.min_pairs_per_user})" if cls.min_pairs_per_user else ""),
    )
    rest.add_argument(
        "--skip_invalid",
        action="store_true",
        help="leave invalid rows out, count them by reason and write them to DIR/skipped.jsonl",
    )
    rest.add_argument("--overwrite", action="store_true", help="replace DIR if it is a dataset folder")
    rest.add_argument("--no_progress", dest="progress", action="store_false", help="print no progress")
    return parser


def add_field(parser: Any, f: dataclasses.Field, hint: Any, help: str | None = None) -> None:
    """Adds one dataclass field as a flag: numbers, texts, switches, lists and `key=value` mappings."""
    default = None if f.default is dataclasses.MISSING else f.default
    if f.default_factory is not dataclasses.MISSING:
        default = f.default_factory()
    text = help or f.metadata.get("help", "")
    shown = f" (default: {_shown(default)})" if default not in (None, "", False, (), [], {}) else ""
    settings: dict[str, Any] = {"default": default, "help": (text + shown).replace("%", "%%")}
    hint = _without_none(hint)
    if hint is bool:
        parser.add_argument(
            f"--{f.name}", action=argparse.BooleanOptionalAction if default else "store_true", **settings
        )
        return
    settings["metavar"] = f.metadata.get("metavar") or {int: "N", float: "X"}.get(hint, "TEXT")
    origin = get_origin(hint) or hint
    if origin is Literal:
        settings["choices"] = get_args(hint)
        settings["type"] = type(get_args(hint)[0])
        settings["metavar"] = "|".join(map(str, get_args(hint)))
    elif origin is dict:
        settings |= {"nargs": "+", "action": _Mapping, "metavar": f.metadata.get("metavar", "KEY=VALUE")}
    elif origin in (list, tuple, Sequence):
        inner = next((a for a in get_args(hint) if a is not Ellipsis), str)
        settings |= {"nargs": "+", "type": inner}
    else:
        settings["type"] = hint
    parser.add_argument(f"--{f.name}", **settings)


class _Mapping(argparse.Action):
    """`--map user_id=annotator prompt=question` as a dictionary; a flag given twice adds to it.

    Only `--map` takes an empty value, which says that a column is not used.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        given = getattr(namespace, self.dest)
        mapping = {} if given is self.default else dict(given)
        for value in values:
            key, equals, item = value.partition("=")
            if not equals or not key or not (item or self.dest == "map"):
                raise ConfigError(f"`{option_string} {value[:40]}`: write KEY=VALUE, such as user_id=annotator")
            if key in mapping:
                raise ConfigError(
                    f"`{option_string}` gives {key[:40]!r} twice: write {key[:40]}=ONE,OTHER for several values"
                )
            mapping[key] = item
        setattr(namespace, self.dest, mapping)


def _config_flags(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML file's settings as command line flags; unknown ones are errors."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"`--config {path}` cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"`--config {path}` is not valid YAML") from None
    if not isinstance(values, dict):
        raise ConfigError(f"`--config {path}` must hold settings as `name: value` lines")
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    flags: list[str] = []
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=2)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Settings: {', '.join(sorted(known))}"
            raise ConfigError(f"`--config {path}`: unknown setting {str(key)[:40]!r}. {hint}")
        action = known[key]
        if value is None:
            continue
        if isinstance(value, bool) and action.nargs == 0:
            # A switch's flag is given if the file's value differs from what leaving it out means.
            flags += [action.option_strings[-1 if value is False else 0]] if value != action.default else []
        elif isinstance(value, dict):
            flags += [
                action.option_strings[0],
                *(f"{name}={'' if item is None else item}" for name, item in value.items()),
            ]
        elif isinstance(value, list):
            flags += [action.option_strings[0], *map(str, value)]
        else:
            flags.append(f"{action.option_strings[0]}={value}")
    return flags


def _builder_keys() -> list[str]:
    names = [f.name for f in dataclasses.fields(SplitConfig)]
    return ["out", "skip_invalid", "min_pairs_per_user", "overwrite", "progress", *names]


def _takes_seed(cls: type[Source]) -> bool:
    return any(f.name == "seed" and f.init for f in dataclasses.fields(cls))


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (typing.Union, types.UnionType):
        return next(a for a in get_args(hint) if a is not type(None))
    return hint


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _overview(prog: str) -> str:
    return (
        f"usage: {prog} SOURCE --out DIR [settings]\n\n"
        "Builds a dataset folder from a source: rows checked, split by hash of users and items, written as parquet\n"
        "that `datasets.load_dataset` reads.\n\n"
        f"sources: {', '.join(SOURCES)}   (`pluralrlhf data list` describes them)\n"
        f"settings of a source: {prog} SOURCE -h\n\n"
        f"example:\n  {prog} pets --out data_pets"
    )


def _one_item(out: Any) -> bool:
    """Whether all pairs, of every split, are about one item."""
    import pyarrow.compute as pc

    from ..data import load_pairs

    found: set[str] = set()
    for pairs in load_pairs(out).values():
        items = pc.list_flatten(pairs.with_format("arrow")["item_ids"][:])
        found.update(pc.unique(items).slice(0, 2).to_pylist())
    return len(found) == 1


def _print_summary(out: Any) -> None:
    from ..data import read_build

    build = read_build(out)
    counts = build["counts"]
    print(f"{out}: {counts['pairs']:,} pairs of {counts['users']:,} users")
    for split, count in counts["splits"].items():
        print(f"  {split:<32}{count['pairs']:>12,} pairs{count['users']:>10,} users")
    for title, lost in (("left out", build["dropped"]), ("invalid, skipped", build["skipped_invalid"])):
        if any(lost.values()):
            print(f"  {title}: " + ", ".join(f"{reason} {n:,}" for reason, n in lost.items() if n))
    for reason, meaning in _MEANINGS.items():
        if build["dropped"].get(reason):
            print(f"  {reason}: {meaning}")
    if build["skipped_invalid"]:
        print(f"  the skipped rows are in {out / 'skipped.jsonl'}")
    for note in _notes(build, out):
        print(f"  note: {note}")
    print(f"Look at it: pluralrlhf data inspect {out}")


def _notes(build: dict[str, Any], out: Any) -> Iterator[str]:
    """What of a built dataset may spoil what is made of it, and what would help."""
    from ..data.schema import FEW_PAIRS, SPLITS, VALIDATION
    from ..evaluation.tables import counted

    counts, given = build["counts"], build["parameters"]
    splits = counts["splits"]
    if changed := counts["stripped_ids"]:
        yield f"white space around {changed:,} user and item ids was taken off"
    if changed := build.get("changed_profiles"):
        yield (
            f"the profile of {counted(changed, 'user')} is another one in later rows: the first is kept. Map it to a column "
            "that says one thing of a user"
        )
    if missing := build.get("missing_files"):
        shown = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
        yield f"the local copy lacks {counted(len(missing), 'file')} of the origin's ({shown}), whose pairs are not here"
    if numbers := build.get("choice_numbers"):
        meant = ", ".join(f"{number} as {response}" for number, response in numbers.items())
        words = list(numbers)
        yield f"choices were read as {meant}: if it is the other way round, --choice_values a={words[1]} b={words[0]}"
    if lengths := build.get("raters_by_position"):
        yield (
            "users are places in a list (rater_1, rater_2, ...): they mean something only if a place is the same person in "
            "every row. Where the table says who they are, map `user_id` to it"
        )
        if len(lengths) > 1:
            yield (
                f"the lists hold {lengths[0]} to {lengths[-1]} judgments: a place in them is hardly one person, and the users "
                "of this dataset are then mixtures of people"
            )
    if (close := counts.get("close_ratings", 0.0)) > _MANY_CLOSE:
        yield (
            f"{close:.0%} of the pairs are of ratings that differ by less than a tenth of their user's standard deviation: if "
            "such a difference means nothing, set --min_gap to the least that does"
        )
    folds = given.get("n_user_folds") or 0
    more_users = "more users" if folds == 2 else "take fewer --n_user_folds" if folds else "raise --test_users"
    if (judges := splits.get(VALIDATION, {}).get("users", 0)) in range(1, 10):
        yield f"only {counted(judges, 'validation user')}, on whom every choice is made: raise --validation_users"
    if (tested := max(splits.get(split, {}).get("users", 0) for split in SPLITS[4:6])) in range(1, 20):
        yield f"only {counted(tested, 'test user')}: a gain has to be large to show; a suite with `user_folds` tests all in turn"
    if (left := splits.get(SPLITS[5], {}).get("pairs", 0)) in range(1, FEW_PAIRS):
        items = "take fewer --n_item_folds" if given.get("n_item_folds") else "raise --test_items"
        yield f"only {counted(left, 'pair')} in {SPLITS[5]}, the headline: {more_users} or {items}"
    empty = [split for split in (VALIDATION, SPLITS[4], SPLITS[5]) if split not in splits]
    if SPLITS[5] in empty and given.get("items") and _one_item(out):
        yield (
            f"all pairs are of one item (--items {given['items']}), and pairs of one item are never each other's context: a "
            "user could not be told from another. Build it again with --items responses, or another column"
        )
    elif empty:
        asked = [s for s, share in ((VALIDATION, "validation_users"), (SPLITS[4], "test_users"), (SPLITS[5], "test_users"))
                 if s in empty and given.get(share) == 0]  # fmt: skip
        asked += [SPLITS[5]] if given.get("test_items") == 0 and SPLITS[5] in empty else []
        if empty := [split for split in empty if split not in asked]:
            yield f"nothing fell in {', '.join(empty)}: more users or items, larger shares or another --seed help"


if __name__ == "__main__":
    import sys

    from . import run_module

    sys.exit(run_module("data_build", sys.argv[1:], _PROG))
