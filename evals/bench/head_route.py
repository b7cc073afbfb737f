"""A training step with 8 pairs of context a user against a plain Bradley-Terry step on the same backbone.

Contexts come from the table of `context_refresh_steps`, or are encoded in every step. Each of the batch's users has
another context, so that re-encoding finds nothing to share. Timed: collation, loss, backward, AdamW. Right after a
refresh the rewards of both ways are asserted equal (the table is in half precision).

    python -m evals.bench.head_route
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from .common import finish, in_turns, parser_for
from .models import SHAPES, backbone, preference_rows, word_tokenizer

K, BATCH = 8, 8
GATES = {"over_bradley_terry": 1.10, "reencoding_over_cached": 6.0}


def make_trainer(folder: str, shape: str, device: str, user_model: str, **settings):
    from datasets import Dataset

    from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer

    args = PersonalizedRewardConfig(
        folder, user_model=user_model, n_context=K, per_device_train_batch_size=BATCH, report_to="none",
        per_device_eval_batch_size=BATCH, disable_tqdm=True, bf16=False, gradient_checkpointing=False,
        max_length=None, use_cpu=device == "cpu", **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    data = Dataset.from_list(preference_rows(n_users=BATCH, n_pairs=K + 1, n_words=100))
    return PersonalizedRewardTrainer(backbone(shape, device), args, data, processing_class=word_tokenizer())


def run(shape: str = "small", repeats: int = 5, device: str = "cpu") -> dict:
    with tempfile.TemporaryDirectory() as folder:
        plain = make_trainer(folder, shape, device, "btl")
        cached = make_trainer(folder, shape, device, "vpl", context_refresh_steps=1000)
        encoded = make_trainer(folder, shape, device, "vpl")
        encoded.reward_model.user_model.load_state_dict(cached.reward_model.user_model.state_dict())
        cached._refresh(cached.model)
        rows = np.arange(0, BATCH * (K + 1), K + 1)  # one pair of each user

        def step(trainer, by_row: bool):
            optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.0, weight_decay=0.0)
            trainer.model.train()

            def timed() -> torch.Tensor:
                torch.manual_seed(0)
                context = trainer.pairs.history.context(rows, K)
                batch = trainer._prepare_inputs(trainer.pairs.batch(rows, context, context_by_row=by_row))
                loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                return outputs.logits.detach()

            return timed

        seconds, rewards = in_turns(
            {"bradley_terry": step(plain, False), "cached": step(cached, True), "reencoded": step(encoded, False)},
            repeats, device,
        )  # fmt: skip
        spread = rewards["reencoded"].std()
        difference = ((rewards["cached"] - rewards["reencoded"]).abs().max() / spread).item()
        assert difference < 1e-2, f"rewards differ by {difference:.2g} of their spread"
        over = seconds["cached"] / seconds["bradley_terry"]
        against = seconds["reencoded"] / seconds["cached"]
        return {
            "shape": shape,
            "tokens_a_side": int(plain.pairs.lengths(rows).max()),
            **{f"{name}_s": value for name, value in seconds.items()},
            "over_bradley_terry": over,
            "reencoding_over_cached": against,
            "reward_difference_of_spread": difference,
            "gates": GATES,
            "passed": over <= GATES["over_bradley_terry"] and against >= GATES["reencoding_over_cached"],
        }


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    finish("head_route", run(args.shape, args.repeats, args.device), args.output, args.device)


if __name__ == "__main__":
    main()
