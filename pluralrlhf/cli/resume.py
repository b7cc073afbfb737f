"""Going on from a checkpoint: which one, and only with the data and the settings that it was made with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

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
)


def checkpoint_to_resume(args: Any, resume: bool, data: str | None = None) -> str | None:
    """The checkpoint to go on from, if any; notes what this training is made from for the next time.

    Args:
        args: A trainer's arguments; `resume_from_checkpoint` names a checkpoint, or says `true` for the last one.
        resume: Take the last checkpoint of `output_dir`, if there is one.
        data: The dataset folder.

    Raises:
        ConfigError: The checkpoint that is named does not exist, or was made from other data or with other settings.
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
    last = get_last_checkpoint(str(out)) if out.is_dir() else None
    checkpoint = named or (last if resume else None)
    now = _facts(args, data)
    if checkpoint is not None:
        _check(_read(Path(checkpoint).parent / RECORD), now, checkpoint)
    elif last is not None and _first_process():
        print(f"note: {out} holds an earlier training's checkpoints, which are replaced (`--resume true` goes on "
              "from them)", file=sys.stderr)  # fmt: skip
    if _first_process():
        out.mkdir(parents=True, exist_ok=True)
        (out / RECORD).write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    return checkpoint


def _facts(args: Any, data: str | None) -> dict[str, Any]:
    from ..data import data_sha256

    found = {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)}
    if data is not None and Path(data).is_dir():
        found["data_sha256"] = data_sha256(data)
    return json.loads(json.dumps(found, default=str))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
