"""Scoring responses under a user's text with `packing: shared_prefix` against one padded sequence a response.

Rewards are asserted equal, and those of `score_matrix` as well.

    python -m evals.bench.packed_scores                 # a small model of the Qwen2.5 family, a minute of one core
    python -m evals.bench.packed_scores --device cuda
"""

from __future__ import annotations

import torch

from pluralrlhf import PersonalizedRewardModel
from pluralrlhf.modeling.text import user_text

from .common import finish, in_turns, parser_for
from .models import SHAPES, backbone, word_tokenizer, words

N_TEXT, N_PROMPT, N_RESPONSE = 2000, 50, 50
TOLERANCE = 1e-4


def run(shape: str = "small", n_responses: int = 16, repeats: int = 2, device: str = "cpu") -> dict:
    torch.set_float32_matmul_precision("highest")
    draw = torch.Generator().manual_seed(0)
    tokenizer = word_tokenizer()
    settings = {"max_words": 2 * N_TEXT}
    model = PersonalizedRewardModel.from_backbone(
        backbone(shape, device), "extract", settings, tokenizer=tokenizer, pooling="last"
    )
    model = model.to(device).eval()
    states = [user_text(model, words(N_TEXT, draw)) for _ in range(2)]
    prompts = [words(N_PROMPT, draw)] * n_responses
    responses = [words(N_RESPONSE, draw) for _ in range(n_responses)]
    given = {"batch_size": n_responses}
    seconds, rewards = in_turns(
        {
            "padded": lambda: model.score(prompts, responses, states[0], **given),
            "packed": lambda: model.score(prompts, responses, states[0], packing="shared_prefix", **given),
        },
        repeats,
        device,
    )
    gap = (rewards["packed"] - rewards["padded"]).abs().max().item()
    spread = rewards["padded"].std().item()
    assert gap <= TOLERANCE < spread, f"rewards differ by {gap:.2g}, with a spread of {spread:.2g}"
    both = type(states[0]).cat(states)
    matrix = model.score_matrix(both, prompts, responses, packing="shared_prefix", **given)
    assert (matrix[0] - rewards["padded"]).abs().max() <= TOLERANCE
    return {
        "shape": shape,
        "responses": n_responses,
        "padded_s": seconds["padded"],
        "packed_s": seconds["packed"],
        "ratio": seconds["padded"] / seconds["packed"],
        "reward_difference": gap,
    }


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--responses", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2, help="calls of each kind; the median counts")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    finish("packed_scores", run(args.shape, args.responses, args.repeats, args.device), args.output, args.device)


if __name__ == "__main__":
    main()
