"""Rollouts: the cache that survives between turns against encoding the conversation anew at every turn.

    python evals/bench/rollout.py --n_turns 6

Both ways play the same conversations greedily first (turns must be identical, log-probabilities within 1e-4, whatever
the rows' lengths), then sample; tokens a second count the policy's own tokens. The model is random (an untrained
policy speaks up to its limit, which gives long, ragged turns) unless --model names one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a policy of the exercise world; by default a random one")
    parser.add_argument("--n_turns", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_new_tokens", type=int, default=12)
    parser.add_argument("--hidden_size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="JSON file of the result")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pluralrlhf.environments.base import Conversation, ScriptedUser, stable_seed
    from pluralrlhf.environments.exercise import ExerciseWorld
    from pluralrlhf.environments.exercise_start import vocabulary
    from pluralrlhf.environments.generation import CachedGenerator, ChatFormat, ReencodingGenerator
    from pluralrlhf.environments.rollout import rollout
    from pluralrlhf.environments.tiny import tiny_policy, tiny_tokenizer

    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    else:
        tokenizer = tiny_tokenizer(vocabulary())
        model = tiny_policy(tokenizer, hidden_size=args.hidden_size).eval()
    world = ExerciseWorld(n_questions=args.n_turns - 1)
    users, chat = world.users("train"), ChatFormat(tokenizer)

    def play(generator_class, temperature: float, seed: int):
        conversations = [Conversation(u, world.prompt(u), seed=stable_seed(seed, i))
                         for i, u in enumerate(users[: args.batch_size])]  # fmt: skip
        generator = generator_class(model, tokenizer.pad_token_id)
        settings = {"world": world, "user": ScriptedUser(world), "chat": chat, "seed": seed}
        start = time.process_time()
        rollout(
            conversations, generator=generator, temperature=temperature, max_new_tokens=args.max_new_tokens, **settings
        )
        return conversations, time.process_time() - start

    cached, naive = play(CachedGenerator, 0.0, 0)[0], play(ReencodingGenerator, 0.0, 0)[0]
    assert [c.messages for c in cached] == [c.messages for c in naive], "greedy turns differ"
    gap = max(abs(a - b) for x, y in zip(cached, naive) for a, b in zip(x.logprobs, y.logprobs))
    assert gap < 1e-4, f"log-probabilities differ by {gap}"
    sampled, again = play(CachedGenerator, 1.0, 1)[0], play(ReencodingGenerator, 1.0, 1)[0]
    same = sum(a.messages == b.messages for a, b in zip(sampled, again))
    seconds = {"cached": [], "reencoded": []}
    tokens = {"cached": 0, "reencoded": 0}
    for repeat in range(args.repeats):  # interleaved, so that a busy machine slows both
        for name, generator_class in (("cached", CachedGenerator), ("reencoded", ReencodingGenerator)):
            conversations, took = play(generator_class, 1.0, 2 + repeat)
            seconds[name].append(took)
            tokens[name] += sum(sum(c.env_mask) for c in conversations)
    rate = {name: tokens[name] / sum(seconds[name]) for name in seconds}
    lengths = sorted({len(t.token_ids) for c in sampled for t in c.turns})
    result = {
        "schema": 1,
        "command": f"python evals/bench/rollout.py --n_turns {args.n_turns} --batch_size {args.batch_size} "
        f"--max_new_tokens {args.max_new_tokens}"
        + (" --model START" if args.model else f" --hidden_size {args.hidden_size}"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_cpu_second": {k: round(v, 1) for k, v in rate.items()},
        "ratio": round(rate["cached"] / rate["reencoded"], 3),
        "largest_log_probability_gap": gap,
        "greedy_conversations_identical": len(cached),
        "sampled_conversations_identical": f"{same} of {len(sampled)}",
        "utterance_lengths": [lengths[0], lengths[-1]],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    print(json.dumps(result, indent=1))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
