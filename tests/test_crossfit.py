import dataclasses

import jax
import numpy as np
import pytest
import toy
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

import cftjax
from cftjax import metrics
from cftjax.cft import committee, crossfit, discriminant, folds, logistic, members, pool, regressions, shares
from cftjax.cft.regressions import Recipe, Task
from cftjax.config import ChooseConfig, GAConfig, PolishConfig, TuningConfig
from cftjax.data import sparse
from cftjax.types import Embeddings, Heads, Labels

TRAIN, VALIDATION, TEST = (
    toy.embeddings(n=240, seed=seed, known=known) for seed, known in ((0, 0.7), (1, 0.9), (2, 1.0))
)
SMALL = TuningConfig(
    ga=GAConfig(population_size=12, num_generations=20, dimensions=4),
    polish=PolishConfig(
        l2=(0.001, 0.01), strengths=(0.3, 3.0), unknown_weights=(0.0, 0.3), judging_weights=(1.0, 3.0), folds=3
    ),
)
KEY = jax.random.key(0)


def ap(heads, split=TEST):
    return np.asarray(metrics.average_precision(np.asarray(heads(split.z)), split.labels, split.known))


def gathered(validation=VALIDATION, refit=True, train=TRAIN):
    return pool.gather(train, validation, toy.heads(), dimensions=None, num_folds=3, refit=refit, seed=0, leading=None)


@pytest.fixture(scope="module")
def tuned():
    problem = crossfit.Problem(TRAIN, VALIDATION, toy.heads(), SMALL)
    return problem, crossfit.learn(problem, crossfit.lanes_of(crossfit.find(problem, KEY)))


def test_groups_stay_in_one_fold_and_positives_are_spread():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    labels, known = rng.random((240, 3)) < [0.1, 0.3, 0.5], rng.random((240, 3)) < 0.8
    told = Labels(labels, known, np.zeros_like(known))
    fold = folds.of_images(told, groups, 5)
    assert all(len(set(fold[groups == g])) == 1 for g in range(60))
    assert set(fold) == set(range(5))
    alone = folds.of_images(told, None, 5)
    counts = np.stack([(labels & known)[alone == k].sum(0) for k in range(5)])
    assert (counts.max(0) - counts.min(0) <= 2).all()


def test_the_discriminant_is_the_closed_form_of_scikit_learn():
    # Of one category, all labels known: the covariance of all images adds a multiple of the difference of the means,
    # which leaves the direction as it is.
    z = VALIDATION.z.astype(np.float64)
    labels = VALIDATION.labels
    complete = Embeddings(VALIDATION.z, labels, np.ones_like(labels))
    given = pool.gather(complete, None, toy.heads(), dimensions=None, num_folds=2, refit=True, seed=0)
    means = discriminant.difference(given, discriminant.sums(given), 0.0, 1.0)
    genes = discriminant.directions(given, means, [0.0])[0]
    member = members.Member("closed", np.zeros(genes.shape[:2], np.float32), genes)
    heads = members.heads(member, given, toy.heads(), np.ones(3, bool))
    for c in range(3):
        oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(z, labels[:, c]).coef_[0]
        assert np.corrcoef(heads.kernel[c], oracle)[0, 1] > 0.99999


def test_the_discriminant_weighs_unknown_and_judging_rows_as_float64_does():
    given = gathered()
    genes = discriminant.difference(given, discriminant.sums(given), 0.3, 3.0)
    z, told = given.z.astype(np.float64), given.given.dense()
    for lane in range(4):
        rows = given.learns(lane)
        weight = np.where(given.fold >= 0, 3.0, 1.0) * rows
        for c in range(3):
            positive = weight * told.labels[:, c]
            negative = weight * np.where(told.known[:, c], ~told.labels[:, c], 0.3)
            expected = positive @ z / positive.sum() - negative @ z / negative.sum()
            np.testing.assert_allclose(genes[lane, c], expected, atol=1e-5)


def test_weighted_regressions_reach_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    z, labels = VALIDATION.z, VALIDATION.labels[:, 1]
    weights = np.stack([np.ones(240), rng.random(240), np.where(rng.random(240) < 0.5, 0.0, 2.0)]).astype(np.float32)
    strengths = np.float32([0.05, 1e-3, 1e-2])
    penalties = np.tile(strengths[:, None], (1, 5))
    fit = jax.jit(lambda *x: logistic.fit(*x, 30))
    genes, bias = fit(z, labels, weights, np.zeros((3, 240), np.float32), penalties)
    for s in range(3):
        oracle = LogisticRegression(C=1 / (strengths[s] * weights[s].sum()), tol=1e-10, max_iter=10_000)
        oracle.fit(z.astype(np.float64), labels, sample_weight=weights[s])
        np.testing.assert_allclose(genes[s], oracle.coef_[0], atol=2e-3)
        np.testing.assert_allclose(bias[s], oracle.intercept_[0], atol=2e-3)


