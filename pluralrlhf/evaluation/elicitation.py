"""Which questions teach most: interviews replayed on recorded choices.

A participant's recorded pairs are divided by items into questions and targets. Each acquisition asks some of the
questions in an order of its own, the answer is what the participant really chose, and after every answer the targets
are predicted. The acquisitions see the responses, never who chose what; the targets' responses are known to all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.history import mix, stable_hash, unit_interval
from ..errors import ConfigError, DataError
from ..user_models.elicitation import ACQUISITIONS, Pairs, next_question
from .bootstrap import user_interval
from .opinions import Opinions
from .scorers import RewardModelScorer

FIXED = "fixed"
METHODS = (*ACQUISITIONS, FIXED)
SEEN, UNSEEN = "test_unseen_users_seen_items", "test_unseen_users_unseen_items"
_RANDOM_ORDERS = 4


@dataclass
class ElicitationData:
    """Questions and targets of each participant.

    Args:
        features: (n, 2, e) of rows (n,), chosen first: what the scorer's `head` reads.
        turned: (rows,) whether the responses of a row are shown in the other order: a hash of the pair's id, so that the
            order says nothing about the choice.
        group: (rows,) number of the unordered pair of responses.
        items: (rows, m) items of each row, -1 where there are fewer.
        questions, targets: User code to rows.
        goals: Distinct pairs among all targets, for EPIG.
        train: User code to rows of training users, for the fixed questionnaire.
        train_targets: The same of what they are scored on.
    """

    features: Callable[[np.ndarray], Tensor]
    turned: np.ndarray
    group: np.ndarray
    items: np.ndarray
    questions: dict[int, np.ndarray]
    targets: dict[int, np.ndarray]
    goals: np.ndarray
    train: dict[int, np.ndarray] = field(default_factory=dict)
    train_targets: dict[int, np.ndarray] = field(default_factory=dict)

    def shown(self, rows: np.ndarray) -> Tensor:
        """(n, 2, e) features in the order in which the responses are shown."""
        turned = torch.from_numpy(self.turned[rows])
        features = self.features(rows)
        return torch.where(turned.to(features.device)[:, None, None], features.flip(1), features)


def elicitation_data(
    scorer: RewardModelScorer,
    splits: Mapping[str, Any],
    *,
    n_questions: int = 12,
    target_items: float | None = None,
    max_users: int | None = None,
    max_targets: int = 64,
    n_goals: int = 128,
    max_train_users: int = 150,
    split: str = SEEN,
    seed: int = 0,
) -> ElicitationData:
    """Divides recorded pairs into questions and targets that share no item.

    Args:
        scorer: A model with the pairs of all splits.
        splits: The same splits, for who judged the same two responses.
        n_questions: Questions a participant must be able to answer.
        target_items: Share of the items that belong to the targets. By default the participants' pairs on unseen items
            are the targets where there are any, and otherwise half of the items are.
        max_users: Most participants, in the order of a hash.
        max_targets: Most targets of one participant.
        n_goals: Number of distinct target pairs that EPIG has in view.
        max_train_users: Most training users that the fixed questionnaire is chosen on.
        split: Split of the questions; `validation` to choose settings on.
        seed: Seed of the hashes.

    Raises:
        DataError: No participant has enough questions and a target.
    """
    history = scorer.pairs.history
    if split not in history.splits:
        raise DataError(f"there is no split `{split}`", "Build the data with test users.", file="the dataset")
    salt = np.uint64(stable_hash(f"elicitation:{seed}"))
    pool = history.rows(split)
    unseen = UNSEEN if split == SEEN else None
    side_of = None
    if target_items is None and unseen in history.splits:
        goal = history.rows(unseen)
    else:
        item_key = np.array([stable_hash(item) for item in history.item_ids], dtype=np.uint64)
        side_of = np.r_[unit_interval(mix(item_key, salt)) < (0.5 if target_items is None else target_items), False]
        pool, goal = _sides(history.items, pool, side_of)
    order = np.argsort(mix(history.user_key, salt), kind="stable")
    questions, targets = _by_user(history.user, pool), _by_user(history.user, goal)
    limit = _shuffled_head(history.pair_key, salt)
    users = [u for u in order.tolist() if len(questions.get(u, ())) >= n_questions and len(targets.get(u, ()))]
    users = users[:max_users]
    if not users:
        raise DataError(
            f"no user of `{split}` has {n_questions} questions and a target on other items",
            "Ask fewer questions, or build data with more pairs a user.",
            file="the dataset",
        )
    train = history.rows("train")
    train_questions, train_goal = (train, train) if side_of is None else _sides(history.items, train, side_of)
    train_questions, train_goal = _by_user(history.user, train_questions), _by_user(history.user, train_goal)
    train_users = [u for u in order.tolist() if u in train_questions and u in train_goal][:max_train_users]
    opinions = Opinions(splits, history.user)
    goal = np.concatenate([targets[user] for user in users])
    distinct = goal[np.unique(opinions.group[goal], return_index=True)[1]]
    data = ElicitationData(
        features=scorer.embedded,
        turned=(mix(history.pair_key, np.uint64(stable_hash("shown"))) & np.uint64(1)).astype(bool),
        group=opinions.group,
        items=history.items,
        questions={user: questions[user] for user in users},
        targets={user: limit(targets[user], max_targets) for user in users},
        goals=limit(distinct, n_goals),
        train={user: train_questions[user] for user in train_users},
        train_targets={user: limit(train_goal[user], 32) for user in train_users},
    )
    parts = (data.questions, data.targets, data.train, data.train_targets)
    scorer.prepare(np.concatenate([data.goals, *(rows for part in parts for rows in part.values())]))
    return data


def _sides(items: np.ndarray, rows: np.ndarray, side_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose items all lie on the questions' side, and rows whose items all lie on the targets' side."""
    target = np.where(items[rows] >= 0, side_of[items[rows]], np.nan)
    return rows[np.nanmax(target, axis=1) == 0], rows[np.nanmin(target, axis=1) == 1]


