"""How much of what contexts teach is applied: as much as it is worth to validation users."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny import pet_dataset

from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer
from pluralrlhf.trainers.strength import fit_share, fit_strength, shrink

RNG = np.random.default_rng(0)
USERS = np.repeat(np.arange(40), 50)


def margins(everybody, personal, signal):
    """k = 0 and k > 0 margins of pairs whose choices follow `everybody + signal * personal`."""
    truth = everybody + signal * personal
    side = np.where(RNG.random(len(truth)) < 1 / (1 + np.exp(-truth)), 1.0, -1.0)
    return side * everybody, side * (everybody + personal)


@pytest.mark.parametrize("signal, low, high", [(0.0, 0.0, 0.1), (0.5, 0.4, 0.6), (1.0, 0.9, 1.0)])
def test_the_share_is_the_one_that_made_the_choices(signal, low, high):
    everybody, personal = RNG.normal(size=(2, len(USERS)))
    assert low <= fit_strength(*margins(everybody, 2 * personal, signal), USERS) <= high


def test_how_sure_the_model_is_does_not_matter():
    pair = margins(*RNG.normal(size=(2, len(USERS))), 0.5)
    shares = [fit_strength(scale * pair[0], scale * pair[1], USERS) for scale in (0.1, 1.0, 10.0)]
    np.testing.assert_allclose(shares, shares[0], atol=0.01)


def test_a_context_that_turns_choices_round_is_not_applied_and_margins_of_nothing_change_nothing():
    everybody, personal = RNG.normal(size=(2, len(USERS)))
    without, _ = margins(everybody, personal, 0.0)
    assert fit_strength(without, -without, USERS) == 0
    assert fit_strength(-np.abs(without), -np.abs(without) - 1, USERS) == 0
    assert fit_strength(np.zeros(4), np.zeros(4), np.arange(4)) == 1


def test_users_who_are_all_predicted_right_get_all_of_it():
    everybody, personal = RNG.normal(size=(2, len(USERS)))
    assert fit_strength(everybody, everybody + np.abs(personal) + 10, USERS) == 1


def test_margins_are_shrunk_towards_those_without_context_whatever_their_order():
    n = len(USERS)
    without, shown = margins(*RNG.normal(size=(2, n)), 0.5)
    rows = np.tile(np.arange(n), 2)
    sizes, values, users = np.repeat([0, 8], n), np.concatenate([without, shown]), np.tile(USERS, 2)
    order = RNG.permutation(2 * n)
    share = fit_share(values[order], sizes[order], rows[order], users[order])
    shrunk = shrink(values[order], sizes[order], rows[order], share)
    expected = np.concatenate([without, without + share * (shown - without)])
    np.testing.assert_allclose(shrunk, expected[order])
    assert 0 < share < 1


def test_without_k_0_there_is_nothing_to_compare_with():
    values = RNG.normal(size=5)
    share = fit_share(values, np.full(5, 8), np.arange(5), np.arange(5))
    assert share == 1 and shrink(values, np.full(5, 8), np.arange(5), share) is values


@pytest.mark.parametrize("alike", [True, False])
def test_the_trainer_applies_what_holds_of_users_whom_it_did_not_learn_from(tmp_path, alike):
    """Validation users who decide like the training users, and ones who contradict themselves every second time."""
    train, validation = pet_dataset(40, 12), pet_dataset(12, 12, seed=1, first_user=40)
    if not alike:
        rows = [
            {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if number % 2 else row
            for number, row in enumerate(validation)
        ]
        validation = validation.from_list(rows)
    args = PersonalizedRewardConfig(
        str(tmp_path / "out"), encoder="offline", user_model="ours", user_model_kwargs={"hidden": 32},
        feature_cache=str(tmp_path / "cache"), per_device_train_batch_size=64, learning_rate=2e-3, n_context=6,
        eval_n_context=[0, 4], max_steps=60, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    other = {"validation": validation, "other": pet_dataset(12, 12, seed=2, first_user=60)}
    trainer = PersonalizedRewardTrainer(args=args, train_dataset=train, eval_dataset=other)
    before = trainer.evaluate()
    assert "eval_validation_strength" in before and "eval_other_strength" not in before
    trainer.train()
    trainer.reward_model.user_model.strength.fill_(1.0)
    about = trainer.evaluate()
    trainer.fit_strength()
    strength = float(trainer.reward_model.user_model.strength)
    assert strength > 0.9 if alike else strength < 0.3
    trainer.save_model()
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert float(saved["user_model.strength"]) == pytest.approx(strength)
    assert f"{strength:.0%} is applied" in (tmp_path / "out" / "README.md").read_text()
    # What is applied is the model's own from here on.
    exactly = trainer.evaluate()
    assert about["eval_validation_strength"] == exactly["eval_validation_strength"] == pytest.approx(strength)
    for name in ("accuracy", "accuracy_k0", "accuracy_k4"):
        assert about[f"eval_validation_{name}"] == pytest.approx(exactly[f"eval_validation_{name}"], abs=1e-3)
    assert about["eval_validation_log_loss"] == pytest.approx(exactly["eval_validation_log_loss"], abs=0.01)
    assert float(trainer.reward_model.user_model.strength) == pytest.approx(strength)


def test_few_validation_users_are_not_believed_alone():
    rows = np.arange(len(USERS))
    everybody, personal = RNG.normal(size=(2, len(USERS)))
    without, _ = margins(everybody, personal, 0.0)
    for n_users, low, high in ((1, 0.9, 1.0), (4, 0.6, 0.8), (40, 0.0, 0.1)):
        some = n_users > USERS
        twice = np.concatenate([without[some], -without[some]])  # a context that turns every choice round
        sizes = np.repeat([0, 8], some.sum())
        assert low <= fit_share(twice, sizes, np.tile(rows[some], 2), np.tile(USERS[some], 2)) <= high
