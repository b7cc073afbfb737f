"""Replayed interviews: nothing of the choice leaks, questions and targets share no item, good questions teach more."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pluralrlhf.data.history import UserHistory
from pluralrlhf.errors import ConfigError, DataError
from pluralrlhf.evaluation.elicitation import (
    _gain,
    area,
    compare,
    elicitation_data,
    fixed_questionnaire,
    interview,
    replay,
)
from pluralrlhf.evaluation.elicitation_report import markdown, write_elicitation
from pluralrlhf.user_models import build_user_model
from pluralrlhf.user_models.elicitation import Pairs

D = 8
USERS = {"train": 24, "test_unseen_users_seen_items": 16}


def world(seed: int = 0):
    """Users are directions of 8 dimensions; targets are about the first two only, three questions in four about others."""
    rng = np.random.default_rng(seed)
    weights = {f"{split}-{u}": 3 * rng.standard_normal(D) for split, n in USERS.items() for u in range(n)}
    differences = rng.standard_normal((40, D))
    differences[:24, :2] *= 0.0
    differences[24:, 2:] *= 0.0
    splits, features = {}, []
    for split, n in USERS.items():
        rows = []
        for u in range(n):
            for item, difference in enumerate(differences):
                likes = weights[f"{split}-{u}"] @ difference > 0
                texts = [f"answer {item} a", f"answer {item} b"][:: 1 if likes else -1]
                rows.append(
                    {"user_id": f"{split}-{u}", "pair_id": f"{split}-{u}:{item}", "item_ids": [f"item-{item}"],
                     "prompt": "p", "chosen": texts[0], "rejected": texts[1]}
                )  # fmt: skip
                features.append(
                    np.stack([difference, 0 * difference]) if likes else np.stack([0 * difference, difference])
                )
        splits[split] = pa.Table.from_pylist(rows)
    return splits, torch.tensor(np.array(features), dtype=torch.float)


def scorer_of(splits, features, model=None):
    if model is None:
        model = build_user_model("bayes_head", D, {"dim": D, "layers": 0, "hidden": 4}).eval()
        with torch.no_grad():
            model.map.weight.copy_(torch.eye(D))
            model.prior_log_precision.fill_(-2.0)
            for parameter in model.base.parameters():
                parameter.zero_()
    return SimpleNamespace(
        model=SimpleNamespace(user_model=model),
        pairs=SimpleNamespace(history=UserHistory(splits)),
        prepare=lambda rows: None,
        head=model,
        embedded=lambda rows: features[torch.as_tensor(np.asarray(rows), dtype=torch.long)],
    )


@pytest.fixture(scope="module")
def prepared():
    splits, features = world()
    scorer = scorer_of(splits, features)
    data = elicitation_data(scorer, splits, n_questions=6)
    # Targets about the first two dimensions only, so that what EPIG has in view differs from what BALD has.
    history = scorer.pairs.history
    number = np.array([int(history.item_ids[i].split("-")[1]) for i in history.items[:, 0]])
    data.targets = {u: rows[number[rows] >= 24] for u, rows in data.targets.items()}
    data.train_targets = {u: rows[number[rows] >= 24] for u, rows in data.train_targets.items()}
    data.goals = data.goals[number[data.goals] >= 24]
    return scorer, data


def test_questions_and_targets_share_no_item(prepared):
    scorer, data = prepared
    items = scorer.pairs.history.items[:, 0]
    assert len(data.questions) == USERS["test_unseen_users_seen_items"]
    for user, rows in data.questions.items():
        assert not set(items[rows]) & set(items[data.targets[user]])
        assert set(scorer.pairs.history.user[rows]) == {user}
    for rows in data.train.values():
        assert not set(items[rows]) & set(items[data.goals])


def test_the_order_in_which_responses_are_shown_says_nothing_about_the_choice(prepared):
    _, data = prepared
    rows = np.concatenate(list(data.questions.values()))
    first_chosen = (data.shown(rows) == data.features(rows)).flatten(1).all(1).double().mean()
    assert 0.4 < first_chosen < 0.6


def test_turning_the_recorded_choices_changes_no_first_question(prepared):
    scorer, data = prepared
    model, user = scorer.model.user_model, next(iter(data.questions))
    goals = Pairs(model, data.shown(data.goals))
    _, asked = interview(model, data, user, "epig", 1, goals=goals)
    turned = SimpleNamespace(**vars(data))
    turned.features = lambda rows: data.features(rows).flip(1)
    turned.shown = data.shown
    _, other = interview(model, turned, user, "epig", 1, goals=goals)
    assert asked == other


def test_informed_questions_teach_more_than_random_ones(prepared):
    scorer, data = prepared
    curves = replay(scorer, data, n_questions=6)
    found = compare(curves)
    assert curves["epig"].shape == (16, 7, 2)
    # Before the first answer all are equal: the unknown user.
    assert len({float(values[:, 0, 0].mean()) for values in curves.values()}) == 1
    assert found["differences"]["epig - random"]["ci95"][0] > 0.02
    assert found["area"]["fixed"]["value"] > found["area"]["random"]["value"]
    assert found["area"]["epig"]["value"] >= found["area"]["bald"]["value"] - 0.01


def test_the_questionnaire_is_chosen_on_training_users(prepared):
    scorer, data = prepared
    places = fixed_questionnaire(scorer.model.user_model, data, 4)
    history = scorer.pairs.history
    first = sorted(places, key=places.get)[:3]
    numbers = [
        int(history.item_ids[history.items[np.flatnonzero(data.group == g)[0], 0]].split("-")[1]) for g in first
    ]
    assert all(number >= 24 for number in numbers)
    blind = SimpleNamespace(**vars(data))
    blind.questions = blind.targets = {}
    assert fixed_questionnaire(scorer.model.user_model, blind, 4) == places


def test_a_question_is_worth_nothing_to_a_model_that_learns_nothing(prepared):
    """Also where it takes targets that are hard to predict out of the count, because they are about its item."""
    scorer, data = prepared
    model = copy.deepcopy(scorer.model.user_model)
    with torch.no_grad():
        model.map.weight.zero_()
        for parameter in model.base.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    shared = SimpleNamespace(**vars(data))
    shared.train_targets = data.train
    user = next(iter(data.train))
    rows = data.train[user]
    goal = data.features(rows)
    assert (
        Pairs(model, goal).log_odds(model.encode(goal[:0], torch.zeros(1, 0).long(), torch.zeros(1, 0).bool())).std()
    )
    np.testing.assert_allclose(_gain(model, shared, user, goal, rows[:2], rows[2:]), 0, atol=1e-6)


def test_the_log_likelihood_is_that_of_the_predicted_probability(prepared):
    scorer, data = prepared
    model, user = scorer.model.user_model, next(iter(data.questions))
    curve, (asked,) = interview(model, data, user, "random", 1, goals=None)
    state = model.encode(data.features([asked]), torch.zeros(1, 1).long(), torch.ones(1, 1).bool())
    chosen, rejected = data.features(data.targets[user]).unbind(1)
    expected = model.probability(chosen, rejected, state.rows(torch.zeros(len(chosen)).long())).log().mean()
    np.testing.assert_allclose(curve[1, 1], expected.item(), rtol=1e-5)


def test_results_are_written(prepared, tmp_path):
    scorer, data = prepared
    curves = replay(scorer, data, ["random", "fixed"], n_questions=2)
    users = [scorer.pairs.history.users[user] for user in data.questions]
    content = write_elicitation(curves, users, tmp_path, {"model": "m"})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(content["files"])
    assert "| random |" in markdown(content)
    assert area(np.ones((3, 5, 2))).tolist() == [1.0] * 3


def test_mistakes_are_named(prepared):
    scorer, data = prepared
    with pytest.raises(ConfigError, match="'best'"):
        replay(scorer, data, ["best"])
    splits, features = world()
    blind = scorer_of(splits, features, build_user_model("mrm", D).eval())
    with pytest.raises(ConfigError, match="`epig` needs a posterior"):
        replay(blind, data, ["epig"])
    with pytest.raises(DataError, match="has 500 questions"):
        elicitation_data(scorer, splits, n_questions=500)
