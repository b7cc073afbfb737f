"""What every user model is: `encode` a few labelled pairs into a state, `score` responses under that state."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

STATE_SCHEMA = 1


@dataclass
class UserState:
    """What a model knows of one or several users.

    Args:
        method: Name of the user model that made it.
        tensors: Name to tensor; the first dimension of each is the number of users U.
        provenance: For a state that leaves the process: `model`, `model_sha256`, `pair_ids`, `edited`.
    """

    method: str
    tensors: dict[str, Tensor]
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def map(self, function: Callable[[Tensor], Tensor]) -> UserState:
        """The state with `function` applied to each tensor."""
        return dataclasses.replace(self, tensors={name: function(value) for name, value in self.tensors.items()})

    def rows(self, index: Tensor | slice) -> UserState:
        """The states of some users, repeated as `index` says."""
        if isinstance(index, slice):
            return self.map(lambda value: value[index])
        return self.map(lambda value: value.index_select(0, index))

    def to(self, device: torch.device | str) -> UserState:
        return self.map(lambda value: value.to(device))

    @classmethod
    def cat(cls, states: Sequence[UserState]) -> UserState:
        """The users of several states, one after the other.

        States that keep the history itself differ in its length; the shorter ones are filled up with zeros, which their
        masks leave out.
        """
        first = states[0]
        tensors = {name: torch.cat(_filled_up([state.tensors[name] for state in states])) for name in first.tensors}
        return dataclasses.replace(first, tensors=tensors, provenance={})

    def to_json(self) -> dict[str, Any]:
        """A small JSON-ready dictionary of one user's state; `from_json` is its inverse."""
        if len(self) != 1:
            raise ConfigError(f"`to_json` takes the state of one user, this one holds {len(self)}. Use `state.rows`.")
        values = {name: value[0].tolist() for name, value in self.tensors.items()}
        return {"schema": STATE_SCHEMA, "method": self.method, "state": values, "edited": False, **self.provenance}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> UserState:
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: Another schema, or a field is missing.
        """
        if data.get("schema") != STATE_SCHEMA or "state" not in data or "method" not in data:
            raise ConfigError(
                f"Not a user state of schema {STATE_SCHEMA} (found schema {data.get('schema')!r}, keys "
                f"{sorted(data)}). Export it again with this version."
            )
        if not isinstance(data["state"], dict):
            raise ConfigError(f"`state` is a {type(data['state']).__name__}, not names with numbers. Export it again.")
        try:
            tensors = {name: torch.tensor([value]) for name, value in data["state"].items()}
        except (TypeError, ValueError):
            raise ConfigError("`state` holds something that is no number. Export it again.") from None
        wrong = [name for name, value in tensors.items() if not torch.isfinite(value.float()).all()]
        if wrong:
            raise ConfigError(f"`state` is not finite in {wrong}; rewards would be NaN. Export it again.")
        rest = {key: value for key, value in data.items() if key not in ("schema", "method", "state")}
        return cls(data["method"], tensors, rest)


@dataclass
class PairOutput:
    """What a user model makes of a batch of B target pairs.

    Attributes:
        chosen_rewards, rejected_rewards: (B,) rewards.
        loss: Scalar to minimise, the method's own terms included.
        metrics: Name to detached scalar, for the log.
    """

    chosen_rewards: Tensor
    rejected_rewards: Tensor
    loss: Tensor
    metrics: dict[str, Tensor]


def _filled_up(values: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (U_i, ...) with zeros behind what each has, so that all but their first sizes are equal."""
    sizes = [max(each) for each in zip(*(value.shape[1:] for value in values))]

    def padding(value: Tensor) -> list[int]:
        return [n for size, own in zip(reversed(sizes), reversed(value.shape[1:])) for n in (0, size - own)]

    return [F.pad(value, padding(value)) if list(value.shape[1:]) != sizes else value for value in values]


