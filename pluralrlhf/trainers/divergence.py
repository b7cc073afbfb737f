"""Training whose loss is no number any more is stopped, so that no model is saved that has learned nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ..errors import NumericError

# Under fp16 a step whose gradients overflow is left out and the scale lowered: it is many in a row that tell.
_FP16_LOGS = 25
_REMEDY = (
    "Lower `learning_rate`, set `max_grad_norm`, train in `bf16` in place of `fp16`, and see that the data's numbers "
    "are as meant."
)


class DivergenceCallback(TrainerCallback):
    """Looks at what is logged of loss and gradient, and at the weights before they are saved for good.

    transformers replaces a loss that is no number by the mean of those before it, trains on, and saves weights of NaN.

    Raises:
        NumericError: At the log, or at the end of training.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        self._in_a_row = 0
        if not args.fp16:
            args.logging_nan_inf_filter = False

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        seen = {name: (logs or {}).get(name) for name in ("loss", "grad_norm", "train_loss", "reader/loss")}
        seen = {name: value for name, value in seen.items() if isinstance(value, (int, float))}
        wrong = [name for name, value in seen.items() if not math.isfinite(value)]
        if not seen:
            return
        self._in_a_row = self._in_a_row + 1 if wrong else 0
        if self._in_a_row >= (_FP16_LOGS if args.fp16 else 1):
            raise NumericError(
                f"At step {state.global_step} `{wrong[0]}` is {seen[wrong[0]]} (`learning_rate` {args.learning_rate}): "
                f"training has diverged, and is stopped with nothing more saved. {_REMEDY}"
            )

    def on_train_end(self, args, state, control, model: nn.Module | None = None, **kwargs: Any) -> None:
        if model is not None:
            check_weights(model)


@torch.no_grad()
def check_weights(model: nn.Module) -> None:
    """Asks that every trained weight is a number.

    Raises:
        NumericError: One is NaN or infinite.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # Of a sharded weight each process looks at its own part.
    parts = ((name, weight.to_local() if hasattr(weight, "to_local") else weight) for name, weight in trained)
    wrong = [name for name, weight in parts if not torch.isfinite(weight).all()]
    if wrong:
        raise NumericError(
            f"After training {len(wrong)} of {len(trained)} weights are NaN or infinite, `{wrong[0]}` among them: the "
            f"model is not saved. {_REMEDY}"
        )
