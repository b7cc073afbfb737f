"""Shared-prefix packing against sequence by sequence: one training step of a reward model, equal results asserted.

The naive path is what TRL's `RewardTrainer` computes without padding waste: chosen and rejected in one batch of equal
lengths, Bradley-Terry loss, backward, AdamW. Both paths share the machine in turns, and the ratio is of medians.

    python evals/bench/shared_prefix.py                        # a small model of the Qwen2.5 family, a minute
    python evals/bench/shared_prefix.py --shape qwen2.5-0.5b   # random weights in the real shape; ten minutes
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from pluralrlhf.features.shared_prefix import pack_shared_prefix, sequence_rewards

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 4},
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
}
# name -> tokens of the user's text, of each prompt, of each response; pairs of one user
SCENARIOS = {
    "one pair, prompt 600, responses 100": (0, 600, 100, 1),
    "8 pairs of one user, history 2000, prompt 50, responses 50": (2000, 50, 50, 8),
}


def make_model(shape: str, device: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        **SHAPES[shape],
        vocab_size=4096 if shape != "qwen2.5-0.5b" else 151_936,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        initializer_range=0.05,
        num_labels=1,
        pad_token_id=0,
    )
    return transformers.AutoModelForSequenceClassification.from_config(config).to(device)


def make_sequences(user: int, prompt: int, response: int, pairs: int, seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> list[int]:
        return torch.randint(1, 4096, (n,), generator=draw).tolist()

    history = tokens(user)
    prompts = [history + tokens(prompt) for _ in range(pairs)]
    return [text + tokens(response) for text in prompts for _ in ("chosen", "rejected")]


def bradley_terry(rewards: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2]).mean()


def measure(model: transformers.PreTrainedModel, sequences: list[list[int]], repeats: int) -> dict:
    device = model.device
    batch = torch.tensor(sequences, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def naive() -> torch.Tensor:
        return model(batch, use_cache=False).logits[:, 0]

    def packed() -> torch.Tensor:
        # Packing is part of the step: the collator does it.
        return sequence_rewards(model, pack_shared_prefix([sequences]))

    def step(rewards) -> tuple[float, torch.Tensor, list[torch.Tensor]]:
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        values = rewards()
        bradley_terry(values).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return seconds, values.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    times: dict[str, list[float]] = {"naive": [], "packed": []}
    for _ in range(repeats):
        seconds, expected, gradients = step(naive)
        times["naive"].append(seconds)
        seconds, found, packed_gradients = step(packed)
        times["packed"].append(seconds)
    reward_gap = (found - expected).abs().max().item()
    gradient_gap = max(
        ((a - b).norm() / a.norm().clamp(min=1e-12)).item() for a, b in zip(gradients, packed_gradients)
    )
    total = sum((b**2).sum() for b in gradients) ** 0.5
    overall_gap = (sum(((a - b) ** 2).sum() for a, b in zip(gradients, packed_gradients)) ** 0.5 / total).item()
    assert reward_gap <= 1e-4, f"rewards differ by {reward_gap:.2g}"
    assert overall_gap <= 1e-4, f"gradients differ by {overall_gap:.2g}, relative"
    trees = pack_shared_prefix([sequences])
    naive_time, packed_time = (statistics.median(times[name]) for name in ("naive", "packed"))
    return {
        "naive_s": naive_time,
        "packed_s": packed_time,
        "ratio": naive_time / packed_time,
        "token_ratio": trees.n_naive_tokens / trees.n_tokens,
        "max_reward_difference": reward_gap,
        "relative_gradient_difference": overall_gap,
        "worst_parameter_gradient_difference": gradient_gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind; the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    model = make_model(args.shape, args.device)
    model.train()
    results = {}
    print(
        f"{args.shape} ({sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters), float32, {args.device}, "
        f"{torch.get_num_threads()} threads"
    )
    for number, (name, (user, prompt, response, pairs)) in enumerate(SCENARIOS.items()):
        result = measure(model, make_sequences(user, prompt, response, pairs, number), args.repeats)
        results[name] = result
        print(
            f"  {name}: {result['ratio']:.2f}x faster ({result['naive_s']:.2f} s -> {result['packed_s']:.2f} s; "
            f"{result['token_ratio']:.2f}x fewer tokens); rewards within {result['max_reward_difference']:.1e}, "
            f"gradients within {result['relative_gradient_difference']:.1e}"
        )
    if args.output:
        machine = {"device": args.device, "threads": torch.get_num_threads(), "processor": platform.machine()}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        content = {"schema": 1, "shape": args.shape, "machine": machine, "versions": versions, "results": results}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
