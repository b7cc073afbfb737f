"""The supervised start of the exercise world: trains it, and shows that it is the start the comparison needs.

    python evals/curiosity_start.py --seed 0 --output_dir runs/start-0

Asks at random, recommends right given full information (greedy, on each split), succeeds seldom (sampled).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--evaluate_only", action="store_true", help="the start is already in `output_dir`")
    parser.add_argument("--results", help="JSON file of the figures")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pluralrlhf.environments.exercise import N_DECIDING, ExerciseWorld
    from pluralrlhf.environments.exercise_start import StartConfig, informed_accuracy, train_start
    from pluralrlhf.evaluation.policy import play, summarise

    world = ExerciseWorld()
    if not args.evaluate_only:
        train_start(world, args.output_dir, StartConfig(seed=args.seed))
    model = AutoModelForCausalLM.from_pretrained(args.output_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.output_dir)
    results: dict = {"schema": 1, "command": f"python evals/curiosity_start.py --seed {args.seed}"}
    results["parameters"] = sum(p.numel() for p in model.parameters())
    for split in ("train", "validation", "test"):
        conversations = play(model, tokenizer, world, split, n=512, seed=1)
        summary = summarise(conversations, world, world.exact_belief())
        asked = [t.act.target for c in conversations for t in c.turns if t.act.kind in ("ask", "suggest")]
        results[split] = {
            "right_given_full_information": informed_accuracy(world, model, tokenizer, split, n=1024),
            "success": summary["success"],
            "invalid": summary["invalid"],
            # Asking at random would ask about the five deciding attributes a quarter of the time.
            "share_of_deciding_questions": sum(a < N_DECIDING for a in asked) / len(asked),
        }
    print(json.dumps(results, indent=1))
    if args.results:
        Path(args.results).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