def test_many_rows_are_read_in_blocks_to_the_same_regressions(monkeypatch):
    rng = np.random.default_rng(0)
    z = rng.normal(loc=0.5, size=(4096, 5)).astype(np.float32)
    labels = z @ np.float32([1, -1, 0, 2, 0]) + rng.normal(size=4096) > 1
    weights, offsets = rng.random((2, 4096)).astype(np.float32), rng.normal(size=(2, 4096)).astype(np.float32)
    penalties = np.full((2, 5), 1e-3, np.float32)
    fits = []
    for large in (logistic.LARGE, 4096):
        monkeypatch.setattr(logistic, "LARGE", large)
        monkeypatch.setattr(logistic, "BLOCK", 5 * 1024)
        fits.append(logistic.fit(z, labels, weights, offsets, penalties, 20))
        assert logistic.rows_at_once(4096, 5) == (1024 if large == 4096 else 0)
    for at_once, in_blocks in zip(*fits, strict=True):
        np.testing.assert_allclose(in_blocks, at_once, atol=2e-6)


def test_rows_that_weigh_nothing_and_regressions_without_rows_do_no_harm():
    z, labels = VALIDATION.z, VALIDATION.labels[:, 0]
    weights = np.zeros((2, 240), np.float32)
    weights[0, :100] = 1
    labels = labels.copy()
    genes, bias = logistic.fit(z, labels, weights, np.zeros_like(weights), np.full((2, 5), 0.01, np.float32), 20)
    labels[100:] = ~labels[100:]
    again, _ = logistic.fit(z, labels, weights, np.zeros_like(weights), np.full((2, 5), 0.01, np.float32), 20)
    np.testing.assert_array_equal(genes, again)
    assert np.isfinite(genes).all()
    assert np.isfinite(bias).all()


def test_out_of_fold_logits_do_not_depend_on_the_labels_of_their_own_fold():
    given = gathered()
    fold = given.fold[given.judging]
    flipped = dataclasses.replace(VALIDATION, labels=VALIDATION.labels ^ (fold == 1)[:, None])
    other = dataclasses.replace(given, given=sparse.joined([sparse.of(split.given) for split in (TRAIN, flipped)]))
    recipe, start = Recipe(0.0, 0.1, 0.01, 0.3), np.zeros((4, 3, 5), np.float32)
    logits = []
    for images in (given, other):
        means = discriminant.difference(images, discriminant.sums(images), 0.3, 1.0)
        closed = discriminant.directions(images, means, [1.0])[0]
        base = members.spread(images)
        learned = regressions.learn(Task(images, [recipe], start, 20, 0), range(3))[0]
        every = [learned, members.Member("closed", np.zeros((4, 3), np.float32), closed)]
        logits.append([members.out_of_fold(members.standardised(m, images, base), images, base) for m in every])
    for before, after in zip(*logits, strict=True):
        np.testing.assert_array_equal(before[fold == 1], after[fold == 1])
        assert (before[fold != 1] != after[fold != 1]).any()


def test_all_labels_together_beat_the_head_that_came(tuned):
    problem, whole = tuned
    chosen = crossfit.share(problem, whole)
    assert (ap(chosen.heads) > ap(toy.heads())).all()
    assert set(whole.parts) == {"discriminant", "polish", "start"}
    assert chosen.share == 0
    assert chosen.names == ["mean"] * 3
    # On the scale of logits: their mean probability is the share of positives.
    probabilities = 1 / (1 + np.exp(-chosen.out_of_fold))
    shares_known = (VALIDATION.labels & VALIDATION.known).sum(0) / VALIDATION.known.sum(0)
    means = np.where(VALIDATION.known, probabilities, 0).sum(0) / VALIDATION.known.sum(0)
    np.testing.assert_allclose(means, shares_known, atol=0.02)


def test_the_parts_vary_alike_over_all_images_and_their_mean_is_one_linear_head(tuned):
    _, whole = tuned
    z = np.concatenate([TRAIN.z, VALIDATION.z])
    for part in (*whole.parts.values(), whole.heads):
        logits = np.asarray(part(z))
        # Nearly: the coordinates are those of the training images, without correlation among these.
        np.testing.assert_allclose(logits.std(axis=0), 1, atol=0.05)
        np.testing.assert_allclose(logits.mean(axis=0), 0, atol=0.05)
    weighted = sum(committee.WEIGHTS[name] * part.kernel for name, part in whole.parts.items())
    for c in range(3):
        assert np.corrcoef(weighted[c], whole.heads.kernel[c])[0, 1] > 0.9999


