"""User models that change what the backbone computes: their users are no vectors beside a response's features."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor, nn

from .base import UserModel, UserState


class Reader(Protocol):
    """Reads texts through the backbone of a reward model, at most `chunk` at once where no gradients are wanted."""

    backbone: nn.Module
    chunk: int

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, soft_tokens: Tensor | None = None) -> Tensor:
        """(n, d) standardised features of texts (n, L), with embeddings (n, T, h) in front of them if given."""


class BackboneUserModel(UserModel):
    """Base of the user models of the backbone route: a user is part of the backbone's own computation.

    A subclass implements `encode_tokens` and `score_tokens`; both get token ids and a `Reader` in place of features.
    """

    route: ClassVar[str] = "backbone"

    def attach(self, backbone: nn.Module) -> None:
        """Called once with the backbone of a new model, before it is trained.

        Raises:
            ConfigError: The method cannot work with this backbone.
        """

    def encode_tokens(
        self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, context_index: Tensor, context_mask: Tensor
    ) -> UserState:
        """Turns contexts into user states.

        Args:
            reader: The backbone.
            input_ids, attention_mask: (2N, L) distinct context pairs, all chosen rows before all rejected rows.
            context_index: (B, K) which pairs each user's context holds; what is masked is never read.
            context_mask: (B, K) boolean. All false is k = 0.

        Returns:
            State of B users; it does not depend on the order of the pairs.
        """
        raise NotImplementedError

    def score_tokens(self, reader: Reader, input_ids: Tensor, attention_mask: Tensor, state: UserState) -> Tensor:
        """(B,) rewards of texts (B, L) under the state of the same row."""
        raise NotImplementedError
