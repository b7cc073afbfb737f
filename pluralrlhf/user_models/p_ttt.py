"""P-TTT: the context is written into the MLP layers of a trainable decoder as fast weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features.pooling import last_token_index
from .backbone_route import BackboneUserModel, Reader
from .base import UserState, gather_sum
from .settings import check_sizes


@dataclass
class PTTTConfig:
    r"""Settings of `p_ttt`.

    Args:
        layers: How many layers have fast weights.
        every: They lie this many layers apart, the last layer being one of them (24 layers: 6th, 12th, 18th, 24th).
        module: How the name of a layer's down-projection ends.
        eta: First value of the step size :math:`\eta`; it is learned.
        reduction: `sum` (as published: the update grows with k) or `mean`.
        context_gradient: Train through the contexts' passes; without, they cost no memory for gradients.
    """

    layers: int = 4
    every: int = 6
    module: str = "mlp.down_proj"
    eta: float = 0.5
    reduction: str = "sum"
    context_gradient: bool = True

    def __post_init__(self):
        check_sizes(self, "p_ttt", layers=1, every=1)
        if self.reduction not in ("sum", "mean"):
            raise ConfigError(f"`reduction` of `p_ttt` is {self.reduction!r}; it must be 'sum' or 'mean'.")
        if not 0 < self.eta < float("inf"):
            raise ConfigError(f"`eta` of `p_ttt` is {self.eta}; it must be above 0 and finite.")


class PTTT(BackboneUserModel):
    r"""Personalised test-time training: one additive update of some down-projections, without optimisation.

    In each of the chosen layers the MLP's down-projection W is a fast weight. With key k, the MLP's intermediate
    activation at a text's last token, and value :math:`v = W_{value} v_r` for the head's weight :math:`v_r`,

    .. math:: W_u = W_0 + \eta \sum_i v (k_i^+ - k_i^-)^T,

    which is applied at the target's last token only. The update has rank one and v is the same for everybody, so that
    a user's state is :math:`\sum_i (k_i^+ - k_i^-)` for each layer. Context responses are read under W_0, each on its
    own. Turning every label negates the update exactly; the change of a margin is negated to first order in
    :math:`\eta`, since norms and later layers follow.

    The published work fixes eta = 0.5. Here W_value starts at the identity over the number of intermediate features,
    so that a step means the same in backbones of all widths and points the right way in the last layer [ours].

    Args:
        feature_dim: d, size of the backbone's hidden states.
        config: `PTTTConfig`.

    Raises:
        ConfigError: The backbone has no such layers, or too few (on `attach`); it recomputes activations
            (`gradient_checkpointing`), or features are not pooled at the last token.

    References:
        - Wang et al. 2026, Using context is not enough (P-TTT)
        - Schlag, Irie and Schmidhuber 2021, https://arxiv.org/abs/2102.11174

    Inputs:
        | context | state | targets | output |
        |---|---|---|---|
        | (2N, L), (B, K), (B, K) | `updates` (B, layers, m) | (B, L) | (B,) |

    Relations:
        - `fast_weights` is its head-only form, on frozen features.
    """

    name = "p_ttt"
    config_class = PTTTConfig
    recomputable = False

    def __init__(self, feature_dim: int, config: PTTTConfig):
        super().__init__(feature_dim, config)
        self.head = nn.Linear(feature_dim, 1, bias=False)
        self.value = nn.Parameter(torch.eye(feature_dim).repeat(config.layers, 1, 1))
        self.eta = nn.Parameter(torch.tensor(float(config.eta)))

    @torch.no_grad()
    def attach(self, backbone: nn.Module) -> None:
        self.value.div_(self._modules_of(backbone)[0].in_features)

    def _modules_of(self, backbone: nn.Module) -> list[nn.Module]:
        """The down-projections that are fast weights, lowest first."""
        suffix, n, every = self.config.module, self.config.layers, self.config.every
        found = [module for name, module in backbone.named_modules() if f".{name}".endswith(f".{suffix}")]
        if len(found) < 1 + (n - 1) * every:
            raise ConfigError(
                f"`p_ttt` wants {n} layers ({every} apart, the last one among them), but this backbone has "
                f"{len(found)} modules whose names end with {suffix!r}. Set `layers`, `every` and `module` in "
                "`user_model_kwargs`."
            )
        chosen = found[::-1][: 1 + (n - 1) * every : every][::-1]
        if len({getattr(module, "in_features", None) for module in chosen} - {None}) != 1:
            raise ConfigError(
                f"`p_ttt` needs linear down-projections of one width; those that end with {suffix!r} are "
                f"{sorted({str(getattr(m, 'in_features', type(m).__name__)) for m in chosen})}. Choose other `layers`."
            )
        return chosen

    # Reading through hooks

    def _read(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, hook: Callable) -> Tensor:
        """(n, d) features of texts, with `hook(layer, keys (n', m), rows)` added to what each layer gives the last token."""
        # The second is transformers' name for it up to version 5.
        names = ("is_activation_checkpointing", "is_gradient_checkpointing")
        name = next((name for name in names if hasattr(type(reader.backbone), name)), names[1])
        recomputed = reader.backbone.training and getattr(reader.backbone, name, False)
        if recomputed and torch.is_grad_enabled():
            raise ConfigError(
                "`gradient_checkpointing` recomputes layers when the fast weights are gone. Set it to false for `p_ttt`."
            )
        parts = []
        size = len(input_ids) if torch.is_grad_enabled() else reader.chunk
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            ids, mask = input_ids[rows], attention_mask[rows]
            with _added(self._modules_of(reader.backbone), last_token_index(mask), hook, rows):
                parts.append(reader(ids, mask))
        return torch.cat(parts)

    # Contract

    def encode_tokens(
        self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, context_index: Tensor, context_mask: Tensor
    ) -> UserState:
        differences = self.differences(reader, input_ids, attention_mask)
        n_pairs, shape = len(differences), differences.shape[1:]
        update = gather_sum(differences.reshape(n_pairs, shape.numel()), context_index, context_mask)
        if self.config.reduction == "mean":
            update = update / context_mask.sum(1, keepdim=True).clamp(min=1)
        return UserState(self.name, {"updates": update.view(len(context_index), *shape)})

    def differences(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, layers, m) k+ - k- of pairs whose texts are (2N, L), all chosen ones first."""
        width = self._modules_of(reader.backbone)[0].in_features
        if not len(input_ids):
            return self.value.new_zeros(0, self.config.layers, width)
        keys: dict[int, list[Tensor]] = {layer: [] for layer in range(self.config.layers)}

        def keep(layer: int, key: Tensor, rows: slice) -> None:
            keys[layer].append(key.to(self.value.dtype))

        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.context_gradient):
            self._read(reader, input_ids, attention_mask, keep)
            chosen, rejected = torch.stack([torch.cat(parts) for parts in keys.values()], 1).chunk(2)
            return chosen - rejected

    def score_tokens(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, state: UserState) -> Tensor:
        values = self.eta * torch.einsum("lij,j->li", self.value, self.head.weight[0])
        updates = state["updates"]

        def add(layer: int, key: Tensor, rows: slice) -> Tensor:
            match = (updates[rows, layer] * key.to(updates.dtype)).sum(-1, keepdim=True)
            return match * values[layer]

        return self.head(self._read(reader, input_ids, attention_mask, add)).squeeze(-1)

    def random_state(self, n_users: int, generator: torch.Generator | None = None) -> None:
        # An update is a sum over pairs that exist; there is no distribution to draw it from.
        return None


@contextmanager
def _added(modules: list[nn.Module], last: Tensor, hook: Callable, rows: slice) -> Iterator[None]:
    """While open, each module's output at the `last` tokens gains what `hook` makes of its input there."""

    def forward_hook(layer: int) -> Callable:
        def run(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            each = torch.arange(len(last), device=output.device)
            added = hook(layer, inputs[0][each, last], rows)
            if added is None:
                return None
            return output.index_put((each, last), added.to(output.dtype), accumulate=True)

        return run

    handles = [module.register_forward_hook(forward_hook(layer)) for layer, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
