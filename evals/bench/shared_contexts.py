"""A training step in which targets that read the same context share its encoding, against a step that encodes it for each.

Users compare statements, each pair two of a hundred; targets and contexts are drawn as in training (1,024 targets a
step, groups of 48, up to 32 pairs of context that share no statement with the target). Timed: finding what is shared,
encoding, loss, backward. Losses and gradients of both ways are asserted equal.

    python -m evals.bench.shared_contexts
"""

from __future__ import annotations

import numpy as np
import torch

from .common import finish, in_turns, parser_for

METHODS = ("ours", "bayes_head", "vpl", "mrm")
BATCH, K, GROUP, DIM = 1024, 32, 48, 384


def votes(n_users: int = 60, pairs_per_user: int = 170, n_statements: int = 100):
    """A history of pairs of statements, users and statements drawn at random."""
    from datasets import Dataset

    from pluralrlhf.data.history import UserHistory

    rng = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{user}", "pair_id": f"u{user}-{number}", "item_ids": [f"s{item}" for item in items]}
        for user in range(n_users)
        for number in range(pairs_per_user)
        for items in [rng.choice(n_statements, 2, replace=False)]
    ]
    return UserHistory({"train": Dataset.from_list(rows)}, GROUP)


def run(repeats: int = 5) -> dict:
    from pluralrlhf.data.contexts import distinct_contexts, distinct_pairs
    from pluralrlhf.user_models import build_user_model

    history = votes()
    order = history.epoch_order(history.rows("train"), seed=0, epoch=0, pairs_per_user=GROUP)
    rows = history.rows("train")[order[:BATCH]]
    contexts = history.context(
        rows, history.draw_n_context(rows, K, seed=0, epoch=0, no_context=0.25), seed=0, epoch=0
    )
    features = torch.randn(history.n_rows, 2, DIM, generator=torch.Generator().manual_seed(0))
    pool = torch.from_numpy(history.pool_size(rows))
    chosen, rejected = features[torch.from_numpy(rows)].unbind(1)
    found = {}
    for method in METHODS:
        torch.manual_seed(0)
        model = build_user_model(method, DIM, {}).eval()

        def step(shared: bool, model=model):
            def timed() -> dict[str, torch.Tensor]:
                model.zero_grad()
                given, _, of_target = distinct_contexts(contexts) if shared else (contexts, None, None)
                index, mask, distinct, _ = distinct_pairs(given)
                state = model.encode(
                    features[torch.from_numpy(distinct)], torch.from_numpy(index), torch.from_numpy(mask)
                )
                state = state.rows(torch.from_numpy(of_target)) if shared else state
                loss = model(chosen, rejected, state, None, pool).loss
                loss.backward()
                return {"loss": loss.detach()} | {
                    name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
                }

            return timed

        seconds, results = in_turns({"each": step(False), "shared": step(True)}, repeats)
        torch.testing.assert_close(results["shared"], results["each"], rtol=1e-3, atol=1e-5)
        found[method] = {
            "ratio": seconds["each"] / seconds["shared"],
            "each_s": seconds["each"],
            "shared_s": seconds["shared"],
        }
    return {"targets": BATCH, "contexts": len(distinct_contexts(contexts)[0]), "methods": found}


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    finish("shared_contexts", run(args.repeats), args.output)


if __name__ == "__main__":
    main()
