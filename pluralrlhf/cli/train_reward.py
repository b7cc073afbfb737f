"""`pluralrlhf train reward`, also `accelerate launch -m pluralrlhf.cli.train_reward`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

INTERRUPTED = "add --resume true to go on from the last checkpoint"
EXAMPLE = """example:
  pluralrlhf data build pets --out runs/data/pets
  pluralrlhf train reward --config recipes/pets/vpl.yaml --data runs/data/pets --output_dir runs/pets-vpl

A recipe is a YAML file with the same names; what is given on the command line wins. Several processes (`--multi_gpu`
also on CPUs, where accelerate starts one without it):
  accelerate launch --multi_gpu --num_processes 2 -m pluralrlhf.cli.train_reward --config recipes/pets/vpl.yaml ...
"""


@dataclass
class DataArguments:
    """What to train on."""

    data: str | None = field(default=None, metadata={"help": "Dataset folder made by `data build`."})
    eval_splits: list[str] = field(
        default_factory=lambda: ["validation"],
        metadata={"help": "Splits evaluated during training; choices are made on `validation` alone."},
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the last checkpoint in `output_dir`; start anew if there is none."},
    )


def main(argv: list[str] | None = None, prog: str = "python -m pluralrlhf.cli.train_reward") -> int:
    """Trains, evaluates on validation users, saves; returns the exit status."""
    import argparse

    from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

    from ..data import load_pairs, load_users
    from ..errors import ConfigError
    from ..trainers.reward_config import PersonalizedRewardConfig
    from ..trainers.reward_trainer import PersonalizedRewardTrainer
    from ..user_models import user_model_class
    from . import with_plugins
    from .arguments import init_kwargs, parse
    from .resume import begin_training, checkpoint_to_resume

    parser = TrlParser(
        (DataArguments, PersonalizedRewardConfig, ModelConfig),
        prog=prog,
        description="Train a personalised reward model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data_args, args, model_args = parse(parser, argv)
    if not data_args.data:
        raise ConfigError("`--data` is missing: the dataset folder that `pluralrlhf data build` made.")
    if args.encoder is None and model_args.model_name_or_path is None:
        raise ConfigError(
            "Give `--encoder` (frozen features, such as `offline`) or `--model_name_or_path` (a backbone to train)."
        )
    if (Path(args.output_dir) / "build.json").is_file():
        raise ConfigError(f"`--output_dir` {args.output_dir} is a dataset folder; name another one for the model.")
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    splits = load_pairs(data_args.data)
    unknown = [split for split in data_args.eval_splits if split not in splits]
    if unknown == data_args.eval_splits == ["validation"]:  # what nobody asked for
        if args.eval_strategy != "no":
            best = " --load_best_model_at_end false" if args.load_best_model_at_end else ""
            raise ConfigError(
                f"{data_args.data} has no validation users, on whom training is evaluated (it has {sorted(splits)}). "
                f"Build it from more users or with a larger `--validation_users`, or add `--eval_strategy no{best}`."
            )
        data_args.eval_splits = unknown = []
    if unknown:
        raise ConfigError(f"`eval_splits` names {unknown}, which {data_args.data} lacks. It has {sorted(splits)}.")
    checkpoint = checkpoint_to_resume(args, data_args.resume, data_args.data)

    if args.model_init_kwargs is None:
        args.model_init_kwargs = init_kwargs(model_args, frozen=args.encoder is not None)
    trainer = PersonalizedRewardTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=splits["train"],
        eval_dataset={split: splits[split] for split in data_args.eval_splits} or None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        # A method that does not declare that it reads the users' config gets none of it.
        users=load_users(data_args.data) if user_model_class(args.user_model).route == "text" else None,
    )
    begin_training(args, checkpoint, data_args.data)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    if trainer.eval_dataset:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        trainer.create_model_card()
        if trainer.is_world_process_zero():
            scores = {key: value for key, value in metrics.items() if "_accuracy" in key}
            print("\n".join(f"{key.removeprefix('eval_')}: {value:.4f}" for key, value in scores.items()))
    if trainer.is_world_process_zero():
        print(f"{args.output_dir}: the model. Next: pluralrlhf eval reward --model {args.output_dir} --data "
              f"{data_args.data} --output_dir {args.output_dir}-eval{with_plugins()}")  # fmt: skip
    if args.push_to_hub:
        trainer.push_to_hub()
    return 0


if __name__ == "__main__":
    from . import run_module

    sys.exit(run_module("train_reward", sys.argv[1:], "python -m pluralrlhf.cli.train_reward"))
