"""One scale for every user's rewards: otherwise whoever has large rewards decides what a policy learns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..features.tokenization import Messages
    from ..modeling import PersonalizedRewardModel
    from ..user_models import UserState

Scale = Literal["none", "standardize", "spo"]
SCALES = ("none", "standardize", "spo")
_LEAST_DEVIATION = 1e-3


class RewardScale:
    r"""Rewards of each user on one scale, set by a fixed set of responses.

    `standardize`: :math:`(r(x, y | u) - m_u) / s_u`, with the mean and standard deviation of u's rewards of all the
    references. `spo`: the share of the references to the same prompt that y beats,
    :math:`\frac1n \sum_j \sigma(r(x, y | u) - r(x, y_j | u))`, in [0, 1] (VPL-SPO). In `GRPOTrainer` set
    `scale_rewards="none"`: dividing by the group's standard deviation would cancel any positive scaling of a user's
    rewards.

    Args:
        model: The reward model.
        scale: `none`, `standardize` or `spo`.
        references: Responses that fix the scale: rows with `prompt` and `responses`, or with `prompt`, `chosen`,
            `rejected` (a dataset of pairs will do). For `spo` every prompt that is scored must be among them.
        packing: As for [`PersonalizedRewardModel.score`].

    Raises:
        ConfigError: An unknown scale, no or too few references, or (when scoring with `spo`) a prompt without any.
    """

    def __init__(
        self,
        model: PersonalizedRewardModel,
        scale: Scale = "none",
        references: Sequence[Mapping[str, Any]] | None = None,
        packing: str | None = None,
    ):
        if scale not in SCALES:
            raise ConfigError(f"`scale` is {scale!r}; it must be one of {', '.join(SCALES)}.")
        self.model, self.scale, self.packing = model, scale, packing
        self.prompts: list[Messages] = []
        self.responses: list[Messages] = []
        self.rows_of: dict[str, list[int]] = {}
        if scale == "none":
            return
        seen: set[str] = set()
        for number, row in enumerate(references if references is not None else (), 1):
            if not isinstance(row, Mapping):
                raise ConfigError(
                    f"`references`, number {number}, is a {type(row).__name__}; give rows with `prompt` and `responses`."
                )
            found = row.get("responses") or [row.get("chosen"), row.get("rejected")]
            if not row.get("prompt") or not all(found):
                raise ConfigError(f"`references`, number {number}: give `prompt` and `responses`.")
            for response in found:
                key = _key([row["prompt"], response])
                if key not in seen:
                    seen.add(key)
                    self.rows_of.setdefault(_key(row["prompt"]), []).append(len(self.prompts))
                    self.prompts.append(row["prompt"])
                    self.responses.append(response)
        if len(self.prompts) < 2:
            raise ConfigError(
                f"`scale` is {scale!r} and `references` holds {len(self.prompts)} responses. Give the prompts with the "
                "responses that fix the scale, at least two."
            )
        # A text-route model reads a user before each response; the others compute these features once.
        self._features = None
        if model.user_model.route == "head":
            with torch.no_grad():
                raw = model.eval().featurize(self.prompts, self.responses, packing=packing)
            self._features = model.user_model.standardize(raw)
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def reference_rewards(self, state: UserState, rows: Sequence[int] | None = None) -> Tensor:
        """(U, R) unscaled rewards of the references, or of some of them, under the states of U users."""
        rows = list(range(len(self.prompts))) if rows is None else list(rows)
        if self._features is not None:
            return self.model.user_model.score_matrix(self._features[rows], self.model._checked(state))
        texts = [self.prompts[row] for row in rows], [self.responses[row] for row in rows]
        return self.model.score_matrix(state, *texts, packing=self.packing)

    @torch.no_grad()
    def __call__(
        self, rewards: Tensor, prompts: Sequence[Messages], keys: Sequence[str], states: Mapping[str, UserState]
    ) -> Tensor:
        """Rewards on the scale.

        Args:
            rewards: (n,) unscaled rewards.
            prompts: Prompt of each.
            keys: User of each, a key of `states`; what was computed for a key is kept until `forget`.
            states: User to state (of one user).
        """
        if self.scale == "none":
            return rewards
        for key in dict.fromkeys(keys):
            if key not in self._known:
                self._known[key] = self.reference_rewards(states[key])[0]
        if self.scale == "standardize":
            moments = {
                key: (self._known[key].mean(), self._known[key].std(correction=0)) for key in dict.fromkeys(keys)
            }
            mean, deviation = (torch.stack([moments[key][i] for key in keys]).to(rewards) for i in (0, 1))
            # A user to whom all references are alike has no scale of their own; nor may noise be blown up to one.
            return (rewards - mean) / deviation.clamp(min=_LEAST_DEVIATION)
        missing = {_key(prompt) for prompt in prompts} - self.rows_of.keys()
        if missing:
            raise ConfigError(
                f"`scale: spo` compares with other responses to the same prompt, and {len(missing)} of "
                f"{len({_key(prompt) for prompt in prompts})} prompts have none in `references`. Add them, or use "
                "`standardize`."
            )
        out = []
        for reward, prompt, key in zip(rewards, prompts, keys):
            others = self._known[key][self.rows_of[_key(prompt)]].to(rewards)
            out.append(torch.sigmoid(reward - others).mean())
        return torch.stack(out)

    def forget(self, key: str | None = None) -> None:
        """Drops what was computed for a user, or for all of them."""
        if self.scale != "none":
            self._known.pop(key, None) if key is not None else self._known.clear()


def _key(value: Any) -> str:
    """The same for a prompt as text and as its one user message."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    return json.dumps(value, sort_keys=True, default=str)
