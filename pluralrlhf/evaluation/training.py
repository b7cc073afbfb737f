"""Training one of many models: quietly, and without what is left over."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def evaluates(settings: Mapping[str, Any]) -> bool:
    """Whether training with these settings is evaluated on validation users."""
    return settings.get("eval_strategy", "no") not in ("no", False) or bool(settings.get("load_best_model_at_end"))


def train_reward_model(
    settings: Mapping[str, Any],
    splits: Mapping[str, Any],
    output_dir: Path,
    seed: int,
    show: Callable[[str], None] = lambda text: None,
    users: Any = None,
) -> None:
    """Trains one reward model quietly and saves it; `settings` are those of [`PersonalizedRewardConfig`].

    `model_name_or_path` names a backbone to train; without one `encoder` gives frozen features. `users` are the rows of
    the `users` config, for the text methods that declare that they read it.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

    from ..trainers.reward_config import PersonalizedRewardConfig
    from ..trainers.reward_trainer import PersonalizedRewardTrainer
    from ..user_models import user_model_class

    settings = dict(settings)
    backbone = settings.pop("model_name_or_path", None)
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "eval_strategy": "no"}
    try:
        args = PersonalizedRewardConfig(output_dir=str(output_dir), seed=seed, **{**quiet, **settings})
    except (TypeError, ValueError) as error:
        texts = [
            f"`{name}` is the text {value!r:.40}, not a number"
            for name, value in settings.items()
            if isinstance(value, str) and isinstance(getattr(PersonalizedRewardConfig, name, None), (int, float))
        ]
        raise ConfigError(f"training settings: {'; '.join(texts) or error}") from None

    class Show(TrainerCallback):
        said = 0.0

        def on_step_end(self, args, state, control, **kwargs):
            if time.monotonic() - self.said > 0.5:
                self.said = time.monotonic()
                show(f"step {state.global_step} of {state.max_steps}")

    trainer = PersonalizedRewardTrainer(
        model=backbone,
        args=args,
        train_dataset=splits["train"],
        eval_dataset={"validation": splits["validation"]} if evaluates(settings) and "validation" in splits else None,
        callbacks=[Show()],
        users=users if user_model_class(args.user_model).route == "text" else None,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()
    trainer.save_model(str(output_dir))
    for checkpoint in output_dir.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and deprecation notes of libraries, which a job of a suite would repeat dozens of times."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()
