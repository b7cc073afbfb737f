"""A small population of two opposite types, and scorers that use, ignore or misuse the context: what tests measure with."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pluralrlhf.data.history import UserHistory
from pluralrlhf.evaluation.controls import Context
from pluralrlhf.evaluation.evaluation_data import EvaluationData

_SHARES = {
    "train": (30, 10),
    "validation": (8, 10),
    "test_unseen_users_seen_items": (20, 10),
    "test_unseen_users_unseen_items": (20, 6),
}


def population(agreed_every: int = 5, shares: dict[str, tuple[int, int]] | None = None, with_types: bool = True):
    """Splits as tables, and `EvaluationData`: half of the users like the cat answer to every prompt, half the dog answer.

    On every fifth prompt all users prefer the same answer. Unseen items have prompts of their own.
    """
    splits = {}
    for split, (n_users, n_items) in (shares or _SHARES).items():
        rows = []
        for user in range(n_users):
            # The same users appear on seen and on unseen items.
            user_id = f"{'test' if split.startswith('test') else split}-{user}"
            for item in range(n_items):
                name = f"{'u' if 'unseen_items' in split else 's'}{item}"
                likes_cats = user % 2 == 0 or item % agreed_every == agreed_every - 1
                cat, dog = f"cat {name}", f"dog {name}"
                rows.append(
                    {
                        "user_id": user_id,
                        "pair_id": f"{user_id}:{name}",
                        "item_ids": [name],
                        "prompt": [{"role": "user", "content": f"prompt {name}"}],
                        "chosen": [{"role": "assistant", "content": cat if likes_cats else dog}],
                        "rejected": [{"role": "assistant", "content": dog if likes_cats else cat}],
                    }
                )
        splits[split] = pa.Table.from_pylist(rows)
    history = UserHistory(splits)
    users = [
        {"user_id": user, "attributes": f'{{"type": "{"cat" if int(user.split("-")[1]) % 2 == 0 else "dog"}"}}'}
        for user in history.users
    ]
    return splits, EvaluationData.load(splits, history, users if with_types else None)


class Double:
    """Base of the doubles: `evidence` is what the context says for cats, `vote` how a row's choice stands to that."""

    uses_context = True

    def __init__(self, splits, data: EvaluationData, method: str, seed: int = 0):
        self.history, self.method, self.seed = data.history, method, seed
        chosen = [message[0]["content"] for table in splits.values() for message in table["chosen"].to_pylist()]
        self.chose_cat = np.array([1.0 if text.startswith("cat") else -1.0 for text in chosen])
        agreed = [text.split()[1][1:] for text in chosen]
        self.agreed = np.array([int(number) % 5 == 4 for number in agreed])

    def likes_cats(self, context: Context) -> np.ndarray:
        """(B,) mean vote of the context for cats, agreed prompts left out: they say nothing about the user."""
        shown = (context.index >= 0) & ~self.agreed[context.index]
        votes = self.chose_cat[context.index] * np.where(context.flipped, -1, 1) * shown
        return votes.sum(axis=1)

    def margin(self, rows: np.ndarray, context: Context) -> np.ndarray:
        raise NotImplementedError

    def score(self, rows, context, predictive=True):
        margin = self.margin(rows, context)
        return margin, 1 / (1 + np.exp(-margin))

    def score_random_state(self, rows, draw):
        likes = np.where(draw % np.uint64(2) == 0, 1.0, -1.0)
        margin = np.where(self.agreed[rows], self.chose_cat[rows], likes * self.chose_cat[rows])
        return margin, 1 / (1 + np.exp(-margin))

    def states(self, context):
        return self.likes_cats(context)[:, None]


class Oracle(Double):
    """Does what can be done: cats for those whose context says so, cats for all on agreed prompts."""

    def margin(self, rows, context):
        return self.chose_cat[rows] * np.where(self.agreed[rows], 3.0, 2.0 * self.likes_cats(context))


class Global(Double):
    """Knows what most users like and never looks at the context, though it could."""

    def margin(self, rows, context):
        return self.chose_cat[rows] * np.where(self.agreed[rows], 3.0, 0.5)

    def score_random_state(self, rows, draw):
        return self.score(rows, Context(np.zeros((len(rows), 0), int), np.zeros((len(rows), 0), bool)))

    def states(self, context):
        return None


class Baseline(Global):
    """The same, and says that it has no user."""

    uses_context = False

    def score_random_state(self, rows, draw):
        return None


class Constant(Double):
    """Finds everything equally good."""

    def margin(self, rows, context):
        return np.zeros(len(rows))


class AnyContext(Double):
    """Nearly always wrong without a context and right with one, whosever it is: a gain that is no personalisation."""

    def margin(self, rows, context):
        return np.where((context.index >= 0).any(axis=1), 1.0, np.where(rows % 7 == 0, 1.0, -1.0))


class OrderReader(Double):
    """Believes the first pair of the context only: what it says depends on their order."""

    def margin(self, rows, context):
        first = Context(context.index[:, :1], context.flipped[:, :1])
        return self.chose_cat[rows] * self.likes_cats(first) if context.index.shape[1] else np.zeros(len(rows))
