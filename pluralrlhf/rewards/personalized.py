"""A personalised reward model as a TRL reward function."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import ConfigError
from ..modeling.packing import check_packing
from ..user_models import UserState
from .scale import RewardScale, Scale

if TYPE_CHECKING:
    from ..features.tokenization import Messages
    from ..modeling import PersonalizedRewardModel

_COLUMNS = ("user_id", "prompt", "chosen", "rejected")


class PersonalizedReward:
    """Scores completions by what their user prefers, for `GRPOTrainer` and `RLOOTrainer`.

    Example:

    ```python
    >>> reward = PersonalizedReward(model, data["train"])
    >>> GRPOTrainer("Qwen/Qwen2.5-0.5B", reward_funcs=reward, train_dataset=prompts_with_user_id)
    ```

    Args:
        model: The reward model; it is put in evaluation mode and scores on the device where it is.
        history: The users' labelled pairs: a dataset with `user_id`, `prompt`, `chosen`, `rejected`, or a mapping from
            user id to a list of such pairs, or to the user's state (a summary edited by hand, say). Not needed where
            the training rows have a `context` column with pairs.
        n_context: Most pairs a user, the first ones; all of them if `None`.
        unknown_users: `error`, or `prior`: users without history are scored at k = 0 and counted in the log as
            `unknown_users`.
        scale: `none`, or one scale for all users: `standardize` (by each user's mean and standard deviation over the
            references) or `spo` (share of the references to the same prompt that a response beats). With either, set
            `scale_rewards="none"` in `GRPOConfig`. See [`RewardScale`].
        references: Responses that fix the scale, rows with `prompt` and `responses`, or with `chosen` and `rejected`.
        packing: `shared_prefix` has a trained backbone read what the texts of a batch begin with in common (the text about
            a user, the prompt of a group) once, with the same rewards.

    Raises:
        ConfigError: `model`, `history` or a setting is of another kind. When called: rows with neither `user_id` nor
            `context`, or a user without history.
    """

    def __init__(
        self,
        model: PersonalizedRewardModel,
        history: Any = None,
        n_context: int | None = None,
        unknown_users: Literal["error", "prior"] = "error",
        scale: Scale = "none",
        references: Sequence[Mapping[str, Any]] | None = None,
        packing: str | None = None,
    ):
        if not hasattr(model, "encode_users"):
            raise ConfigError(
                f"`model` is {_told(model)}; give a loaded model: `PersonalizedRewardModel.from_pretrained(FOLDER)`."
            )
        check_packing(model, packing)
        if n_context is not None and (type(n_context) is not int or n_context < 0):
            raise ConfigError(
                f"`n_context` is {n_context!r}; give a whole number of at least 0, or None for all pairs."
            )
        if unknown_users not in ("error", "prior"):
            raise ConfigError(f"`unknown_users` is {unknown_users!r}; use 'error' or 'prior'.")
        self.model = model.eval()
        self.__name__ = "personalized_reward"
        self.n_context, self.unknown_users, self.packing = n_context, unknown_users, packing
        self.scale = RewardScale(self.model, scale, references, packing)
        self.history = _by_user(history)
        self._states: dict[str, UserState] = {}

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Messages],
        completions: Sequence[Messages],
        user_id: Sequence[str] | None = None,
        context: Sequence[Sequence[dict[str, Any]]] | None = None,
        log_metric: Any = None,
        **_: Any,
    ) -> list[float]:
        """One reward a completion; `user_id` and `context` are columns of the training data, passed on by TRL."""
        if context is not None:
            keys = ["context:" + json.dumps(pairs, sort_keys=True) for pairs in context]
            pairs_of = dict(zip(keys, context))
        elif user_id is not None:
            keys = [str(user) for user in user_id]
            pairs_of = {key: self.history.get(key) for key in dict.fromkeys(keys)}
        else:
            raise ConfigError("The training data has neither a `user_id` nor a `context` column; add one of them.")
        unknown = [key for key, pairs in pairs_of.items() if pairs is None]
        if unknown and self.unknown_users == "error":
            named = ", ".join(repr(user[:40]) for user in unknown[:3]) + (" …" if len(unknown) > 3 else "")
            raise ConfigError(
                f"{len(unknown)} of {len(pairs_of)} users have no pairs in `history`: {named}. Add them, or pass "
                "`unknown_users='prior'` to score them as unknown users."
            )
        if log_metric is not None and unknown:
            log_metric("unknown_users", float(len(unknown)))
        new = [key for key in pairs_of if key not in self._states]
        self._states |= {key: pairs_of[key] for key in new if isinstance(pairs_of[key], UserState)}
        new = [key for key in new if key not in self._states]
        if new:
            states = self.model.encode_users([(pairs_of[key] or [])[: self.n_context] for key in new])
            for number, key in enumerate(new):
                self._states[key] = states.rows(slice(number, number + 1))
        picked = [self._states[key] for key in keys]
        rewards = self.model.score(prompts, completions, type(picked[0]).cat(picked), packing=self.packing).float()
        rewards = self.scale(rewards, prompts, keys, self._states).cpu().tolist()
        if context is not None:
            # Contexts come with every row and hardly repeat; users do.
            self._states.clear()
            self.scale.forget()
        return rewards

    def forget(self, user_id: str) -> int:
        """Removes a user's pairs and state; returns how many pairs there were."""
        user_id = str(user_id)  # ids that are integers in a dataset are kept as texts
        self._states.pop(user_id, None)
        self.scale.forget(user_id)
        known = self.history.pop(user_id, [])
        return 0 if isinstance(known, UserState) else len(known)


def _by_user(history: Any) -> dict[str, list[dict[str, Any]] | UserState]:
    """Each user's pairs or state, from any of the forms that `history` takes."""
    if history is None:
        return {}
    if isinstance(history, str | PathLike) or not isinstance(history, Iterable):
        raise ConfigError(f"`history` is {_told(history)}; give a dataset of pairs: `load_pairs(FOLDER)['train']`.")
    found: dict[str, list[dict[str, Any]] | UserState] = {}
    if isinstance(history, Mapping):
        for user, known in history.items():
            if hasattr(known, "column_names"):
                raise ConfigError(
                    f"`history` is a {type(history).__name__} of splits ({', '.join(map(str, history))}); give one of "
                    f"them, such as `history[{user!r}]`."
                )
            if not isinstance(known, UserState) and (isinstance(known, str) or not isinstance(known, Iterable)):
                raise ConfigError(f"`history[{user!r}]` is {_told(known)}; give a list of pairs, or a state.")
            found[str(user)] = known if isinstance(known, UserState) else list(known)
        return found
    for number, row in enumerate(history, 1):
        absent = [key for key in _COLUMNS if _absent(row.get(key))] if isinstance(row, Mapping) else list(_COLUMNS)
        if absent:
            raise ConfigError(
                f"`history`, row {number}: no {', '.join(absent)}. Each pair needs {', '.join(_COLUMNS)}."
            )
        found.setdefault(str(row["user_id"]), []).append({key: row[key] for key in _COLUMNS[1:]})
    return found


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _told(value: Any) -> str:
    return f"the text {value!r:.80}" if isinstance(value, str) else f"a {type(value).__name__}"
