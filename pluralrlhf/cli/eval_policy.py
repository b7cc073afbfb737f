"""`pluralrlhf eval policy`: how a conversational policy does with users it has never met."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

EXAMPLE = """example:
  pluralrlhf train policy --config recipes/exercise/diff_log_acc.yaml --output_dir runs/exercise
  pluralrlhf eval policy --model runs/exercise --output_dir runs/exercise-eval

writes results.json (start, best and final checkpoint; train, validation and test users), conversations.jsonl and
report.html with sample conversations turn by turn, the belief as bars and the reward of each turn.
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Evaluate a policy on held-out simulated users.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder written by `train policy`")
    parser.add_argument("--output_dir", required=True, metavar="OUT", help="folder of the results")
    parser.add_argument("--splits", nargs="+", default=["train", "validation", "test"], metavar="SPLIT")
    parser.add_argument("--n", type=int, default=512, help="conversations a split (default: 512)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the policy; 0 is greedy (default: 1)")
    parser.add_argument("--suggestible", type=float, default=0.0, help="of scripted users (default: 0)")
    parser.add_argument("--user", default="scripted", choices=("scripted", "local", "endpoint"))
    parser.add_argument("--user_model", help="model of `local` and `endpoint` users")
    parser.add_argument("--user_base_url", help="address of the endpoint")
    parser.add_argument(
        "--belief",
        default="exact",
        metavar="BELIEF",
        help="what reads the conversations: `exact`, the same for every policy (default); `trained`, that which rewarded "
        "this one; or a folder written by `ClassifierBelief.save`",
    )
    parser.add_argument("--n_samples", type=int, default=6, help="conversations shown in the report (default: 6)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None, prog: str = "pluralrlhf eval policy") -> int:
    """Evaluates, writes the results, prints the table; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(prog).parse_args(argv)

    from ..errors import ConfigError, loading
    from . import command_of

    folder = Path(args.model)
    if not (folder / "policy.json").is_file():
        raise ConfigError(f"`--model`: {folder} holds no policy.json; pass a folder written by `train policy`.")
    about = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    for split in args.splits:
        if split not in ("train", "validation", "test"):
            raise ConfigError(f"`--splits` names {split!r}; use train, validation and test.")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..environments import make_world
    from ..evaluation.policy import play, summarise
    from ..evaluation.policy_report import conversations_html, page
    from ..rewards.curiosity import CuriosityConfig
    from .train_policy import make_belief, make_user

    world = make_world(about["world"], **about["world_kwargs"])
    settings = {"suggestible": args.suggestible} if args.user == "scripted" else None
    user = make_user(args.user, world, args.user_model, args.user_base_url, settings)
    reads = about["belief"] if args.belief == "trained" else args.belief
    belief = make_belief(reads) or world.exact_belief()
    curiosity = CuriosityConfig(**about["curiosity"])
    checkpoints = {"start": Path(about["start"]), "best": folder / "best", "final": folder}
    results: dict = {
        "schema": 1,
        "model": args.model,
        "command": command_of(prog, argv),
        "belief": reads,
        "checkpoints": {},
    }
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    fragments: dict[str, str] = {}
    # Under a name of its own until all is written: a checkpoint that cannot be loaded costs no earlier results.
    part = out / "conversations.jsonl.part"
    with open(part, "w", encoding="utf-8") as file:
        for name, path in checkpoints.items():
            if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
                continue
            with loading("model", path):
                model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
            results["checkpoints"][name] = {}
            for split in args.splits:
                conversations = play(
                    model,
                    tokenizer,
                    world,
                    split,
                    n=args.n,
                    seed=args.seed,
                    user=user,
                    temperature=args.temperature,
                    max_new_tokens=about["max_new_tokens"],
                )
                summary = summarise(conversations, world, belief)
                results["checkpoints"][name][split] = summary
                if "success" in summary:
                    interval = summary["success"]["ci95"]
                    shown = "[{:.3f}, {:.3f}]".format(*interval) if interval else "(one user)"
                    print(
                        f"{name:6} {split:10} success {summary['success']['value']:.3f} {shown}  "
                        f"turns {summary['turns']['value']:.2f}  invalid {100 * summary['invalid']:.1f} %  "
                        f"failed {summary['failed']}"
                    )
                for c in conversations:
                    row = {"checkpoint": name, "split": split, "user_id": c.profile.user_id, "ended": c.ended}
                    row |= {"messages": c.messages, "success": None if c.failed else world.success(c)}
                    file.write(json.dumps(row) + "\n")
                if split == args.splits[-1]:
                    shown = conversations_html(conversations, world, belief, curiosity, args.n_samples)
                    fragments[f"{name} checkpoint, {split} users"] = shown
            scores = {s: r["success"]["value"] for s, r in results["checkpoints"][name].items() if "success" in r}
            if "train" in scores and "test" in scores:
                results.setdefault("gap", {})[name] = scores["train"] - scores["test"]
    part.replace(out / "conversations.jsonl")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page(results, fragments), encoding="utf-8")
    print(f"wrote {out}/results.json, conversations.jsonl, report.html")
    return 0


if __name__ == "__main__":
    from . import run_module

    sys.exit(run_module("eval_policy", sys.argv[1:], "pluralrlhf eval policy"))
