"""Ceilings equal brute force, and nobody beats them; item-id factors find what other users' votes tell."""

import numpy as np
import pytest
from scipy import special

from pluralrlhf.data import build_dataset, load_pairs
from pluralrlhf.data.history import UserHistory
from pluralrlhf.data.populations.pets import Pets
from pluralrlhf.data.populations.styles import Styles, choice_probability
from pluralrlhf.errors import ConfigError
from pluralrlhf.evaluation.controls import Context
from pluralrlhf.evaluation.item_factors import ItemFactors, ItemFactorsScorer, fit_item_factors
from pluralrlhf.evaluation.opinions import Opinions
from pluralrlhf.evaluation.reference import (
    CeilingScorer,
    Truth,
    ceiling,
    gaussian_posterior,
    gaussian_predictive,
    types_posterior,
    types_predictive,
)


def problem(dim, batch=10, k=8, noise=0.1, seed=0):
    """Contexts with ragged masks, as users with weights from a Gaussian prior would have answered them."""
    rng = np.random.default_rng(seed)
    mean, factor = rng.normal(size=dim) * 0.3, np.eye(dim) + 0.3 * rng.normal(size=(dim, dim))
    covariance = factor @ factor.T
    weights = rng.multivariate_normal(mean, covariance, size=batch)
    context, target = rng.normal(size=(batch, k, dim)), rng.normal(size=(batch, dim))
    context *= np.sign(np.einsum("bka,ba->bk", context, weights))[..., None]
    context *= np.where(rng.random((batch, k)) < noise, -1, 1)[..., None]
    mask = np.arange(k) < rng.integers(0, k + 1, size=batch)[:, None]
    return context, mask, target, mean, covariance


def brute_force(context, mask, target, mean, covariance, noise, temperature):
    """The same by summing over a grid of weights."""
    axis = np.linspace(-7, 7, 2001 if len(mean) == 1 else 401)
    grid = np.stack(np.meshgrid(*[axis] * len(mean), indexing="ij"), -1).reshape(-1, len(mean))
    precision = np.linalg.inv(covariance)
    out = []
    for row in range(len(target)):
        log = -0.5 * np.einsum("na,ac,nc->n", grid - mean, precision, grid - mean)
        likelihood = choice_probability(grid @ context[row].T, max(noise, 1e-4), temperature)
        log = log + (np.log(likelihood) * mask[row]).sum(1)
        out.append(special.softmax(log) @ choice_probability(grid @ target[row], noise, temperature))
    return np.array(out)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(("noise", "temperature"), [(0.1, 0.0), (0.1, 0.5), (0.0, 0.3), (0.0, 0.0)])
def test_gaussian_weights_equal_a_sum_over_a_grid(dim, noise, temperature):
    given = problem(dim, noise=noise)
    found = gaussian_predictive(*given, label_noise=noise, temperature=temperature)
    assert found == pytest.approx(brute_force(*given, noise, temperature), abs=0.03)
    assert np.abs(found - brute_force(*given, noise, temperature)).mean() < 0.01


def test_an_empty_context_leaves_the_prior():
    context, mask, target, mean, covariance = problem(2)
    samples = gaussian_posterior(context, np.zeros_like(mask), mean, covariance)
    assert samples.mean(1) == pytest.approx(np.broadcast_to(mean, (10, 2)), abs=0.08)
    assert np.stack([np.cov(s.T) for s in samples]) == pytest.approx(np.broadcast_to(covariance, (10, 2, 2)), abs=0.3)
    found = gaussian_predictive(context[:, :0], mask[:, :0], target, mean, covariance)
    expected = special.ndtr(target @ mean / np.sqrt(np.einsum("ba,ac,bc->b", target, covariance, target)))
    assert found == pytest.approx(expected, abs=0.03)


def test_weights_that_the_prior_fixes_stay_fixed():
    context, mask, _, mean, _ = problem(3)
    samples = gaussian_posterior(context, mask, mean, np.diag([1.0, 0.0, 2.0]), label_noise=0.1)
    assert np.ptp(samples[..., 1]) < 1e-6 and np.ptp(samples[..., 0]) > 1