def standard_normal(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal draws of the shape, type and device of `like`.

    They are made where the generator is: one on the processor gives the same draws whatever the device.
    """
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """(B,) negative log-likelihood -log sigma(r+ - r- - margin) of the choices (Bradley and Terry 1952)."""
    difference = chosen - rejected
    return -F.logsigmoid(difference if margin is None else difference - margin)


def mlp(sizes: list[int], slope: float | None = None) -> nn.Sequential:
    """Linear layers of the given sizes with GELU between them, or LeakyReLU where a negative slope is given.

    A last layer of size 1 is a reward and has no bias, which preferences could not tell.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(n_in, n_out, bias=n_out > 1))
        if i < len(sizes) - 2:
            layers.append(nn.GELU() if slope is None else nn.LeakyReLU(slope))
    return nn.Sequential(*layers)


def gather_sum(values: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Sums rows of `values` over each user's context without materialising the gathered rows.

    Args:
        values: (N, d), one row a distinct context pair.
        index: (B, K) rows of `values`.
        mask: (B, K) true where there is a pair.

    Returns:
        (B, d); zeros where the context is empty.
    """
    if not index.shape[1] or not len(values):
        return values.new_zeros(len(index), values.shape[1])
    weights = mask.to(values.dtype)
    return F.embedding_bag(index.masked_fill(~mask.bool(), 0), values, mode="sum", per_sample_weights=weights)


class UserModel(nn.Module):
    """Base of the head-route user models. A method is one file: its config, `encode`, `score`.

    Subclasses set `name` and `config_class`, and implement `encode` and `score`; a method with its own likelihood or
    regulariser overrides `forward` or `regularizer`. Features are those of a (prompt, response), already standardised;
    they do not depend on the user.

    Args:
        feature_dim: d, size of a response's features.
        config: The method's settings.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    uses_context: ClassVar[bool] = True
    has_posterior: ClassVar[bool] = False
    # `head`: a user is a vector. `text`: a user is a text that the reward model reads, see `text/base.py`. `backbone`:
    # a user changes what the backbone computes, see `backbone_route.py`.
    route: ClassVar[str] = "head"
    # Whether the backbone's activations may be computed again in the backward pass (`gradient_checkpointing`).
    recomputable: ClassVar[bool] = True
    # A linear layer that is the whole reward, for methods whose reward is the same for everybody.
    token_head: nn.Linear | None = None

    def __init__(self, feature_dim: int, config: Any):
        super().__init__()
        self.feature_dim, self.config = feature_dim, config
        # Here rather than in the model around it, so that they are saved with the head also where only that is saved.
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_scale", torch.ones(feature_dim))
        self.feature_noise = 0.0
        self.step, self.max_steps = 0, 0

    @torch.no_grad()
    def set_standardization(self, mean: Tensor, scale: Tensor) -> None:
        """Sets the features' mean and standard deviation, (d,) each; a constant dimension keeps scale 1."""
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(torch.where(scale > 1e-6, scale, torch.ones_like(scale)))

    def set_feature_noise(self, noise: float) -> None:
        """Standard deviation of the noise that training adds to standardised features."""
        self.feature_noise = noise

    def standardize(self, features: Tensor) -> Tensor:
        """(..., d) raw features to mean 0 and variance 1 over the training responses, with noise in training."""
        features = (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_scale
        if self.training and self.feature_noise:
            features = features + self.feature_noise * torch.randn_like(features)
        return features

    def warm_starts(self) -> bool:
        """Whether there is a `warm_start`."""
        return False

    def warm_start(self, differences: Tensor, users: Tensor) -> None:
        """First weights from training pairs, before the first step.

        Args:
            differences: (n, d) standardised features, chosen minus rejected.
            users: (n,) whose choice it was.
        """

    def hold_start(self) -> None:
        """Fixes what `warm_start` sets for good: called after it, and again where a saved model is trained further."""

    @property
    def applied_share(self) -> Tensor | None:
        """(), the share of a context's effect that is applied: the buffer `strength` of a method that registers one, which
        the trainer fits to validation users' choices after training. `None` where all of it is."""
        return self._buffers.get("strength")

    def set_step(self, step: int, max_steps: int) -> None:
        """Tells annealed terms the optimiser step; being set from it, they resume exactly and skip evaluation."""
        self.step, self.max_steps = step, max_steps

    def encode(self, context_features: Tensor, context_index: Tensor, context_mask: Tensor) -> UserState:
        """Turns contexts into user states.

        Args:
            context_features: (N, 2, d) features of distinct pairs, chosen first.
            context_index: (B, K) which pairs each user's context holds; what is masked is never read.
            context_mask: (B, K) boolean. All false is k = 0, valid for every method.

        Returns:
            State of B users; it does not depend on the order of the pairs.
        """
        raise NotImplementedError

    def embed(self, features: Tensor) -> Tensor:
        """(n, e) what standardised features (n, d) say that no user changes, for who scores the same responses often."""
        return features

    def on_embedded(self) -> UserModel:
        """The same model, sharing its weights, that reads what `embed` gives wherever features are taken."""
        return self

    def score(self, features: Tensor, state: UserState) -> Tensor:
        """(B,) reward of features (B, d) under the state of the same row."""
        raise NotImplementedError

    def score_pair(self, chosen: Tensor, rejected: Tensor, state: UserState) -> tuple[Tensor, Tensor]:
        """`score` of both sides (B, d) of B pairs, for methods that do it cheaper together."""
        return self.score(chosen, state), self.score(rejected, state)

    def sample(self, state: UserState, generator: torch.Generator | None = None) -> UserState:
        """A draw from the posterior, for training; the state itself where a method has none."""
        return state

    def regularizer(self, state: UserState, n_user_pairs: Tensor | None) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The method's own loss term (a scalar, averaged over the batch) and metrics."""
        return 0.0, {}

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        state: UserState,
        margin: Tensor | None = None,
        n_user_pairs: Tensor | None = None,
    ) -> PairOutput:
        """Scores B pairs and returns the loss; in training the state is sampled.

        Args:
            chosen, rejected: (B, d) features.
            state: B users.
            margin: (B,) optional.
            n_user_pairs: (B,) how many target pairs the user of each row has, for terms that count once a user.
        """
        term, metrics = self.regularizer(state, n_user_pairs)
        drawn = self.sample(state) if self.training else state
        chosen_rewards, rejected_rewards = self.score_pair(chosen, rejected, drawn)
        loss = bradley_terry_loss(chosen_rewards, rejected_rewards, margin).mean() + term
        return PairOutput(chosen_rewards, rejected_rewards, loss, metrics)

    def moderates(self, state: UserState) -> bool:
        """Whether `log_odds` has a closed form that is not the difference of rewards."""
        return False

    def log_odds(self, chosen: Tensor, rejected: Tensor, state: UserState) -> Tensor:
        """(B,) log-odds of the predictive probability where they have a closed form, of the mean margin elsewhere."""
        return torch.sub(*self.score_pair(chosen, rejected, state))

    def probability(self, chosen: Tensor, rejected: Tensor, state: UserState) -> Tensor:
        """(B,) predictive probability that `chosen` is preferred, the posterior's spread averaged over where known."""
        return torch.sigmoid(self.log_odds(chosen, rejected, state))

    def score_matrix(self, features: Tensor, state: UserState, max_elements: int = 1 << 22) -> Tensor:
        """(U, R) rewards of R responses for U users, in blocks of users so that memory stays bounded."""
        n_users, n_responses = len(state), len(features)
        block = max(1, max_elements // max(1, n_responses * self.feature_dim))
        out = features.new_empty(n_users, n_responses)
        for start in range(0, n_users, block):
            part = state.rows(slice(start, start + block))
            index = torch.arange(len(part), device=features.device).repeat_interleave(n_responses)
            tiled = features.repeat(len(part), 1)
            out[start : start + block] = self.score(tiled, part.rows(index)).view(len(part), n_responses)
        return out

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> UserState | None:
        """States drawn as if of random users (a control); `None` where the method has no state."""
        return None
