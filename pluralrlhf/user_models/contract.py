"""Whether a user model keeps what `base.py` promises; a method from outside of the package is asked before it is trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import PairOutput, UserModel, UserState

_USERS, _SHOWN, _PAIRS = 3, 4, 7


def check_user_model(model: UserModel, tolerance: float = 1e-3) -> None:
    """Runs a copy of a head-route user model, its weights moved at random, on random features.

    Args:
        model: The user model; it is left as it is, and so are torch's random numbers.
        tolerance: What two rewards that must be equal may differ by, relative to their size or to 1.

    Raises:
        ConfigError: `encode` or `score` returns another type or shape; a reward or the loss is NaN or infinite; the rewards
            depend on the order of the context, on what the mask leaves out, on the rest of the batch, or on how an empty
            context is written.

    Example:
        >>> check_user_model(Centroid(12, CentroidConfig(dim=4)))
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = copy.deepcopy(model).cpu().float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # what begins at zero would hide what it multiplies
            _check_scores(model, tolerance)
        _check_training(model)


def _breach(model: UserModel, what: str) -> ConfigError:
    return ConfigError(f"`{model.name}` does not keep the contract of a user model: {what}.")


def _check_scores(model: UserModel, tolerance: float) -> None:
    pairs, targets = torch.randn(_PAIRS, 2, model.feature_dim), torch.randn(_USERS, model.feature_dim)
    index = torch.stack([torch.randperm(_PAIRS)[:_SHOWN] for _ in range(_USERS)])
    mask = torch.ones(_USERS, _SHOWN, dtype=torch.bool)
    nothing = torch.zeros(_USERS, 0, dtype=torch.long)

    def rewards(index: Tensor, mask: Tensor, pairs: Tensor = pairs, targets: Tensor = targets) -> Tensor:
        state = model.encode(pairs, index, mask)
        _check_state(model, state, len(index))
        found = model.score(targets, state)
        if not isinstance(found, Tensor) or found.shape != (len(index),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise _breach(model, f"`score` of {len(index)} rows returns {shape}, not ({len(index)},)")
        if not torch.isfinite(found).all():
            raise _breach(model, f"`score` returns NaN or infinity with {int(mask[0].sum())} pairs shown")
        return found

    expected = rewards(index, mask)
    without = rewards(index, torch.zeros_like(mask))
    padded = torch.cat([index, torch.randint(_PAIRS, (_USERS, 2))], 1)
    padded_mask = torch.cat([mask, torch.zeros(_USERS, 2, dtype=torch.bool)], 1)
    # A user on their own brings no pairs of others along.
    own, first = torch.arange(_SHOWN)[None], mask[:1]
    alone = [rewards(own, first, pairs[index[user]], targets[user : user + 1]) for user in range(_USERS)]
    same = {
        "the order of a context's pairs": (rewards(index.flip(1), mask), expected),
        "pairs that `context_mask` leaves out": (rewards(padded, padded_mask), expected),
        "who else is in the batch": (torch.cat(alone), expected),
        "how an empty context is written": (rewards(nothing, nothing.bool(), pairs[:0]), without),
    }
    for cause, (found, wanted) in same.items():
        apart = ((found - wanted).abs() / wanted.abs().clamp(min=1)).max().item()
        if apart > tolerance:
            raise _breach(model, f"rewards depend on {cause} (they differ by {apart:.2g})")


def _check_state(model: UserModel, state: UserState, n_users: int) -> None:
    if not isinstance(state, UserState):
        raise _breach(
            model, f"`encode` returns a {type(state).__name__}, not a `UserState(self.name, {{name: tensor}})`"
        )
    if state.method != model.name:
        raise _breach(model, f"`encode` returns a state of {state.method!r}")
    for name, value in state.tensors.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != n_users:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise _breach(
                model, f"the state's {name!r} is {shape} for {n_users} users; its first dimension must be users"
            )


def _check_training(model: UserModel) -> None:
    model.train()
    pairs, (chosen, rejected) = torch.randn(_PAIRS, 2, model.feature_dim), torch.randn(2, _USERS, model.feature_dim)
    index = torch.arange(_USERS * 2).view(_USERS, 2) % _PAIRS
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    output = model(chosen, rejected, model.encode(pairs, index, mask), None, torch.full((_USERS,), 2))
    if not isinstance(output, PairOutput) or output.loss.ndim != 0:
        raise _breach(model, "`forward` must return a `PairOutput` whose `loss` is a scalar")
    if not torch.isfinite(output.loss):
        raise _breach(model, f"the loss is {output.loss.item()}")
    if not output.loss.requires_grad and any(parameter.requires_grad for parameter in model.parameters()):
        raise _breach(model, "the loss depends on no trained parameter")