def test_the_same_is_found_again_and_nothing_is_done_twice(tuned):
    problem, whole = tuned
    lanes, store, told = crossfit.lanes_of(crossfit.find(problem, KEY)), {}, []
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    on_devices = crossfit.learn(problem, lanes, store=store, mesh=mesh)
    np.testing.assert_allclose(on_devices.heads.kernel, whole.heads.kernel, atol=1e-4)
    kept = dict(store)
    again = crossfit.learn(problem, lanes, store=store, mesh=mesh, progress=lambda *news: told.append(news))
    np.testing.assert_array_equal(again.heads.kernel, on_devices.heads.kernel)
    assert store.keys() == kept.keys()
    assert told[-1][:2] == (3, 3)


def test_validation_labels_may_be_kept_out_of_all_learning():
    config = dataclasses.replace(SMALL, choose=ChooseConfig(refit="none"))
    chosen = cftjax.fine_tune(TRAIN, VALIDATION, toy.heads(), config=config)
    assert (ap(chosen.heads) > ap(toy.heads())).all()
    given = gathered(refit=False)
    assert not any(given.learns(lane)[given.judging].any() for lane in range(given.num_lanes))


def test_without_a_validation_split_the_training_labels_judge_in_folds():
    chosen = cftjax.fine_tune(TRAIN, None, toy.heads(), config=SMALL)
    assert (ap(chosen.heads) > ap(toy.heads())).all()
    assert "backbone" not in chosen.scores
    assert chosen.out_of_fold.shape == TRAIN.labels.shape


def test_a_category_without_known_positives_stays_and_one_that_cannot_be_judged_follows():
    labels, known = VALIDATION.labels.copy(), VALIDATION.known.copy()
    known[:, 2] &= ~labels[:, 2]
    nothing = dataclasses.replace(TRAIN, labels=TRAIN.labels & np.array([True, False, True]))
    labels[:, 1] = False
    chosen = cftjax.fine_tune(nothing, Embeddings(VALIDATION.z, labels, known), toy.heads(), config=SMALL)
    assert chosen.untuned == {1: "no known positive"}
    assert chosen.names == ["mean", "backbone", "mean"]
    np.testing.assert_array_equal(chosen.heads.kernel[1], toy.heads().kernel[1])
    assert list(chosen.unjudged) == [2]
    assert np.isfinite(chosen.heads.kernel).all()


def test_each_category_may_have_embeddings_of_its_own():
    each = [dataclasses.replace(s, z=np.repeat(s.z[:, None], 3, axis=1)) for s in (TRAIN, VALIDATION)]
    alone = cftjax.fine_tune(*each, toy.heads(), config=SMALL)
    shared = cftjax.fine_tune(TRAIN, VALIDATION, toy.heads(), config=SMALL)
    np.testing.assert_allclose(ap(alone.heads), ap(shared.heads), atol=0.01)


@pytest.mark.parametrize(
    ("gain", "error", "share"),
    [(0.05, 0.01, 0.0), (0.0, 0.01, 0.159), (-0.01, 0.01, 0.5), (-0.05, 0.01, 1.0), (0.01, np.inf, 1.0)],
)
def test_the_head_that_came_keeps_the_probability_that_it_is_better(gain, error, share):
    assert abs(shares.head_share(gain, error) - share) < 1e-3


def test_a_head_that_is_best_already_is_kept():
    # The truth itself, and labels of noise to learn from.
    rng = np.random.default_rng(0)
    truth = Heads(np.eye(3, 5, dtype=np.float32), np.zeros(3, np.float32))
    z = rng.normal(size=(300, 5)).astype(np.float32)
    labels = np.asarray(truth(z)) > 1
    noise = Embeddings(z[:60], rng.random((60, 3)) < 0.2, np.ones((60, 3), bool))
    chosen = cftjax.fine_tune(noise, Embeddings(z[60:], labels[60:], np.ones((240, 3), bool)), truth, config=SMALL)
    assert chosen.share > 0.9
    test = Embeddings(z, labels, np.ones_like(labels))
    assert (ap(chosen.heads, test) > 0.995).all()


def test_where_nothing_can_be_compared_the_head_that_came_is_kept_to_the_bit():
    # A single image of each kind judges, so that hardly a resample is defined.
    known = np.zeros_like(VALIDATION.known)
    chosen = cftjax.fine_tune(TRAIN, dataclasses.replace(VALIDATION, known=known), toy.heads(), config=SMALL)
    assert chosen.share == 1
    assert chosen.names == ["backbone"] * 3
    np.testing.assert_array_equal(chosen.heads.kernel, toy.heads().kernel)
