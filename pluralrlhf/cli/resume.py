"""Going on from a checkpoint: which one, and only with the data and the settings that it was made with."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ..files import write_json
from ..hub import EARLIER

RECORD = "resume.json"
# What a checkpoint's optimiser, schedule and order of the data hang on. Batch sizes may change with the number of
# processes, and the number of steps to train on.
_SETTINGS = (
    "user_model",
    "user_model_kwargs",
    "method",
    "encoder",
    "encoder_input",
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "n_context",
    "no_context_share",
    "feature_noise",
    "beta",
    "num_generations",
    "reward_form",
    "turn_lambda",
    "data_seed",
    "pairs_per_user",
    "context_group_size",
    "eval_n_context",
    # On how many validation pairs the best checkpoint so far was found; the metric follows from them.
    "max_eval_pairs_per_user",
)


def checkpoint_to_resume(
    args: Any, resume: bool, data: str | None = None, more: dict[str, Any] | None = None
) -> str | None:
    """The checkpoint to go on from, if any. Changes nothing; see `begin_training`.

    Args:
        args: A trainer's arguments; `resume_from_checkpoint` names a checkpoint, or says `true` for the last one.
        resume: Take the last checkpoint of `output_dir`, if there is one.
        data: The dataset folder.
        more: Settings beside `args` that change what is trained.

    Raises:
        ConfigError: The checkpoint that is named does not exist, was made from other data or with other settings, or is
            past where this training ends; or `output_dir` holds the model of another method or of other data.
    """
    from transformers.trainer_utils import get_last_checkpoint

    from ..errors import ConfigError

    out, named = Path(args.output_dir), args.resume_from_checkpoint
    if str(named).lower() in ("true", "false"):
        resume, named = resume or str(named).lower() == "true", None
    if named is not None and not (Path(named) / "trainer_state.json").is_file():
        raise ConfigError(
            f"`resume_from_checkpoint` {named} is no checkpoint of a training. Name a `checkpoint-...` folder, or give "
            "`--resume true` for the last one in `output_dir`."
        )
    checkpoint = named or (get_last_checkpoint(str(out)) if resume and out.is_dir() else None)
    if checkpoint is None:
        _check_finished(out, _facts(args, data, more))
        return None
    if any(_same(checkpoint, out / EARLIER / path.name) for path in _of_another_run(out, checkpoint)):
        raise ConfigError(
            f"`resume_from_checkpoint` {checkpoint} would be replaced by {out / Path(checkpoint).name}, which makes way "
            "for it. Name another `output_dir`."
        )
    folder = Path(checkpoint)
    _check(_read(folder / RECORD) or _read(folder.parent / RECORD), _facts(args, data, more), checkpoint)
    name, reached, end = _progress(args, folder)
    if reached > end:
        raise ConfigError(
            f"`{name}` is {end}, but {checkpoint} is at {reached}, and training does not go back. Give at least "
            f"{reached}, or name an earlier checkpoint with `--resume_from_checkpoint`."
        )
    return checkpoint


def begin_training(
    args: Any, checkpoint: str | None, data: str | None = None, more: dict[str, Any] | None = None
) -> None:
    """Call last before training: moves what another run left in `output_dir` out of the way, and notes this run's data
    and settings there for `checkpoint_to_resume`.

    Its checkpoints and its best model go to `output_dir/_earlier`: left where they are, `--resume` and the limit on the
    number of checkpoints would take them for this run's.
    """
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        if checkpoint is not None:
            name, reached, end = _progress(args, Path(checkpoint))
            if reached == end:
                print(f"note: {checkpoint} is where `{name}` {end} ends: nothing is left to train", file=sys.stderr)
        out = Path(args.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        _move_aside(out, checkpoint)
        write_json(out / RECORD, _facts(args, data, more))
    state.wait_for_everyone()


def _of_another_run(out: Path, checkpoint: str | None) -> list[Path]:
    """Checkpoints in `out`, in order, unless the run goes on from one of them."""
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    if checkpoint is not None and _same(Path(checkpoint).parent, out):
        return []
    found = {
        path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    }
    return sorted((path for path, step in found.items() if step.isdecimal()), key=lambda path: int(found[path]))


def _move_aside(out: Path, checkpoint: str | None) -> None:
    stale = _of_another_run(out, checkpoint)
    if not stale:
        return
    earlier = out / EARLIER
    earlier.mkdir(exist_ok=True)
    for path in stale:
        # Each keeps what it was made with: the folder may come to hold those of several runs.
        if (out / RECORD).is_file():
            shutil.copy(out / RECORD, path)
        _move(path, earlier)
    if (out / "best").is_dir():
        _move(out / "best", earlier)
    names = ", ".join(path.name for path in stale)
    print(f"note: {out} held an earlier training's checkpoints, which now are in {earlier} ({names}); "
          f"`--resume_from_checkpoint {earlier / stale[-1].name}` goes on from the last", file=sys.stderr)  # fmt: skip


def _move(path: Path, folder: Path) -> None:
    if (folder / path.name).exists():
        shutil.rmtree(folder / path.name)
    path.rename(folder / path.name)


def _same(one: str | Path, other: str | Path) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _progress(args: Any, checkpoint: Path) -> tuple[str, float, float]:
    """The setting that says where training ends, how far this checkpoint is, and the end."""
    name, key = ("max_steps", "global_step") if args.max_steps > 0 else ("num_train_epochs", "epoch")
    # Epochs are sums of steps; six digits hide what they lose.
    return name, round(_read(checkpoint / "trainer_state.json").get(key) or 0, 6), getattr(args, name)


def _facts(args: Any, data: str | None, more: dict[str, Any] | None) -> dict[str, Any]:
    from ..data import data_sha256

    found = {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)} | (more or {})
    if data is not None and Path(data).is_dir():
        found["data_sha256"] = data_sha256(data)
    return json.loads(json.dumps(found, default=str))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_finished(out: Path, now: dict[str, Any]) -> None:
    """A model that is another one, not this one's earlier version, is not overwritten."""
    from ..errors import ConfigError

    if not ((out / "config.json").is_file() or (out / "adapter").is_dir()):
        return
    then = _read(out / RECORD)
    for name, what in (("user_model", "method"), ("method", "method"), ("world", "world"), ("data_sha256", "dataset")):
        if name in then and name in now and then[name] != now[name]:
            was = "" if what == "dataset" else f" (`{then[name]}`)"
            raise ConfigError(
                f"`output_dir` {out} holds a model of another {what}{was}, which would be overwritten. Name another folder."
            )


def _check(then: dict[str, Any], now: dict[str, Any], checkpoint: str) -> None:
    from ..errors import ConfigError

    changed = [
        f"`{name}` was {then[name]!r} and is {now[name]!r}" for name in then if name in now and then[name] != now[name]
    ]
    if changed:
        raise ConfigError(
            f"{checkpoint} cannot be gone on from: {'; '.join(changed)}. Give what it was made with, or start anew in "
            "another `output_dir`."
        )
