"""An interview with one user: which two responses to show next, and what the answers have taught so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import ConfigError
from ..files import json_digest
from ..user_models.elicitation import ACQUISITIONS, Pairs, Uncertainty, next_question, predictive

if TYPE_CHECKING:
    from ..modeling import PersonalizedRewardModel
    from ..user_models import UserState


class Interview:
    """Asks one user for choices between two responses, and updates the model's state of the user after each.

    Example:

    ```python
    >>> talk = Interview(model, [{"prompt": "Tea?", "responses": ["Green, no sugar.", "Black, with milk!"]}, ...])
    >>> while not talk.sure:
    ...     question = talk.next()
    ...     talk.answer(question, 0 if input(talk.candidates[question]) == "a" else 1)
    >>> talk.state.to_json()
    ```

    Args:
        model: A head-route reward model.
        candidates: Pairs to ask from: `prompt` and `responses` (two texts or message lists), or `prompt`, `chosen`,
            `rejected`, whose order is not looked at.
        targets: Pairs whose choices are to be predicted, in the same form; the candidates if not given.
        acquisition: `epig`, `bald`, `d_optimal`, `random`, or `fixed` (the order of `candidates`).
        pairs: Choices that are known already (`prompt`, `chosen`, `rejected`).
        sure_below: The interview is over once the epistemic entropy of the targets, in nats and on average, is below
            this; never for a method without a posterior.
        n_draws: Draws from the posterior.
        seed: Seed of the draws and of `random`.

    Raises:
        ConfigError: A text-route model, an acquisition that needs a posterior for a method without, or no candidates.
    """

    def __init__(
        self,
        model: PersonalizedRewardModel,
        candidates: Sequence[Mapping[str, Any]],
        *,
        targets: Sequence[Mapping[str, Any]] | None = None,
        acquisition: Literal["epig", "bald", "d_optimal", "random", "fixed"] = "epig",
        pairs: Sequence[Mapping[str, Any]] = (),
        sure_below: float = 0.02,
        n_draws: int = 512,
        seed: int = 0,
    ):
        head = model.user_model
        if head.route != "head":
            raise ConfigError(
                f"`model` is `{head.name}`, which reads texts for every answer; interview with a head-route model."
            )
        if not head.uses_context:
            raise ConfigError(f"`model` is `{head.name}`, which does not use the user: no answer changes anything.")
        if acquisition not in (*ACQUISITIONS, "fixed"):
            raise ConfigError(f"`acquisition` is {acquisition!r}; use one of {', '.join((*ACQUISITIONS, 'fixed'))}.")
        if acquisition not in ("random", "fixed") and not head.has_posterior:
            raise ConfigError(
                f"`acquisition` is {acquisition!r}, and `{head.name}` has no posterior over users. Use `random`, or a "
                "model with one (bayes_head, ours, vpl, spl, lore, pal)."
            )
        self.model, self.acquisition, self.sure_below = model, acquisition, sure_below
        self.n_draws, self.seed = n_draws, seed
        self.candidates = [_question(row, number, "candidates") for number, row in enumerate(candidates, 1)]
        if not self.candidates:
            raise ConfigError("`candidates` is empty: give at least one pair of responses.")
        self._pool = self._prepare(self.candidates)
        goals = None if targets is None else [_question(row, n, "targets") for n, row in enumerate(targets, 1)]
        self._targets = self._prepare(goals) if goals else self._pool
        self.pairs: list[dict[str, Any]] = [dict(pair) for pair in pairs]
        self._known = self._features([(p["prompt"], [p["chosen"], p["rejected"]]) for p in self.pairs])
        self._asked: list[int] = []
        self.left = list(range(len(self.candidates)))
        self._update()

    def _features(self, pairs: Sequence[tuple[Any, Sequence[Any]]]) -> torch.Tensor:
        """(n, 2, d) standardised features."""
        prompts = [prompt for prompt, _ in pairs for _ in range(2)]
        responses = [response for _, two in pairs for response in two]
        with torch.no_grad():
            features = self.model.user_model.standardize(self.model.eval().featurize(prompts, responses))
        return features.unflatten(0, (len(pairs), 2)) if pairs else features.reshape(0, 2, self._dim)

    @property
    def _dim(self) -> int:
        return self.model.user_model.feature_dim

    def _prepare(self, questions: Sequence[dict[str, Any]]) -> Pairs:
        return Pairs(self.model.user_model, self._features([(q["prompt"], q["responses"]) for q in questions]))

    @torch.no_grad()
    def _update(self) -> None:
        index = torch.arange(len(self._known), device=self._known.device)[None]
        self.state: UserState = self.model.user_model.encode(self._known, index, torch.ones_like(index).bool())
        self.state.provenance["model"] = self.model.config.name_or_path
        self.state.provenance["user_model_sha256"] = self.model._user_model_sha256()
        self.state.provenance["pair_ids"] = [pair.get("pair_id") for pair in self.pairs]

    def next(self) -> int | None:
        """Number of the candidate to ask next, `None` when all were asked or skipped."""
        if not self.left:
            return None
        if self.acquisition == "fixed":
            return self.left[0]
        # A draw of its own for each question: `random` would otherwise repeat its order's first place.
        seed = self.seed + len(self._asked) if self.acquisition == "random" else self.seed
        options = {"targets": self._targets, "n_draws": self.n_draws, "seed": seed}
        return self.left[next_question(self._pool.rows(self.left), self.state, self.acquisition, **options)[0]]

    def answer(self, question: int, choice: int | None) -> None:
        """Takes the user's answer: 0 for the first response, 1 for the second, `None` to skip the question.

        Raises:
            ConfigError: The question was asked before, or the choice is none of these.
        """
        if question not in self.left or choice not in (0, 1, None):
            raise ConfigError(
                f"`question` {question} with `choice` {choice!r}: give 0, 1 or None, each question once."
            )
        self.left.remove(question)
        self._asked.append(question)
        if choice is None:
            return
        row = self.candidates[question]
        chosen, rejected = row["responses"][choice], row["responses"][1 - choice]
        self.pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "pair_id": row["pair_id"]})
        features = self._pool.features[question]
        self._known = torch.cat([self._known, (features.flip(0) if choice else features)[None]])
        self._update()

    def predict(self) -> Uncertainty:
        """What the user would choose in each target, and how much of the doubt is about the user."""
        return predictive(self._targets, self.state, self.n_draws, self.seed)

    def expects(self, question: int) -> float:
        """Predictive probability that the user prefers the first response of a candidate."""
        return float(predictive(self._pool.rows([question]), self.state, self.n_draws, self.seed).probability[0])

    @property
    def doubt(self) -> float | None:
        """Epistemic entropy of the targets in nats, on average; `None` for a method without a posterior."""
        return float(self.predict().epistemic.mean()) if self.model.user_model.has_posterior else None

    @property
    def sure(self) -> bool:
        """Whether more answers would hardly change what is predicted."""
        doubt = self.doubt
        return doubt is not None and doubt < self.sure_below

    def to_json(self) -> dict[str, Any]:
        """The user's state, with the choices that it came from under `pairs`."""
        return {**self.state.to_json(), "pairs": self.pairs}


def _question(row: Mapping[str, Any], number: int, name: str) -> dict[str, Any]:
    """`prompt`, two `responses` and `pair_id` of a candidate."""
    responses = row.get("responses") or [row.get("chosen"), row.get("rejected")]
    if not row.get("prompt") or len(responses) != 2 or not all(responses):
        raise ConfigError(f"`{name}`, number {number}: give `prompt` and two `responses`, or `chosen` and `rejected`.")
    if responses[0] == responses[1]:
        raise ConfigError(
            f"`{name}`, number {number}: the two responses are the same, so that no answer tells anything."
        )
    if not row.get("responses") and repr(responses[0]) > repr(responses[1]):
        # The order in which a recorded pair is shown must not say what was chosen.
        responses = responses[::-1]
    # Without an id of its own a question is what it says: a number would be another question's in another file.
    own = json_digest([row["prompt"], sorted(map(json_digest, responses))])
    return {"prompt": row["prompt"], "responses": list(responses), "pair_id": row.get("pair_id") or own}
