"""`oracle`: the true description of the user. What a perfect summary could reach; never a method to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .base import TextConfig, TextUserModel, UserContext


@dataclass
class OracleConfig(TextConfig):
    """Settings of `oracle`: those of every text method; it reads the whole `profile` and nothing else."""

    source: Literal["profile"] = "profile"


class Oracle(TextUserModel):
    """Reward that reads the user's `profile` of the `users` config.

    Whose profile is read is told by the context's pairs: another user's context brings another user's profile, and
    without a context (k = 0) the user is unknown.
    """

    name = "oracle"
    config_class = OracleConfig

    def texts(self, contexts: Sequence[UserContext]) -> list[str]:
        return [(context.user or {}).get("profile") or "" for context in contexts]
