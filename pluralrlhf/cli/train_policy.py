"""`pluralrlhf train policy`, also `accelerate launch -m pluralrlhf.cli.train_policy`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

INTERRUPTED = "add --resume true to go on from the last checkpoint"
EXAMPLE = """example (a policy from scratch in the exercise world; about 10 minutes on one CPU core):
  pluralrlhf train policy --config recipes/exercise/diff_log_acc.yaml --output_dir runs/exercise

A recipe is a YAML file with the same names; what is given on the command line wins. `output_dir` gets the final policy,
`best/` the one with the highest success on validation users, and policy.json, which `pluralrlhf eval policy` reads.
"""


@dataclass
class PolicyArguments:
    """The task, its users, and what the policy starts from."""

    world: str = field(default="exercise", metadata={"help": "`exercise` or `tutor`."})
    world_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Settings of the world; unknown keys are errors."}
    )
    start_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Without `model_name_or_path`, the exercise world trains its supervised start first, with these settings."
        },
    )
    user: str = field(default="scripted", metadata={"help": "`scripted`, `local` or `endpoint`."})
    user_model: str | None = field(default=None, metadata={"help": "Model of `local` and `endpoint` users."})
    user_base_url: str | None = field(default=None, metadata={"help": "Address of the `endpoint`."})
    user_kwargs: dict | str | None = field(default=None, metadata={"help": "Further settings of the simulated user."})
    belief: str = field(default="exact", metadata={"help": "`exact`, or a folder written by `ClassifierBelief.save`."})
    check_steps: int = field(default=25, metadata={"help": "Steps between successes on validation users."})
    n_check: int = field(default=128, metadata={"help": "Conversations of each such check."})
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the last checkpoint in `output_dir`; start anew if there is none."},
    )

    def __post_init__(self):
        import json

        from ..errors import ConfigError

        # YAML gives a mapping; the command line a string.
        for name in ("world_kwargs", "start_kwargs", "user_kwargs"):
            value = getattr(self, name)
            try:
                value = json.loads(value) if isinstance(value, str) else value
            except json.JSONDecodeError as error:
                raise ConfigError(f"`{name}` is not a JSON object: {error.msg}.") from None
            if value is not None and not isinstance(value, dict):
                raise ConfigError(f'`{name}` is {value!r}; give a JSON object such as {{"seed": 0}}.')
            setattr(self, name, value)


def make_user(kind: str, world, model: str | None, base_url: str | None, settings: dict | None):
    """The simulated users that the arguments name."""
    from ..environments.base import ScriptedUser
    from ..errors import ConfigError, loading

    settings = dict(settings or {})
    try:
        if kind == "scripted":
            return ScriptedUser(world, **settings)
        if kind not in ("local", "endpoint"):
            raise ConfigError(f"`user` is {kind!r}; use scripted, local or endpoint.")
        if model is None:
            raise ConfigError(f"`user_model` is missing; `user: {kind}` needs the name of a model.")
        if kind == "endpoint":
            from ..environments.endpoint_user import EndpointUser

            return EndpointUser(model, base_url, **settings)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ..environments.local_user import LocalLMUser

        with loading("user_model", model):
            loaded = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        return LocalLMUser(*loaded, **settings)
    except TypeError as error:
        raise ConfigError(f"`user_kwargs` does not fit `user: {kind}`: {error}.") from None


def make_belief(name: str):
    """The belief that an argument names: a folder's, or None for the world's own, `exact`."""
    if name == "exact":
        return None
    from ..user_models.beliefs import ClassifierBelief

    return ClassifierBelief.load(name)


def main(argv: list[str] | None = None, prog: str = "python -m pluralrlhf.cli.train_policy") -> int:
    """Trains, keeps the best and the final policy; returns the exit status."""
    import argparse
    import json
    from pathlib import Path

    from accelerate import PartialState
    from transformers import AutoTokenizer, TrainerCallback
    from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

    from ..environments import make_world
    from ..errors import ConfigError, loading
    from ..evaluation.policy import play, summarise
    from ..files import json_digest, write_json
    from ..trainers.multi_turn_config import MultiTurnGRPOConfig
    from ..trainers.multi_turn_trainer import MultiTurnGRPOTrainer
    from .arguments import parse
    from .resume import begin_training, checkpoint_to_resume

    parser = TrlParser(
        (PolicyArguments, MultiTurnGRPOConfig, ModelConfig),
        prog=prog,
        description="Train a policy on conversations with simulated users.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    policy, args, model_args = parse(parser, argv)
    world = make_world(policy.world, **(policy.world_kwargs or {}))
    out = Path(args.output_dir)
    names = ("world", "world_kwargs", "user", "user_model", "user_kwargs", "belief", "start_kwargs")
    more = {name: getattr(policy, name) for name in names}
    more["model_name_or_path"] = model_args.model_name_or_path
    more["curiosity"] = vars(args.curiosity_config()) | {"turn_credit": args.turn_credit}
    checkpoint = checkpoint_to_resume(args, policy.resume, more=more)
    start = model_args.model_name_or_path
    if start is None:
        if policy.world != "exercise":
            raise ConfigError("`model_name_or_path` is missing; only the exercise world makes its own start.")
        from ..environments.exercise_start import StartConfig, train_start

        try:
            config = StartConfig(**(policy.start_kwargs or {}))
        except TypeError as error:
            raise ConfigError(f"`start_kwargs`: {error}.") from None
        start = str(out / "start")
        made = json_digest([policy.world, policy.world_kwargs, vars(config)])
        stamp = out / "start" / "made_with.json"
        with PartialState().main_process_first():  # the others find it made
            if checkpoint is None and not (stamp.is_file() and json.loads(stamp.read_text())["settings"] == made):
                train_start(world, start, config)
                write_json(stamp, {"settings": made})
    with loading("model", start):
        tokenizer = AutoTokenizer.from_pretrained(start)
    user = make_user(policy.user, world, policy.user_model, policy.user_base_url, policy.user_kwargs)
    args.model_init_kwargs = args.model_init_kwargs or {"dtype": "float32" if not args.bf16 else "bfloat16"}
    trainer = MultiTurnGRPOTrainer(
        start,
        None,
        args,
        world=world,
        user=user,
        belief=make_belief(policy.belief),
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )

    begin_training(args, checkpoint, more=more)

    class KeepBest(TrainerCallback):
        """Success on validation users along the way, and the best policy in `best/`."""

        best = -1.0
        record = out / "best" / "success.json"
        if checkpoint and record.is_file():
            best = json.loads(record.read_text(encoding="utf-8"))["validation_success"]

        def on_step_end(self, _, state, control, model=None, **kwargs):
            if state.global_step % policy.check_steps and state.global_step < state.max_steps:
                return
            if not state.is_world_process_zero:
                return
            unwrapped = trainer.accelerator.unwrap_model(model)
            settings = {"n": policy.n_check, "seed": 1, "user": user, "max_new_tokens": args.max_new_tokens}
            summary = summarise(play(unwrapped, tokenizer, world, "validation", **settings), world)
            success = summary.get("success", {"value": 0.0})["value"]
            trainer.log({"validation_success": success, "validation_invalid": summary.get("invalid", 1.0)})
            if success > self.best:
                self.best = success
                unwrapped.save_pretrained(out / "best")
                tokenizer.save_pretrained(out / "best")
                about = {"step": state.global_step, "validation_success": success}
                self.record.write_text(json.dumps(about) + "\n", encoding="utf-8")

    trainer.add_callback(KeepBest())
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    if trainer.accelerator.is_main_process:
        about = {"schema": 1, "world": policy.world, "world_kwargs": policy.world_kwargs or {}, "start": start}
        about |= {"belief": policy.belief, "max_new_tokens": args.max_new_tokens}
        about |= {"curiosity": vars(args.curiosity_config())}
        (out / "policy.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        history = [
            log for log in trainer.state.log_history if "conversations/success" in log or "validation_success" in log
        ]
        (out / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    from . import run_module

    sys.exit(run_module("train_policy", sys.argv[1:], "python -m pluralrlhf.cli.train_policy"))
