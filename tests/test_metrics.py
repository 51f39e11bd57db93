import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from cftjax import metrics
from cftjax.cft import ranking
from cftjax.scores import bootstrap

N = 24  # one shape for all property tests: compiled once


def oracle(scores, labels, where):
    ap, auroc = [], []
    for c in range(scores.shape[1]):
        s, y = scores[where[:, c], c], labels[where[:, c], c]
        defined = y.any() and not y.all()
        ap.append(average_precision_score(y, s) if defined else np.nan)
        auroc.append(roc_auc_score(y, s) if defined else np.nan)
    return np.array(ap), np.array(auroc)


def agree(scores, labels, where):
    ap, auroc = oracle(scores, labels, where)
    np.testing.assert_allclose(metrics.average_precision(scores, labels, where), ap, atol=1e-6)
    np.testing.assert_allclose(metrics.auroc(scores, labels, where), auroc, atol=1e-6)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.one_of(st.integers(-3, 3), st.floats(-30, 30, width=32).map(lambda x: x if abs(x) > 1e-18 else 0.0)),
        min_size=N,
        max_size=N,
    ),
    st.lists(st.booleans(), min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N),
)
def test_scores_equal_scikit_learn_with_ties_and_unknown_labels(scores, labels, known):
    agree(np.array(scores, np.float32)[:, None], np.array(labels)[:, None], np.array(known)[:, None])


@pytest.mark.parametrize("positives", [1, 12, N - 1])
def test_all_scores_equal(positives):
    labels = (np.arange(N) < positives)[:, None]
    agree(np.full((N, 1), 0.7, np.float32), labels, np.ones((N, 1), bool))


def test_a_hundred_thousand_rows_with_and_without_ties():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.normal(size=100_000), rng.integers(0, 500, 100_000), rng.normal(size=100_000)], 1)
    labels = rng.random(scores.shape) < np.array([0.3, 0.01, 0.0])
    labels[77, 2] = True  # a single positive
    agree(scores.astype(np.float32), labels, rng.random(scores.shape) < 0.9)


def test_undefined_scores_are_nan_and_left_out_of_means():
    labels = np.stack([np.zeros(N, bool), np.ones(N, bool), np.arange(N) < 3, np.arange(N) < 5], 1)
    scores = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    ap, auroc = metrics.average_precision(scores, labels), metrics.auroc(scores, labels)
    # scikit-learn would say 1.0 of the second, whatever its scores.
    assert average_precision_score(labels[:, 1], scores[:, 1]) == pytest.approx(1.0)
    assert np.isnan(ap).tolist() == np.isnan(auroc).tolist() == [True, True, False, False]
    assert metrics.mean_defined(ap) == pytest.approx(float(ap[2] + ap[3]) / 2)
    assert np.isnan(metrics.mean_defined(np.array([np.nan, np.nan])))


def test_an_unknown_score_of_nan_does_not_count_and_a_known_one_shows():
    scores = np.arange(N, dtype=np.float32)[:, None]
    scores[3] = np.nan
    labels, known = (np.arange(N) > 9)[:, None], np.ones((N, 1), bool)
    assert np.isnan(metrics.auroc(scores, labels, known)[0])
    known[3] = False
    assert metrics.auroc(scores, labels, known)[0] == 1.0


def test_float64_scores_that_float32_cannot_tell_apart_keep_their_order():
    scores = 1.0 + np.arange(N)[:, None] * 1e-12
    labels = (np.arange(N) >= N - 4)[:, None]
    assert metrics.average_precision(scores, labels)[0] == 1.0
    assert metrics.average_precision(scores.astype(np.float32), labels)[0] == pytest.approx(4 / N)


def test_keys_are_equal_only_for_equal_scores_one_bit_apart_included():
    scores = np.array([0.0, -0.0, 1.0, np.nextafter(np.float32(1), np.float32(2)), -1.0, 1e-18, 3e18], np.float32)
    keys = metrics.ranking_keys(scores, np.zeros(7, bool), np.ones(7, bool))
    assert keys[0] == keys[1]
    assert len(set(np.asarray(keys[1:]).tolist())) == 6
    assert np.array_equal(np.argsort(keys[1:]), np.argsort(scores[1:]))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(3), np.zeros(3), "must both be"),
        (np.zeros((3, 2)), np.zeros((3, 1)), "must both be"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.score("AP", scores, labels)


# What somebody might add: the mean over positives of 1 / (1 + negatives above), ties by half.
NEWCOMER = metrics.RankingMetric(
    "mNEW",
    ties=1,
    of_positive=lambda positives, negatives, _: 2 / (2 + negatives.astype(np.float32)),
    whole=lambda positives, _: positives,
)


def by_definition(metric, scores, labels):
    """The score of one ranking from its entry of the table, a positive at a time."""
    entry = metrics.METRICS[metric]
    positives, negatives = scores[labels], scores[~labels]
    if len(positives) == 0 or len(negatives) == 0:
        return np.nan
    total = np.array(len(negatives))
    won = sum(
        entry.of_positive(
            np.array(2 * (positives >= one).sum()),
            np.array(2 * (negatives > one).sum() + entry.ties * (negatives == one).sum()),
            total,
        )
        for one in positives
    )
    return won / entry.whole(np.array(len(positives)), total)


@pytest.mark.parametrize("metric", [*metrics.METRICS, "NEW"])
@pytest.mark.parametrize("kind", ["ties", "no ties", "no positive", "no negative"])
def test_every_metric_of_the_table_is_the_same_however_it_is_counted(monkeypatch, metric, kind):
    n = 40
    if metric == "NEW":
        n, metric = 41, "AUROC"  # in its place, at a length that has not been compiled with it
        monkeypatch.setitem(metrics.METRICS, metric, NEWCOMER)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(n, 1)).astype(np.float32)
    scores = scores if kind == "no ties" else scores.round()
    labels, known = np.arange(n)[:, None] < 11, rng.random((n, 1)) < 0.8
    known &= ~labels if kind == "no positive" else labels if kind == "no negative" else True
    expected = by_definition(metric, scores[known], labels[known])
    assert np.isnan(expected) == kind.startswith("no ") - (kind == "no ties")
    assert metrics.score(metric, scores, labels, known)[0] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    for platform in ("cpu", "tpu", "gpu"):
        columns = tuple(map(jnp.asarray, (scores.T, labels[:, 0], known[:, 0])))
        (counted,) = ranking.by_counting(metric, *columns, slots=16, platform=platform)
        (by_order,) = ranking.by_sorting(metric, *columns, platform=platform)
        assert counted == pytest.approx(expected, abs=1e-6, nan_ok=True)
        assert by_order == pytest.approx(expected, abs=1e-6, nan_ok=True)
    ranked = bootstrap.rank(scores[:, 0], labels[:, 0], known[:, 0])
    (resampled,) = bootstrap.weighted_scores(ranked, np.ones((n, 1), np.float32))[metric]
    assert resampled == pytest.approx(expected, abs=1e-6, nan_ok=True)
