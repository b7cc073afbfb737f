"""A training step with `packing: shared_prefix` against TRL's `RewardTrainer`, with equal results asserted.

TRL's step has no padding waste: all its sequences are of one length. Both trainers hold the same weights, take turns on
the machine, and a step is collation, loss, backward, AdamW; the ratio is of medians, of CPU seconds on a CPU.

    python -m evals.bench.shared_prefix                        # a small model of the Qwen2.5 family, two minutes
    python -m evals.bench.shared_prefix --shape qwen2.5-0.5b --scenarios prompt --repeats 1   # random weights
    python -m evals.bench.shared_prefix --device cuda --attention flex_attention   # also tokens/s, memory, share of peak
"""

from __future__ import annotations

import statistics
import tempfile

import torch

from .common import clock, finish, parser_for
from .models import SHAPES, reward_model, word_tokenizer, words

# name -> tokens of what all pairs share, of each prompt, of each response; pairs of one user
SCENARIOS = {"prompt": (0, 600, 100, 1), "history": (2000, 50, 50, 8)}
GATES = {"prompt": 1.4, "history": 5.0}
TOLERANCE = 1e-4
# Dense float32 (TF32 off) and bfloat16 peaks in TFLOP/s, where a GPU's name says which it is.
PEAKS = {"H200": {torch.float32: 67.0, torch.bfloat16: 989.0}, "H100": {torch.float32: 67.0, torch.bfloat16: 989.0}}


def make_rows(shared: int, prompt: int, response: int, pairs: int) -> list[dict]:
    draw = torch.Generator().manual_seed(pairs)
    history = words(shared, draw) + " " if shared else ""
    rows = []
    for number in range(pairs):
        text = history + words(prompt, draw) + " "
        sides = [words(response - 1, draw) for _ in range(2)]  # the tokenizer ends each text with a token
        ids = {"user_id": "u", "pair_id": f"p{number}", "item_ids": [f"i{number}"]}
        rows.append({**ids, "prompt": text, "chosen": sides[0], "rejected": sides[1]})
    return rows


def make_trainers(model, rows: list[dict], folder: str, device: str):
    """TRL's trainer and ours on the same weights and tokens."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer

    common = {"per_device_train_batch_size": len(rows), "report_to": "none", "disable_tqdm": True, "bf16": False,
              "gradient_checkpointing": False, "max_length": None, "use_cpu": device == "cpu", "learning_rate": 0.0}  # fmt: skip
    ours = PersonalizedRewardTrainer(
        model.model,
        PersonalizedRewardConfig(
            folder, user_model="btl", user_model_kwargs={"head": "linear"}, packing="shared_prefix", **common
        ),
        Dataset.from_list(rows),
        processing_class=word_tokenizer(),
    )
    ours.reward_model.user_model.head.weight = model.score.weight
    tokens = [{"chosen_ids": ours.pairs._tokens[0][i].tolist(), "rejected_ids": ours.pairs._tokens[1][i].tolist()}
              for i in range(len(rows))]  # fmt: skip
    assert len({len(ids) for row in tokens for ids in row.values()}) == 1, "no padding"
    theirs = RewardTrainer(
        model, RewardConfig(folder, **common), train_dataset=Dataset.from_list(tokens),
        processing_class=word_tokenizer(),
    )  # fmt: skip
    return theirs, ours


def measure(model, scenario: str, repeats: int, device: str) -> dict:
    rows = make_rows(*SCENARIOS[scenario])
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = make_trainers(model, rows, folder, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    examples = {"trl": list(theirs.train_dataset), "packed": [{"row": i, "epoch": 0} for i in range(len(rows))]}
    trainers = {"trl": theirs, "packed": ours}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    rewards, gradients, memory = {}, {}, {}

    now = clock(device)

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for turn in range(repeats + (device == "cuda")):  # on a GPU the first one compiles
        for name, trainer in trainers.items():
            trainer.model.train()
            optimizer.zero_grad()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            synchronize()
            start = now()
            inputs = trainer._prepare_inputs(trainer.data_collator(examples[name]))
            loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
            trainer.accelerator.backward(loss)
            optimizer.step()
            synchronize()
            if turn or device != "cuda":
                seconds[name].append(now() - start)
            rewards[name] = outputs.logits.detach().squeeze(-1)
            if device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            if turn == 0:
                gradients[name] = [p.grad.clone() for p in model.parameters()] if name == "trl" else None
                if name == "packed":
                    pairs = zip(gradients["trl"], [p.grad for p in model.parameters()])
                    difference = sum(((a - b) ** 2).sum().item() for a, b in pairs) ** 0.5
                    gradient_gap = difference / sum((a**2).sum().item() for a in gradients["trl"]) ** 0.5
                    gradients.clear()
    reward_gap = (rewards["packed"] - rewards["trl"]).abs().max().item()
    tolerance = TOLERANCE if device == "cpu" else 1e-3
    assert reward_gap <= tolerance, f"rewards differ by {reward_gap:.2g}"
    assert gradient_gap <= tolerance, f"gradients differ by {gradient_gap:.2g}, relative"
    naive, packed = (statistics.median(seconds[name]) for name in ("trl", "packed"))
    n_naive = sum(len(ids) for row in examples["trl"] for key, ids in row.items() if key.endswith("_ids"))
    batch = ours.data_collator(examples["packed"])
    n_packed = batch["packed_input_ids"].numel()
    found = {
        "trl_s": naive,
        "packed_s": packed,
        "ratio": naive / packed,
        "token_ratio": n_naive / n_packed,
        "reward_difference": reward_gap,
        "relative_gradient_difference": gradient_gap,
        "gate": GATES[scenario],
        "passed": naive / packed >= GATES[scenario],
    }
    if device == "cuda":
        n_weights = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
        peak = next((v for key, v in PEAKS.items() if key in torch.cuda.get_device_name()), {}).get(model.dtype)
        for name, tokens in (("trl", n_naive), ("packed", n_packed)):
            rate = tokens / statistics.median(seconds[name])
            found[f"{name}_tokens_per_second"] = n_naive / statistics.median(seconds[name])
            found[f"{name}_gib"] = memory[name]
            if peak:
                found[f"{name}_share_of_peak"] = 6 * n_weights * rate / (peak * 1e12)
    return found


def run(
    shape: str = "small",
    repeats: int = 5,
    device: str = "cpu",
    scenarios: tuple[str, ...] = tuple(SCENARIOS),
    attention: str = "sdpa",
) -> dict:
    torch.set_float32_matmul_precision("highest")
    model = reward_model(shape, device)
    model.set_attn_implementation(attention)
    found = {name: measure(model, name, repeats, device) for name in scenarios}
    n_parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return {"shape": shape, "parameters_m": n_parameters, "attention": attention, **found,
            "passed": all(result["passed"] for result in found.values())}  # fmt: skip


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind; the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", choices=["sdpa", "flex_attention"], default="sdpa")
    args = parser.parse_args()
    figures = run(args.shape, args.repeats, args.device, tuple(args.scenarios), args.attention)
    finish("shared_prefix", figures, args.output, args.device)


if __name__ == "__main__":
    main()
