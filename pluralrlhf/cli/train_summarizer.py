"""`pluralrlhf train summarizer`, also `accelerate launch -m pluralrlhf.cli.train_summarizer`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

INTERRUPTED = "add --resume true to go on from the last checkpoint"
EXAMPLE = """example:
  pluralrlhf data build pets --out runs/data/pets
  pluralrlhf train summarizer --config recipes/pets/plus.yaml --data runs/data/pets --output_dir runs/pets-plus

A recipe is a YAML file with the same names; what is given on the command line wins. Several processes (`--multi_gpu`
also on CPUs, where accelerate starts one without it):
  accelerate launch --multi_gpu --num_processes 2 -m pluralrlhf.cli.train_summarizer --config recipes/pets/plus.yaml ...
"""


@dataclass
class SummarizerArguments:
    """What to train, and on what."""

    _VALID_DICT_FIELDS = ["tiny_start"]

    data: str | None = field(default=None, metadata={"help": "Dataset folder made by `data build`."})
    reward_model: str | None = field(
        default=None, metadata={"help": "Id or folder of the reward model's backbone, or a saved reward model."}
    )
    tiny_start: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Train both models from scratch on a CPU, from this start (JSON: steps, hidden_size ...), in place "
            "of `model_name_or_path` and `reward_model`; needs `topics`."
        },
    )
    start: str | None = field(
        default=None,
        metadata={"help": "The `start` folder of an earlier run with `tiny_start`, in place of training one again."},
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the last checkpoint in `output_dir`; start anew if there is none."},
    )


def main(argv: list[str] | None = None, prog: str = "python -m pluralrlhf.cli.train_summarizer") -> int:
    """Trains the pair of models, evaluates it on validation users, saves; returns the exit status."""
    import argparse
    import os

    from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

    from ..data import load_pairs, load_users
    from ..errors import ConfigError
    from ..trainers.summarizer_config import SummarizerConfig
    from ..trainers.summarizer_trainer import SummarizerTrainer
    from .arguments import init_kwargs, parse
    from .resume import begin_training, checkpoint_to_resume

    # What is imported lazily by TRL warns of its experimental parts on every run.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    parser = TrlParser(
        (SummarizerArguments, SummarizerConfig, ModelConfig),
        prog=prog,
        description="Train a summariser and the reward model that reads its summaries, both at the same time (PLUS).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own, args, model_args = parse(parser, argv)
    if not own.data:
        raise ConfigError("`--data` is missing: the dataset folder that `pluralrlhf data build` made.")
    model, reward_model = model_args.model_name_or_path, own.reward_model
    whole = model is not None and (reward_model or args.reward_encoder) is not None
    if whole == (own.tiny_start is not None):
        raise ConfigError(
            "Give `--model_name_or_path` (the summariser) and `--reward_model` or `--reward_encoder`, or `--tiny_start` "
            "for models from scratch, and not both."
        )
    splits = load_pairs(own.data)
    checkpoint = checkpoint_to_resume(args, own.resume, own.data)
    if own.tiny_start is not None:
        model, reward_model = _tiny_start(own, args, splits["train"], checkpoint)
    elif args.model_init_kwargs is None:
        args.model_init_kwargs = init_kwargs(model_args)
        quantization = get_quantization_config(model_args)
        if quantization is not None:
            args.model_init_kwargs["quantization_config"] = quantization
    reads_users = (args.user_model_kwargs or {}).get("source", "pairs") != "pairs"
    trainer = SummarizerTrainer(
        model=model,
        reward_model=reward_model,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        users=load_users(own.data) if reads_users else None,
        peft_config=get_peft_config(model_args),
    )
    begin_training(args, checkpoint, own.data)
    trainer.train(resume_from_checkpoint=checkpoint)
    if "validation" in splits:
        trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_model(args.output_dir)
    return 0


def _tiny_start(own: SummarizerArguments, args: Any, train: Any, checkpoint: str | None) -> tuple[str, str | None]:
    """Folders of the summariser and, without `reward_encoder`, the reader from scratch; found again on resuming."""
    import json
    from pathlib import Path

    from accelerate import PartialState

    from ..errors import ConfigError
    from ..trainers.summarizer_start import TinyStartConfig, train_start
    from ..user_models import build_config, user_model_class

    if not args.topics:
        raise ConfigError('`--tiny_start` needs `--topics`, such as {"cat": ["cats", "cat"], "dog": ["dogs", "dog"]}.')
    settings = json.loads(own.tiny_start) if isinstance(own.tiny_start, str) else dict(own.tiny_start)
    contexts = {"seed": args.seed, "min_context": args.min_context, "n_context": args.n_context}
    config = build_config(TinyStartConfig, {"topics": args.topics, **contexts, **settings}, "tiny_start")
    text_config = build_config(user_model_class(args.method).config_class, args.user_model_kwargs, args.method)
    folder = Path(own.start or Path(args.output_dir) / "start")
    parts = ["summarizer"] if args.reward_encoder else ["summarizer", "reader"]
    if own.start is not None:
        for part in parts:
            if not (folder / part / "config.json").is_file():
                raise ConfigError(
                    f"`--start` {folder} holds no `{part}/`: name the `start` folder of a run with `tiny_start`."
                )
    if checkpoint is None and own.start is None:
        train_start(train, folder, config, text_config, with_reader="reader" in parts)
        PartialState().wait_for_everyone()
    return str(folder / "summarizer"), None if args.reward_encoder else str(folder / "reader")


if __name__ == "__main__":
    from . import run_module

    sys.exit(run_module("train_summarizer", sys.argv[1:], "python -m pluralrlhf.cli.train_summarizer"))