def _by_user(user: np.ndarray, rows: np.ndarray) -> dict[int, np.ndarray]:
    order = rows[np.argsort(user[rows], kind="stable")]
    codes, start = np.unique(user[order], return_index=True)
    return dict(zip(codes.tolist(), np.split(order, start[1:])))


def _shuffled_head(key: np.ndarray, salt: np.uint64) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda rows, n: rows[np.argsort(mix(key[rows], salt), kind="stable")[:n]]


@torch.no_grad()
def fixed_questionnaire(
    model, data: ElicitationData, length: int, *, beam: int = 48, show: Callable[[str], None] = lambda text: None
) -> dict[int, int]:
    """The one questionnaire for everybody that teaches most about training users.

    Questions are added one by one; each time the one is taken after which the training users' targets are predicted best
    (mean log-likelihood; a user who has not answered it stays as is). All questions are tried alone, the best `beam` of
    them in company.

    Returns:
        Pair of responses (`data.group`) to its place in the questionnaire. Questions beyond `length` follow by what they
        were worth alone.
    """
    answered = {u: {int(data.group[row]): int(row) for row in rows} for u, rows in data.train.items()}
    users = list(answered)
    goal = {u: data.features(rows) for u, rows in data.train_targets.items()}
    alone: dict[int, float] = {}
    for number, u in enumerate(users):
        groups = list(answered[u])
        worth = _gain(model, data, u, goal[u], [], [answered[u][g] for g in groups])
        for g, gain in zip(groups, worth.tolist()):
            alone[g] = alone.get(g, 0.0) + gain
        show(f"questions alone, user {number + 1} of {len(users)}")
    ranking = sorted(alone, key=lambda g: (-alone[g], g))
    candidates, chosen = ranking[:beam], []
    while candidates and len(chosen) < length:
        total = dict.fromkeys(candidates, 0.0)
        for u in users:
            known = [answered[u][g] for g in chosen if g in answered[u]]
            can = [g for g in candidates if g in answered[u]]
            if not can:
                continue
            for g, gain in zip(can, _gain(model, data, u, goal[u], known, [answered[u][g] for g in can]).tolist()):
                total[g] += gain
        best = max(candidates, key=lambda g: (total[g], -g))
        chosen.append(best)
        candidates.remove(best)
        show(f"questionnaire, {len(chosen)} of {length}")
    rest = [g for g in ranking if g not in set(chosen)]
    return {g: place for place, g in enumerate([*chosen, *rest])}


def _gain(model, data: ElicitationData, user: int, goal: Tensor, known: Sequence[int], more: Sequence[int]) -> Tensor:
    """(n,) by how much each of `more` raises the mean log-likelihood of a user's targets over that under `known` alone.

    Targets that share an item with either are left out on both sides: otherwise a question would be worth most whose
    removal spares the hardest ones.
    """
    contexts, size = [known, *([*known, row] for row in more)], len(known) + 1
    rows = np.full((len(contexts), size), -1)
    for number, context in enumerate(contexts):
        rows[number, : len(context)] = context
    distinct, index = np.unique(np.maximum(rows, 0), return_inverse=True)
    features = data.features(distinct)
    index, mask = torch.from_numpy(index.reshape(rows.shape)), torch.from_numpy(rows >= 0)
    state = model.encode(features, index.to(features.device), mask.to(features.device))
    loss = torch.nn.functional.logsigmoid(Pairs(model, goal).log_odds(state))
    targets = data.items[data.train_targets[user]]
    context_items = data.items[np.maximum(rows, 0)]
    used = (rows >= 0)[:, None, :, None, None] & (context_items[:, None, :, :, None] >= 0)
    clash = (used & (context_items[:, None, :, :, None] == targets[None, :, None, None, :])).any((2, 3, 4))
    free = torch.from_numpy(~clash).to(loss)
    return ((loss[1:] - loss[:1]) * free[1:]).sum(1) / free[1:].sum(1).clamp(min=1)


