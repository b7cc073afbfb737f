"""What an evaluation knows of a dataset beside its texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.history import UserHistory
from .opinions import Opinions


@dataclass
class EvaluationData:
    """What an evaluation knows of a dataset beside its texts.

    Args:
        history: All splits, in the numbering that scorers use.
        opinions: Who judged the same two responses; needed by the `relabelled` control and `agreed_accuracy`.
        user_types: User id to known type, for populations; needed by the `other_type` control.
    """

    history: UserHistory
    opinions: Opinions | None = None
    user_types: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, splits: Mapping[str, Any], history: UserHistory, users: Any = None) -> EvaluationData:
        """Reads who agrees with whom from the texts, and types from the `users` config where it has them."""
        return cls(history, Opinions(splits, history.user), user_types(users))


def user_types(users: Any) -> dict[str, str]:
    """User id to the `type` in the user's attributes; empty where there is none."""
    types = {}
    for user in users or ():
        attributes = json.loads(user["attributes"]) if user.get("attributes") else {}
        if isinstance(attributes, dict) and attributes.get("type") is not None:
            types[user["user_id"]] = str(attributes["type"])
    return types
