"""Learning curves in the exercise world: one arm, one seed.

    python evals/curiosity_arms.py --arm diff_log_acc --seed 0 --start runs/starts/0 --output_dir runs/arms

Arms differ in the intrinsic reward, and in the rate and the credit's lambda that validation users preferred for them
(`OWN`); all else is the same. Writes OUT/ARM-SEED.json: success, belief and language
on train, validation and test users along the way, and of the best checkpoint (chosen on validation users) and the final
one; `success_by_user` has one digit a test user, so that arms can be compared user by user. What it prints leaves test
users out: settings are chosen on validation users.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

# Weights put the range of every potential near two (log 8 = 2.1); acc and ent pay per turn.
ARMS = {
    "end": {"curiosity": "none"},
    "end_phi": {"curiosity": "diff_log_acc", "curiosity_placement": "end"},
    "diff_log_acc": {"curiosity": "diff_log_acc"},
    "diff_acc": {"curiosity": "diff_acc", "curiosity_weight": 2.0},
    "diff_ent": {"curiosity": "diff_ent"},
    "info_gain": {"curiosity": "info_gain"},
    "acc": {"curiosity": "acc"},
    "ent": {"curiosity": "ent", "curiosity_weight": 0.5},
    "diff_log_acc_zero": {"curiosity": "diff_log_acc", "curiosity_terminal_potential": "zero"},
    "diff_acc_zero": {"curiosity": "diff_acc", "curiosity_weight": 2.0, "curiosity_terminal_potential": "zero"},
    "diff_log_acc_shuffled": {"curiosity": "diff_log_acc", "curiosity_shuffle": True},
    "diff_log_acc_learned": {"curiosity": "diff_log_acc"},
    "diff_log_acc_trajectory": {"curiosity": "diff_log_acc", "turn_credit": "trajectory"},
}

# Chosen on validation users of start 1, for `diff_log_acc` (whose setting the other intrinsic rewards share), `end` and
# `end_phi`: evals/results/curio/arms/tuning.csv.
DEFAULTS = {"learning_rate": 2e-3, "turn_lambda": 0.5}
OWN = {
    "end": {"learning_rate": 1e-3, "turn_lambda": 1.0},
    "end_phi": {"learning_rate": 1e-3, "turn_lambda": 1.0},
    "diff_log_acc_trajectory": {"turn_lambda": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", required=True, help="the supervised start (a folder)")
    parser.add_argument("--belief", help="a trained classifier belief (a folder), for the `learned` arm")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--eval_steps", type=int, default=30)
    parser.add_argument("--learning_rate", type=float, help="by default the arm's own")
    parser.add_argument("--conversations", type=int, default=128, help="conversations of a step")
    parser.add_argument("--num_generations", type=int, default=4, help="conversations of a step with one user")
    parser.add_argument("--max_grad_norm", type=float, default=0.2)
    parser.add_argument(
        "--decay_steps", type=int, default=200, help="steps at the end in which the rate falls to zero"
    )
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--turn_lambda", type=float, help="of the turns' credit, by default the arm's own")
    parser.add_argument("--floor", type=float, default=0.05, help="smallest probability inside a logarithm")
    parser.add_argument("--n_eval", type=int, default=256)
    parser.add_argument("--free", action="store_true", help="the policy chooses when to recommend, at most 10 turns")
    parser.add_argument("--suggestible", type=float, default=0.0, help="how often users give in to leading questions")
    parser.add_argument("--name", help="name of the output file, by default ARM-SEED")
    args = parser.parse_args()
    for setting, value in (DEFAULTS | OWN.get(args.arm, {})).items():
        if getattr(args, setting) is None:
            setattr(args, setting, value)

    import torch

    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from pluralrlhf.environments.base import ScriptedUser
    from pluralrlhf.environments.exercise import ExerciseWorld
    from pluralrlhf.evaluation.policy import play, summarise
    from pluralrlhf.trainers.multi_turn_config import MultiTurnGRPOConfig
    from pluralrlhf.trainers.multi_turn_trainer import MultiTurnGRPOTrainer

    world = ExerciseWorld(cue=not args.free)
    user = ScriptedUser(world, suggestible=args.suggestible)
    model = AutoModelForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.start)
    exact = world.exact_belief()
    belief = exact
    if args.belief:
        from pluralrlhf.user_models.beliefs import ClassifierBelief

        belief = ClassifierBelief.load(args.belief)
    name = args.name or f"{args.arm}-{args.seed}"
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    settings = MultiTurnGRPOConfig(
        output_dir=str(out / f"{name}-trainer"),
        seed=args.seed,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.conversations,
        num_generations=args.num_generations,
        max_grad_norm=args.max_grad_norm,
        learning_rate=args.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": args.decay_steps, "decay_type": "linear"},
        warmup_steps=15,
        adam_beta2=0.99,
        beta=args.beta,
        loss_type="dapo",
        logging_steps=args.eval_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        disable_dropout=True,
        dataloader_pin_memory=False,
        turn_lambda=args.turn_lambda,
        curiosity_floor=args.floor,
        **ARMS[args.arm],
    )
    curve: list[dict] = []
    best: dict = {"validation": -1.0}
    clock = {"start": time.perf_counter(), "eval": 0.0}

    def evaluate(step: int, model) -> None:
        began = time.perf_counter()
        point = {"step": step, "seconds": round(began - clock["start"] - clock["eval"], 2)}
        for split in ("train", "validation", "test"):
            n = args.n_eval if split == "test" else args.n_eval // 2
            conversations = play(model, tokenizer, world, split, n=n, seed=1, user=user)
            point[split] = summarise(conversations, world, exact)
            if split == "test":
                point["success_by_user"] = "".join(str(int(world.success(c))) for c in conversations)
        curve.append(point)
        value = point["validation"]["success"]["value"]
        if value > best["validation"]:
            best.update(validation=value, step=step, state={k: v.clone() for k, v in model.state_dict().items()})
        clock["eval"] += time.perf_counter() - began
        print(step, {s: round(point[s]["success"]["value"], 3) for s in ("train", "validation")},
              "invalid", round(point["validation"]["invalid"], 4), "turns", round(point["validation"]["turns"]["value"], 2),
              point["seconds"], flush=True)  # fmt: skip

    class Evaluate(TrainerCallback):
        def on_step_end(self, _, state, control, model=None, **kwargs):
            if state.global_step % args.eval_steps == 0:
                evaluate(state.global_step, model)

    trainer = MultiTurnGRPOTrainer(
        model,
        None,
        settings,
        world=world,
        user=user,
        belief=belief,
        processing_class=tokenizer,
        callbacks=[Evaluate()],
    )
    evaluate(0, model)
    trainer.train()
    seconds = time.perf_counter() - clock["start"] - clock["eval"]
    result = {"arm": args.arm, "seed": args.seed, "settings": ARMS[args.arm], "arguments": vars(args)}
    result |= {"seconds_training": round(seconds, 1), "curve": curve, "best_step": best["step"]}
    final_state = {k: v.clone() for k, v in model.state_dict().items()}
    for which, state in (("best", best["state"]), ("final", final_state)):
        model.load_state_dict(state)
        result[which] = {
            split: summarise(play(model, tokenizer, world, split, n=512, seed=2, user=user), world, exact)
            for split in ("train", "test")
        }
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if not args.free and not args.suggestible:
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)


if __name__ == "__main__":
    main()