@torch.no_grad()
def interview(
    model,
    data: ElicitationData,
    user: int,
    acquisition: str,
    n_questions: int,
    *,
    goals: Pairs,
    places: Mapping[int, int] | None = None,
    n_draws: int = 512,
    seed: int = 0,
) -> tuple[np.ndarray, list[int]]:
    """One participant asked by one acquisition.

    Returns:
        Accuracy and mean log-likelihood on the targets after 0..n questions, (n + 1, 2), and the rows asked.
    """
    rows = data.questions[user]
    pool, answers, targets = Pairs(model, data.shown(rows)), data.features(rows), data.features(data.targets[user])
    targets = Pairs(model, targets)
    left, asked, curve = list(range(len(rows))), [], []
    if acquisition == FIXED:
        left.sort(key=lambda i: (places.get(int(data.group[rows[i]]), len(places)), i))
    elif acquisition == "random":
        left = np.random.default_rng([seed, user]).permutation(len(rows)).tolist()
    for step in range(n_questions + 1):
        index = torch.arange(len(asked), device=answers.device)[None]
        state = model.encode(answers[asked], index, torch.ones_like(index, dtype=torch.bool))
        margin, log_odds = targets.margins(state)[0], targets.log_odds(state)[0].double()
        accuracy = (margin > 0).double().mean() + 0.5 * (margin == 0).double().mean()
        curve.append([float(accuracy), float(torch.nn.functional.logsigmoid(log_odds).mean())])
        if step == n_questions:
            break
        at = 0
        if acquisition in ("epig", "bald", "d_optimal"):
            options = {"targets": goals, "n_draws": n_draws, "seed": seed}
            at = next_question(pool.rows(left), state, acquisition, **options)[0]
        asked.append(left.pop(at))
    return np.array(curve), [int(rows[i]) for i in asked]


def replay(
    scorer: RewardModelScorer,
    data: ElicitationData,
    acquisitions: Sequence[str] = METHODS,
    *,
    n_questions: int = 12,
    n_draws: int = 512,
    seed: int = 0,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, np.ndarray]:
    """Every participant asked by every acquisition.

    Returns:
        Acquisition to (users, n_questions + 1, 2): accuracy and mean log-likelihood on the targets after each answer.
        `random` is the mean of 4 orders.

    Raises:
        ConfigError: An unknown acquisition, or one that needs a posterior for a model without.
    """
    model = scorer.head
    for name in acquisitions:
        if name not in METHODS:
            raise ConfigError(f"`acquisitions` holds {name!r}; known are {', '.join(METHODS)}.")
        if name not in ("random", FIXED) and not model.has_posterior:
            raise ConfigError(f"`{name}` needs a posterior, and `{model.name}` has none. Replay `random` and `fixed`.")
    places = fixed_questionnaire(model, data, n_questions, show=show) if FIXED in acquisitions else None
    goals = Pairs(model, data.shown(data.goals)) if "epig" in acquisitions else None
    curves: dict[str, list[np.ndarray]] = {name: [] for name in acquisitions}
    for number, user in enumerate(data.questions):
        for name in acquisitions:
            found = [
                interview(
                    model, data, user, name, n_questions, goals=goals, places=places, n_draws=n_draws, seed=seed + draw
                )[0]
                for draw in range(_RANDOM_ORDERS if name == "random" else 1)
            ]
            curves[name].append(np.mean(found, axis=0))
        show(f"participant {number + 1} of {len(data.questions)}")
    return {name: np.stack(values) for name, values in curves.items()}


def area(curves: np.ndarray) -> np.ndarray:
    """(U,) area under each accuracy curve over the number of questions, between 0 and 1, by trapezes."""
    accuracy = curves[..., 0]
    return (accuracy[:, 1:] + accuracy[:, :-1]).mean(1) / 2


def compare(curves: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, Any]:
    """Areas, accuracies and the paired differences of EPIG from the other acquisitions, with intervals over users."""
    areas = {name: area(values) for name, values in curves.items()}
    out: dict[str, Any] = {
        "area": {name: user_interval(values, seed) for name, values in areas.items()},
        "accuracy": {
            name: [user_interval(values[:, m, 0], seed) for m in range(values.shape[1])]
            for name, values in curves.items()
        },
        "log_likelihood": {name: values[:, :, 1].mean(0).tolist() for name, values in curves.items()},
        "differences": {},
    }
    for first in ("epig", "bald", "d_optimal"):
        for second in ("random", FIXED):
            if first in areas and second in areas:
                found = user_interval(areas[first] - areas[second], seed)
                out["differences"][f"{first} - {second}"] = found
    return out
