import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cftjax import metrics
from cftjax.scores import bootstrap


def tied(rng, n):
    return rng.integers(0, 6, n).astype(np.float32)


def distinct(rng, n):
    return rng.permutation(n).astype(np.float32)


def equal(rng, n):
    return np.full(n, 2.5, np.float32)


@pytest.mark.parametrize("make_scores", [tied, distinct, equal])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_weighted_scores_equal_scikit_learns(make_scores, share):
    rng, n, resamples = np.random.default_rng(1), 150, 12
    scores, labels, known = make_scores(rng, n), rng.random(n) < share, rng.random(n) < 0.8
    weights = rng.poisson(1.0, (n, resamples)).astype(np.float32)
    found = bootstrap.weighted_scores(bootstrap.rank(scores, labels, known), weights)
    for metric, oracle in (("AP", average_precision_score), ("AUROC", roc_auc_score)):
        expected = [oracle(labels[known], scores[known], sample_weight=w[known]) for w in weights.T]
        np.testing.assert_allclose(found[metric], expected, rtol=2e-6)


def test_unknown_labels_and_unweighted_images_have_no_say():
    scores = np.array([9, 4, 3, 2, 1, 8], np.float32)
    labels = np.array([True, True, False, True, False, False])
    known = np.array([False, True, True, True, True, True])
    weights = np.array([[5], [1], [2], [1], [1], [0]], np.float32)  # 8 outranks all, with weight 0
    scored = bootstrap.weighted_scores(bootstrap.rank(scores, labels, known), weights)
    np.testing.assert_allclose(scored["AP"], [(1 / 1 + 2 / 4) / 2], rtol=1e-6)
    np.testing.assert_allclose(scored["AUROC"], [(3 + 1) / (2 * 3)], rtol=1e-6)


def test_a_tied_negative_counts_in_full_against_precision_and_by_half_against_auroc():
    scores, labels = np.array([1, 1, 0], np.float32), np.array([True, False, False])
    weights = np.array([[1, 2], [1, 3], [1, 5]], np.float32)
    scored = bootstrap.weighted_scores(bootstrap.rank(scores, labels, np.ones(3, bool)), weights)
    np.testing.assert_allclose(scored["AP"], [1 / 2, 2 / 5], rtol=1e-6)
    np.testing.assert_allclose(scored["AUROC"], [1.5 / 2, 6.5 / 8], rtol=1e-6)


def test_a_resample_without_positives_or_negatives_is_nan():
    scores, labels = np.array([3, 2, 1], np.float32), np.array([True, False, False])
    weights = np.array([[0, 1, 1], [1, 0, 2], [2, 0, 0]], np.float32)
    scored = bootstrap.weighted_scores(bootstrap.rank(scores, labels, np.ones(3, bool)), weights)
    np.testing.assert_array_equal(scored["AP"], [np.nan, np.nan, 1])
    np.testing.assert_array_equal(scored["AUROC"], [np.nan, np.nan, 1])


@pytest.mark.parametrize("flaw", ["no positive", "nan score"])
def test_a_category_that_cannot_be_ranked_is_nan_in_every_resample(flaw):
    scores = np.array([3, np.nan if flaw == "nan score" else 2, 1], np.float32)
    labels = np.array([flaw == "nan score", False, False])
    ranking = bootstrap.rank(scores, labels, np.ones(3, bool))
    for scored in bootstrap.weighted_scores(ranking, np.ones((3, 4), np.float32)).values():
        assert np.isnan(scored).all()


def test_every_resample_draws_as_many_images_as_there_are():
    (block,) = bootstrap.counts(50, resamples=400, seed=3)
    assert block.shape == (50, 400)
    np.testing.assert_array_equal(block.sum(0), 50)
    # Each of the 20,000 counts is binomial(50, 1/50).
    assert block.var() == pytest.approx(1 - 1 / 50, abs=0.05)


def test_images_of_one_group_are_drawn_together_and_groups_as_often_as_there_are():
    groups = np.array(["b", "a", "b", "c", "b", "a"])
    (block,) = bootstrap.counts(6, groups=groups, resamples=200, seed=0)
    for name in "abc":
        rows = block[groups == name]
        np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape))
    per_group = block[[1, 0, 3]]
    np.testing.assert_array_equal(per_group.sum(0), 3)
    assert len(np.unique(per_group, axis=1).T) == 10  # every way to draw 3 of 3 with replacement turns up


def test_groups_widen_the_interval_when_their_images_are_copies():
    rng = np.random.default_rng(2)
    n, copies = 40, 8
    labels = rng.random((n, 1)) < 0.5
    scores = (rng.normal(size=(1, n, 1)) + labels).astype(np.float32)
    scores, labels = scores.repeat(copies, axis=1), labels.repeat(copies, axis=0)
    groups = np.arange(n).repeat(copies)
    known = np.ones_like(labels)
    alone = bootstrap.resample(scores, labels, known, resamples=300)
    together = bootstrap.resample(scores, labels, known, groups=groups, resamples=300)
    ratio = together["AUROC"].std() / alone["AUROC"].std()
    assert ratio == pytest.approx(np.sqrt(copies), rel=0.25)


