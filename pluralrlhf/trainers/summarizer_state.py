"""What of two models that train together goes into a checkpoint and into a saved pair, and comes back."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..errors import ConfigError
from ..files import write_json
from ..user_models.text.plus import FOLDER

if TYPE_CHECKING:
    from .summarizer_trainer import SummarizerTrainer

Example = tuple[str, list[int]]


class ReplayBuffer:
    """The most recent summaries with the rows that judged them."""

    def __init__(self, size: int):
        self.examples: deque[Example] = deque(maxlen=size)

    def extend(self, examples: Iterable[Example]) -> None:
        self.examples.extend((text, list(rows)) for text, rows in examples)

    def sample(self, n: int, rng: np.random.Generator) -> list[Example]:
        """Up to `n` of them, without repetition."""
        return [self.examples[i] for i in rng.permutation(len(self.examples))[:n]]


def save_pair(trainer: SummarizerTrainer, folder: Path, best: bool = False) -> None:
    """Writes the reward model, its tokenizer and settings to `folder`, the summariser to `folder/summarizer`.

    With `best`, the pair that was best on validation users is taken, where there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = Path(trainer.args.output_dir) / "best"
    if best and trainer.best is not None and (kept / "config.json").is_file():
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    else:
        trainer.reader.save_pretrained(str(folder))
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(str(folder / FOLDER))
        trainer.processing_class.save_pretrained(str(folder / FOLDER))
    settings = json.loads(trainer.args.to_json_string())
    write_json(folder / "training_args.json", settings, sort_keys=True)


def save_pair_state(trainer: SummarizerTrainer, folder: Path) -> None:
    """Adds to a checkpoint what is not the summariser's: the reward model, its optimiser, the replays, the best."""
    rank = trainer.accelerator.process_index
    (folder / f"replay-{rank}.json").write_text(json.dumps(list(trainer.reading.replay.examples)))
    if trainer.is_world_process_zero():
        _save_tensors(trainer.reader.state_dict(), folder / "reward_model.safetensors")
        if trainer.reading.frozen is not None:
            _save_tensors(trainer.reading.frozen.state_dict(), folder / "frozen_reader.safetensors")
        tensors, steps = {}, {}
        for number, state in trainer.reading.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if torch.is_tensor(value) and value.ndim:
                    tensors[f"{number}.{name}"] = value
                else:
                    steps[f"{number}.{name}"] = float(value)
        _save_tensors(tensors, folder / "reward_optimizer.safetensors")
        content = {
            "schema": 1,
            "steps": steps,
            "best": trainer.best,
            "n_processes": trainer.accelerator.num_processes,
        }
        # Written last: a checkpoint without it is not whole.
        write_json(folder / "pair_state.json", content)
    trainer.accelerator.wait_for_everyone()


def load_pair_state(trainer: SummarizerTrainer, folder: Path) -> None:
    """Restores what `save_pair_state` wrote.

    Raises:
        ConfigError: The checkpoint is not one of a pair, is not whole, was made by another number of processes, or lies
            between two generations.
    """
    path = folder / "pair_state.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no pair_state.json: it holds no reward model, or was cut off. Resume from another."
        )
    content = json.loads(path.read_text())
    if content["n_processes"] != trainer.accelerator.num_processes:
        raise ConfigError(
            f"{folder} was made by {content['n_processes']} processes, this run has "
            f"{trainer.accelerator.num_processes}; resuming could not be exact. Use as many."
        )
    step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    trainer.args.check_boundary(step, "global_step of the checkpoint")
    trainer.reader.load_state_dict(load_file(str(folder / "reward_model.safetensors")))
    if (folder / "frozen_reader.safetensors").is_file():
        trainer.reading.keep_frozen()
        if trainer.reading.frozen is not None:
            trainer.reading.frozen.load_state_dict(load_file(str(folder / "frozen_reader.safetensors")))
    _load_optimizer(
        trainer.reading.optimizer, load_file(str(folder / "reward_optimizer.safetensors")), content["steps"]
    )
    trainer.best = content["best"] and tuple(content["best"])
    saved = json.loads((folder / f"replay-{trainer.accelerator.process_index}.json").read_text())
    trainer.reading.replay.examples.clear()
    trainer.reading.replay.extend((text, rows) for text, rows in saved)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Any], steps: dict[str, float]) -> None:
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in [*tensors.items(), *((key, torch.tensor(number)) for key, number in steps.items())]:
        number, field = name.split(".", 1)
        state["state"].setdefault(int(number), {})[field] = value
    optimizer.load_state_dict(state)


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, str(path))
