"""What a step of the summariser's training draws: contexts, targets, and the texts of the warm-up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..data.history import mix, stable_hash
from ..errors import ConfigError
from ..user_models.text import UserContext
from ..user_models.text.base import as_text
from ..user_models.text.extract import take
from .summarizer_config import SummarizerConfig
from .text_data import TextPairData


class SummarizerDraws:
    """Contexts and targets of users, each a function of a salt and the user.

    Args:
        pairs: All pairs, of training and of validation.
        args: [`SummarizerConfig`].
    """

    def __init__(self, pairs: TextPairData, args: SummarizerConfig):
        self.pairs, self.args = pairs, args

    def eligible(self, rows: np.ndarray, name: str) -> dict[int, int]:
        """User code -> a row of theirs, for users with a context of the smallest size and a pair left.

        Raises:
            ConfigError: There is no such user in the argument called `name`.
        """
        history, least = self.pairs.history, self.args.min_context
        users, first = np.unique(history.user[rows], return_index=True)
        sizes = history.pool_size(rows[first])
        # From the `users` config no pair is needed for context but the one that tells whose it is.
        found = {int(u): int(rows[f]) for u, f, n in zip(users, first, sizes) if n > least}
        if not found:
            raise ConfigError(
                f"`{name}`: no user has more than `min_context` ({least}) pairs. Lower `min_context`, or "
                "build the data with more pairs a user."
            )
        return found

    def draw(self, user_row: int, salt: str, k: int, n_targets: int) -> tuple[np.ndarray, np.ndarray]:
        """A context of up to `k` pairs and up to `n_targets` others of the same user that share no item with it."""
        history = self.pairs.history
        pool = history.pool(user_row)
        pool = pool[np.argsort(mix(history.pair_key[pool], stable_hash(salt)), kind="stable")]
        context, targets = pool[:k], pool[:0]
        while len(context) and not len(targets):
            rest = pool[len(context) :]
            targets = rest[~history.conflicts(rest, context).any(1)][:n_targets]
            context = context if len(targets) else context[:-1]
        return context, targets

    def for_training(self, user_row: int, salt: str) -> tuple[np.ndarray, np.ndarray]:
        """A training user's context, of a size that is drawn as well, and targets."""
        args, user = self.args, int(self.pairs.history.user[user_row])
        span = args.n_context - args.min_context + 1
        k = args.min_context + stable_hash(f"{salt}:n_context:{user}") % span
        return self.draw(user_row, f"{salt}:{user}", k, args.n_targets)

    def shown(self, rows: np.ndarray) -> UserContext:
        """What the summariser is shown of a context's rows."""
        return self.pairs.user_contexts(np.asarray(rows)[None])[0]


def default_warmup_text(args: SummarizerConfig) -> Callable[[UserContext], str]:
    """What the reward model first learns to read of a context: a statement about `topics`, or chosen sentences."""
    if args.topics:
        from .summarizer_start import TopicStatements

        return TopicStatements(args.topics, args.seed).of_context
    settings = args.user_model_kwargs or {}
    words = settings.get("max_words", 50) if isinstance(settings, dict) else 50

    def sentences_of(context: UserContext) -> str:
        return take([as_text(pair["chosen"]) for pair in context.sorted_pairs()], words)

    return sentences_of