def test_resampling_is_paired_and_does_not_depend_on_the_memory_at_hand(monkeypatch):
    rng = np.random.default_rng(2)
    labels, known = rng.random((30, 3)) < 0.3, rng.random((30, 3)) < 0.9
    scores = rng.normal(size=(2, 30, 3)).astype(np.float32)
    scores[1, :, 0] = 2 * scores[0, :, 0]  # the same ranking: a paired difference is 0 in every resample
    whole = bootstrap.resample(scores, labels, known, resamples=50, seed=7)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 4 * 30 * 8)
    parts = bootstrap.resample(scores, labels, known, resamples=50, seed=7)
    np.testing.assert_array_equal(whole["AP"], parts["AP"])
    np.testing.assert_array_equal(whole["AUROC"], parts["AUROC"])
    np.testing.assert_array_equal(whole["AP"][0, :, 0], whole["AP"][1, :, 0])
    assert np.ptp(whole["AP"][0, :, 0]) > 0


def test_the_interval_of_the_mean_agrees_with_resampling_by_hand():
    rng = np.random.default_rng(2)
    labels, known = rng.random((25, 2)) < 0.4, np.ones((25, 2), bool)
    scores = (rng.normal(size=(2, 25, 2)) + labels).astype(np.float32)
    found = bootstrap.resample(scores, labels, known, resamples=60, seed=1)
    draws = np.random.default_rng(1)
    differences = []
    for _ in range(60):
        rows = draws.integers(25, size=25)
        per_model = [[average_precision_score(labels[rows, c], s[rows, c]) for c in range(2)] for s in scores]
        differences.append(np.mean(per_model[1]) - np.mean(per_model[0]))
    got = np.asarray(metrics.mean_defined(found["AP"][1] - found["AP"][0]))
    np.testing.assert_allclose(got, differences, atol=1e-6)
    ends = bootstrap.interval(0.1, got)
    np.testing.assert_allclose([ends.low, ends.high], np.percentile(differences, [2.5, 97.5]), atol=1e-6)


def test_the_mean_over_many_rare_categories_lies_within_its_own_interval():
    rng = np.random.default_rng(4)
    labels, known = rng.random((500, 300)) < 0.01, np.ones((500, 300), bool)
    scores = (rng.normal(size=(1, 500, 300)) + 2 * labels).astype(np.float32)
    every = np.ones((500, 1), np.float32)
    each = [
        bootstrap.weighted_scores(bootstrap.rank(scores[0, :, c], labels[:, c], known[:, c]), every)["AP"][0]
        for c in range(300)
    ]
    value = float(np.nanmean(each))
    drawn = np.nanmean(bootstrap.resample(scores, labels, known, resamples=200)["AP"][0], axis=1)
    plain, moved = bootstrap.interval(value, drawn), bootstrap.score_interval(value, drawn)
    assert value < plain.low  # positives that are drawn twice flatter AP
    assert moved.low < value < moved.high
    assert moved.high - moved.low == pytest.approx(plain.high - plain.low)


def test_the_interval_of_a_score_stays_between_0_and_1_and_undefined_where_the_score_is():
    ends = bootstrap.score_interval(0.99, np.array([0.9, 0.98, 1.0, np.nan]))
    assert (ends.high, ends.resamples) == (1.0, 3)
    assert ends.low == pytest.approx(np.percentile([0.9, 0.98, 1.0], 2.5) + 0.03)
    assert bootstrap.score_interval(0.01, np.array([0.0, 0.02, 0.1])).low == 0
    for value, samples in ((float("nan"), [0.1]), (0.5, [np.nan])):
        nothing = bootstrap.score_interval(value, np.array(samples))
        assert np.isnan([nothing.low, nothing.high]).all()


def test_undefined_resamples_are_left_out_of_the_interval():
    ends = bootstrap.interval(0.5, np.array([0.0, np.nan, 1.0]), level=0.9)
    assert (ends.value, ends.resamples) == (0.5, 2)
    np.testing.assert_allclose([ends.low, ends.high], [0.05, 0.95])
    nothing = bootstrap.interval(float("nan"), np.full(4, np.nan))
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert nothing.resamples == 0


def test_what_does_not_fit_is_refused():
    scores = np.zeros((1, 4, 2), np.float32)
    with pytest.raises(ValueError, match=r"labels \(3, 2\)"):
        bootstrap.resample(scores, np.zeros((3, 2), bool), np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="at least 1 image and 1 resample"):
        bootstrap.resample(scores, np.zeros((4, 2), bool), np.zeros((4, 2), bool), resamples=0)