def test_in_seven_dimensions_the_posterior_is_calibrated():
    """Over users drawn from the prior, the predictive probability is the share of choices that come true."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(400, 7))
    context = rng.integers(-1, 2, size=(400, 16, 7)).astype(float)
    context *= np.where(
        rng.random((400, 16)) < choice_probability(np.einsum("bka,ba->bk", context, weights), 0.1, 0.0), 1, -1
    )[..., None]
    target = rng.integers(-1, 2, size=(400, 7)).astype(float)
    came_true = rng.random(400) < choice_probability(np.einsum("ba,ba->b", target, weights), 0.1, 0.0)
    found = gaussian_predictive(
        context, np.ones((400, 16), bool), target, np.zeros(7), np.eye(7), label_noise=0.1, samples=256
    )
    assert abs((came_true - found).mean()) < 0.06
    assert abs(np.mean((came_true - found) * (found - 0.5))) < 0.015
    assert ((found > 0.5) == came_true).mean() > 0.68


def test_types_equal_bayes_by_hand():
    weights, prior = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0.25, 0.75])
    context = np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    posterior = types_posterior(context, np.ones((1, 3), bool), weights, prior, label_noise=0.1)
    assert posterior == pytest.approx(np.array([[0.25 * 0.81, 0.75 * 0.01]]) / (0.25 * 0.81 + 0.75 * 0.01))
    found = types_predictive(context, np.ones((1, 3), bool), np.array([[-2.0, 0.0]]), weights, prior, label_noise=0.1)
    assert found == pytest.approx(posterior @ [0.1, 0.9])
    nothing = types_posterior(context, np.zeros((1, 3), bool), weights, prior)
    assert nothing == pytest.approx(prior[None])


def accuracy(history, rows, margins):
    right, user = (np.sign(margins) + 1) / 2, history.user[rows]
    return np.mean([right[user == u].mean() for u in np.unique(user)])


def own(history, rows, k):
    index = history.context(rows, k)
    return Context(index, np.zeros(index.shape, bool))


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = build_dataset(Pets(n_users=60), tmp_path_factory.mktemp("pets") / "d", progress=False)
    splits = load_pairs(folder)
    return folder, splits, UserHistory(splits)


def test_ceiling_of_pets(pets):
    folder, _, history = pets
    scorer = CeilingScorer(folder, history)
    for split in ("test_unseen_users_seen_items", "test_unseen_users_unseen_items"):
        rows = history.rows(split)
        assert accuracy(history, rows, scorer.score(rows, own(history, rows, 0))[0]) == 0.5
        context = own(history, rows, 2)
        margins, probability = scorer.score(rows, context)
        assert accuracy(history, rows, margins) == 1.0 and (probability > 0.99).all()
        turned = Context(context.index, np.ones(context.index.shape, bool))
        assert accuracy(history, rows, scorer.score(rows, turned)[0]) == 0.0


def test_ceiling_under_shift_knows_the_test_users_prior(tmp_path):
    folder = build_dataset(Pets(n_users=60, shift=True, label_noise=0.1), tmp_path / "d", progress=False)
    history = UserHistory(load_pairs(folder))
    rows = history.rows("test_unseen_users_unseen_items")
    margins, probability = CeilingScorer(folder, history).score(rows, own(history, rows, 8))
    assert 0.85 < accuracy(history, rows, margins) < 0.95 and probability.max() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("kind", ["types", "continuous"])
def test_ceiling_of_styles_rises_with_the_context(tmp_path, kind):
    source = Styles(
        users_are=kind, n_users=120, n_prompts=60, responses_per_prompt=6, pairs_per_prompt=8, pairs_per_user=30
    )
    folder = build_dataset(source, tmp_path / "d", progress=False)
    history = UserHistory(load_pairs(folder))
    rows = history.rows("test_unseen_users_unseen_items")
    scorer = CeilingScorer(folder, history)
    rising = [accuracy(history, rows, scorer.score(rows, own(history, rows, k))[0]) for k in (0, 4, 16)]
    assert rising[0] + 0.04 < rising[1] < rising[2] < 0.92
    # The same by pair ids, as in per_pair.parquet, and whatever else is scored with them.
    some, ids = rows[:5], history.pair_ids.to_pylist()
    context = own(history, some, 4)
    by_id = ceiling(
        folder, [ids[r] for r in some], [[ids[c] for c in row if c >= 0] for row in context.index], test_users=True
    )
    assert by_id == pytest.approx(scorer.score(some, context)[1])
    assert scorer.score(rows, own(history, rows, 4))[1][:5] == pytest.approx(by_id, abs=0.05)


def test_no_truth_no_ceiling(tmp_path):
    folder = build_dataset(Pets(n_users=40, placebo=True), tmp_path / "d", progress=False)
    with pytest.raises(ConfigError, match="truth"):
        Truth.load(folder)


def test_item_factors_find_opposite_tastes():
    rng = np.random.default_rng(0)
    user, pairs = np.repeat(np.arange(80), 30), np.stack([rng.choice(20, 2, replace=False) for _ in range(2400)])
    # Items 0-9 and 10-19 divide the users; within a group all agree on the smaller number.
    crosses, first = (pairs[:, 0] < 10) != (pairs[:, 1] < 10), pairs[:, 0] < pairs[:, 1]
    keep = np.where(crosses, first == (user % 2 == 0), first)
    pairs = np.where(keep[:, None], pairs, pairs[:, ::-1])
    model = fit_item_factors(user, pairs, 20, rank=4, item_penalty=1.0)
    low_over_high, high_over_low = np.array([[[3, 13], [5, 15], [8, 18]]]), np.array([[[13, 3], [15, 5], [18, 8]]])
    shown, target = np.ones((1, 3), bool), np.array([[1, 11]])
    assert model.margins(target, low_over_high, shown) > 1 and model.margins(target, high_over_low, shown) < -1
    assert abs(model.margins(target, low_over_high, ~shown)) < 0.5
    assert model.margins(np.array([[0, 9]]), high_over_low, shown) > 1, "what all agree on stays"
    assert model.users(low_over_high, ~shown) == pytest.approx(0)
    # Order and padding do not matter, unknown items are worth nothing.
    padded = np.concatenate([low_over_high[:, ::-1], np.zeros((1, 2, 2), int)], axis=1)
    assert model.margins(target, padded, np.array([[True] * 3 + [False] * 2])) == pytest.approx(
        model.margins(target, low_over_high, shown)
    )
    assert model.margins(np.array([[20, 20]]), low_over_high, shown) == 0


def test_newton_finds_the_mode():
    rng = np.random.default_rng(1)
    model = ItemFactors(rng.normal(size=12), 2 * rng.normal(size=(12, 3)), penalty=0.7)
    context = rng.integers(0, 11, size=(6, 9, 2))
    user = model.users(context, np.ones((6, 9), bool))

    def gradient(u):
        offset = model.bias[context[..., 0]] - model.bias[context[..., 1]]
        delta = model.factors[context[..., 0]] - model.factors[context[..., 1]]
        left = special.expit(-(offset + np.einsum("bkr,br->bk", delta, u)))
        return np.einsum("bk,bkr->br", left, delta) - model.penalty * u

    assert gradient(user) == pytest.approx(0, abs=1e-4)


def test_item_factors_as_a_scorer(pets):
    _, splits, history = pets
    scorer = ItemFactorsScorer(history, Opinions(splits, history.user), ranks=(4,), penalties=(3.0,))
    seen, unseen = (history.rows(f"test_unseen_users_{side}_items") for side in ("seen", "unseen"))
    assert accuracy(history, seen, scorer.score(seen, own(history, seen, 8))[0]) > 0.97
    margins, probability = scorer.score(unseen, own(history, unseen, 8))
    assert (margins == 0).all() and (probability == 0.5).all()
    context = own(history, seen, 8)
    turned = Context(context.index, ~context.flipped)
    assert accuracy(history, seen, scorer.score(seen, turned)[0]) < 0.03
    assert scorer.states(context).shape == (len(seen), 4)
