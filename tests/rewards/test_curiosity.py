"""What shaping can and cannot do, on a problem small enough to solve exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pluralrlhf.errors import ConfigError
from pluralrlhf.rewards.curiosity import REWARDS, CuriosityConfig, intrinsic_rewards, potential, returns_to_go
from pluralrlhf.user_models.beliefs import ExactBelief

# Four types = (what to recommend, favourite colour). Question 0 is about the former, question 1 about the colour,
# question 2 is small talk. Only the first matters for the end reward, both matter for "knowing the user".
TYPES = list(itertools.product((0, 1), repeat=2))
SHARP, WEAK = 0.95, 0.7
LIKELIHOOD = np.array(
    [
        [[WEAK if t[0] == a else 1 - WEAK for t in TYPES] for a in (0, 1)],
        [[SHARP if t[1] == a else 1 - SHARP for t in TYPES] for a in (0, 1)],
        [[0.5] * 4 for _ in (0, 1)],
    ]
)
PRIOR = np.full(4, 0.25)
ASK, RECOMMEND = (0, 1, 2), (3, 4)


def history_of(answers):
    questions = np.array([[q for q, _ in answers]], dtype=int).reshape(1, -1)
    replies = np.array([[a for _, a in answers]], dtype=int).reshape(1, -1)
    return ExactBelief(PRIOR, LIKELIHOOD).beliefs_of(questions, replies)[0]


def value_of(trajectory, true_type, config):
    """End reward plus intrinsic rewards of one finished conversation: [(question, answer)...] and a recommendation."""
    *answers, (act, _) = trajectory
    beliefs = history_of(answers)
    beliefs = np.concatenate([beliefs, beliefs[-1:]])  # nothing is learnt from the recommendation's own turn
    end = float(act - RECOMMEND[0] == TYPES[true_type][0]) if act in RECOMMEND else 0.0
    rewards = intrinsic_rewards(beliefs[None], np.array([true_type]), np.array([len(trajectory)]), config)[0]
    rewards[-1] += end
    return returns_to_go(rewards[None], config.gamma)[0, 0]


def solve(config, horizon=3):
    """Every history's optimal actions in conversations of at most `horizon` turns (recommending ends one earlier).

    Backward induction over all histories of questions and answers.
    """
    belief = ExactBelief(PRIOR, LIKELIHOOD)
    optimal = {}

    def best(answers):
        b = history_of(answers)[-1]
        values = {}
        for act in RECOMMEND:
            values[act] = sum(b[u] * value_of([*answers, (act, None)], u, config) for u in range(4))
        if len(answers) < horizon - 1:
            for q in ASK:
                chance = belief.likelihood[q] @ b
                values[q] = sum(chance[a] * best([*answers, (q, a)]) for a in (0, 1))
        top = max(values.values())
        optimal[tuple(answers)] = {act for act, v in values.items() if v > top - 1e-9}
        return top

    best([])
    return optimal


@pytest.mark.parametrize("reward", ["diff_acc", "diff_log_acc", "diff_ent"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_zero_leaves_the_optimal_policies_unchanged(reward, gamma):
    plain = solve(CuriosityConfig("none", gamma=gamma))
    shaped = solve(CuriosityConfig(reward, weight=2.0, gamma=gamma, terminal_potential="zero", floor=0.0))
    assert shaped == plain


@pytest.mark.parametrize("reward", ["diff_acc", "diff_log_acc", "diff_ent"])
def test_keep_may_change_them(reward):
    # With one question to ask, the end reward wants the weak answer that matters, phi(b_T) the sharp one that does not.
    assert solve(CuriosityConfig("none"), horizon=2)[()] == {0}
    assert solve(CuriosityConfig(reward, weight=2.0, terminal_potential="keep", floor=0.0), horizon=2)[()] == {1}
    assert solve(CuriosityConfig(reward, weight=2.0, terminal_potential="zero", floor=0.0), horizon=2)[()] == {0}


@pytest.mark.parametrize("reward", ["acc", "ent"])
def test_acc_and_ent_may_change_them(reward):
    assert solve(CuriosityConfig("none"), horizon=2)[()] == {0}
    assert solve(CuriosityConfig(reward, weight=2.0), horizon=2)[()] == {1}


def test_zero_returns_to_go_do_not_depend_on_the_turns_own_action():
    rng = np.random.default_rng(0)
    beliefs = rng.dirichlet(np.ones(5), size=(4, 7))
    types, n_turns = rng.integers(5, size=4), np.array([6, 6, 4, 2])
    config = CuriosityConfig("diff_log_acc", terminal_potential="zero", floor=0.0)
    returns = returns_to_go(intrinsic_rewards(beliefs, types, n_turns, config))
    phi = potential("diff_log_acc", beliefs, types)
    for i, n in enumerate(n_turns):
        np.testing.assert_allclose(returns[i, :n], -phi[i, :n])


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_the_value_as_potential_credit_means_the_same_at_any_lambda(lam):
    # Three turns of two actions each, taken at random; only the end pays. phi is the value of what was done so far.
    end = np.random.default_rng(0).normal(size=(2, 2, 2))
    value = [end.mean(axis=tuple(range(t, 3))) for t in range(4)]
    rows = list(itertools.product((0, 1), repeat=3))
    rewards = [[value[t + 1][r[: t + 1]] * (t < 2) - value[t][r[:t]] for t in range(3)] for r in rows]
    rewards = np.array(rewards) + np.array([[0.0, 0.0, end[r]] for r in rows])
    credit = returns_to_go(rewards, lam).reshape(2, 2, 2, 3)
    for t in range(3):
        mean = credit[..., t].mean(axis=tuple(range(t + 1, 3)))
        np.testing.assert_allclose(mean, value[t + 1] - value[t][..., None], atol=1e-12)


def test_with_an_exact_belief_three_rewards_are_the_mutual_information():
    policy = (0, 1, 0)  # any policy would do; this one repeats a question
    information, expected = 0.0, dict.fromkeys(("diff_log_acc", "diff_ent", "info_gain"), 0.0)
    for answers in itertools.product((0, 1), repeat=len(policy)):
        joint = PRIOR * np.prod([LIKELIHOOD[q, a] for q, a in zip(policy, answers)], axis=0)
        information += (joint * np.log(joint / (joint.sum() * PRIOR))).sum()
        beliefs = history_of(list(zip(policy, answers)))
        for name, u in itertools.product(expected, range(4)):
            config = CuriosityConfig(name, floor=0.0)
            rewards = intrinsic_rewards(beliefs[None], np.array([u]), np.array([3]), config)
            expected[name] += joint[u] * rewards.sum()
    for value in expected.values():
        assert abs(value - information) < 1e-6


def test_totals_are_bounded_or_grow():
    rng = np.random.default_rng(1)
    n_types, totals = 8, {}
    for turns in (5, 50):
        beliefs = np.concatenate(
            [np.full((64, 1, n_types), 1 / n_types), rng.dirichlet([0.2] * 8, (64, turns))], axis=1
        )
        beliefs[:, 1:] = np.sort(beliefs[:, 1:])  # the true type, 7, is the most probable
        n_turns = np.full(64, turns)
        for name in REWARDS:
            r = intrinsic_rewards(beliefs, np.full(64, 7), n_turns, CuriosityConfig(name))
            totals[name, turns] = r.sum(axis=1)
    for name, bound in (("diff_acc", 1.0), ("diff_log_acc", np.log(8)), ("diff_ent", np.log(8))):
        assert totals[name, 50].max() <= bound + 1e-9
    for name in ("acc", "ent"):
        assert totals[name, 50].mean() > 5 * totals[name, 5].mean()


@pytest.mark.parametrize("reward", REWARDS)
def test_nothing_is_paid_past_the_end_and_end_placement_keeps_the_sum(reward):
    rng = np.random.default_rng(2)
    beliefs = rng.dirichlet(np.ones(3), size=(5, 6))
    types, n_turns = rng.integers(3, size=5), np.array([5, 4, 3, 2, 1])
    by_turn = intrinsic_rewards(beliefs, types, n_turns, CuriosityConfig(reward))
    at_end = intrinsic_rewards(beliefs, types, n_turns, CuriosityConfig(reward, placement="end"))
    past = np.arange(5) >= n_turns[:, None]
    assert (by_turn[past] == 0).all() and (at_end[past] == 0).all()
    np.testing.assert_allclose(by_turn.sum(axis=1), at_end.sum(axis=1))
    assert (np.count_nonzero(at_end, axis=1) <= 1).all()


def test_clipping_and_settings():
    beliefs = np.array([[[0.5, 0.5], [1e-9, 1 - 1e-9]]])
    args = (beliefs, np.array([0]), np.array([1]))
    assert intrinsic_rewards(*args, CuriosityConfig("diff_log_acc", clip=0.5))[0, 0] == -0.5
    floored = intrinsic_rewards(*args, CuriosityConfig("diff_log_acc", floor=1e-2))[0, 0]
    assert floored == pytest.approx(np.log(1e-2 / 0.5))
    for bad in ({"reward": "curious"}, {"terminal_potential": "none"}, {"gamma": 0.0}, {"clip": -1.0}, {"floor": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            CuriosityConfig(**bad)
    with pytest.raises(ConfigError, match="potential"):
        potential("acc", beliefs, np.array([0]))
