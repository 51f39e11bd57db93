import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from cftjax.scores import bootstrap, curves, logits, measure
from cftjax.scores.measure import Asked
from cftjax.scores.predictions import Block, Predictions, Truth

N, C = 60, 4
CATEGORIES = ("fox", "dog", "owl", "cat")


def truth(seed=0, known=0.8, groups=None):
    rng = np.random.default_rng(seed)
    labels = rng.random((N, C)) < np.array([0.5, 0.3, 0.2, 0.4])
    return Truth(CATEGORIES, labels, rng.random((N, C)) < known, "test", groups=groups)


def model(name="a", seed=1, given=(True,) * C, thresholds=(0.5, 0.4, 0.6, 0.3)):
    """Probabilities with ties, of which the labels of `truth` are no function."""
    rng = np.random.default_rng(seed)
    probs = np.clip(0.3 * truth().labels + 0.7 * rng.random((N, C)), 0, 1).round(2)
    probs[:, ~np.array(given)] = np.nan
    return Predictions(
        name, np.array(given), lambda some: Block(probs[:, some], probs[:, some]), np.array(thresholds, float)
    )


def known_part(labels, known, c):
    return labels.labels[known.known[:, c], c]


def test_scores_of_a_category_are_scikit_learns_on_its_known_labels():
    t, m = truth(), model()
    found = measure.measure(t, [m], Asked(resamples=0)).scores[0].each
    probs = m.block(slice(0, C)).probs
    for c in range(C):
        told = t.known[:, c]
        y, p = t.labels[told, c], probs[told, c]
        decided = p >= m.thresholds[c]
        assert found["AP"][c] == pytest.approx(sk.average_precision_score(y, p), abs=1e-6)
        assert found["AUROC"][c] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-6)
        assert found["precision"][c] == pytest.approx(sk.precision_score(y, decided))
        assert found["recall"][c] == pytest.approx(sk.recall_score(y, decided))
        assert found["F1"][c] == pytest.approx(sk.f1_score(y, decided))
        places = np.minimum((p * 15).astype(int), 14)
        error = sum(abs(y[places == b].sum() - p[places == b].sum()) for b in range(15)) / len(y)
        assert found["ECE"][c] == pytest.approx(error)


def test_scores_over_all_categories_are_scikit_learns_micro_and_macro_averages():
    t, m = truth(known=1.1), model()
    found = measure.measure(t, [m], Asked(resamples=0)).scores[0].overall
    probs = m.block(slice(0, C)).probs
    decided = probs >= m.thresholds
    for average, names in (("macro", ("CP", "CR", "mF1")), ("micro", ("OP", "OR", "OF1"))):
        expected = sk.precision_recall_fscore_support(t.labels, decided, average=average)[:3]
        np.testing.assert_allclose([found[name] for name in names], expected)
    assert found["CF1"] == pytest.approx(2 * found["CP"] * found["CR"] / (found["CP"] + found["CR"]))
    assert found["micro_AP"] == pytest.approx(sk.average_precision_score(t.labels, probs, average="micro"))
    assert found["mAP"] == pytest.approx(sk.average_precision_score(t.labels, probs, average="macro"), abs=1e-6)
    assert found["mAUC"] == pytest.approx(sk.roc_auc_score(t.labels, probs, average="macro"), abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40), st.integers(1, 5))
def test_the_pooled_average_precision_is_scikit_learns_in_any_number_of_parts(rows, parts):
    probs, labels = np.array([p / 8 for p, _ in rows]), np.array([y for _, y in rows])
    pooled = curves.Pooled(np.array_split(probs[labels], parts))
    for part in np.array_split(probs[~labels], parts):
        pooled.add(part)
    if labels.any() and not labels.all():
        assert pooled.average_precision() == pytest.approx(sk.average_precision_score(labels, probs))
    else:
        assert np.isnan(pooled.average_precision())


def test_what_is_undefined_is_nan_and_left_out_of_the_means():
    t = truth()
    t.labels[:, 1] = False  # no positive
    t.labels[:, 2] = True  # no negative
    never = model(thresholds=(0.5, 0.4, 0.6, 2.0))  # decides nothing in the last
    found = measure.measure(t, [never], Asked(resamples=0)).scores[0]
    assert {name: np.flatnonzero(np.isnan(values)).tolist() for name, values in found.each.items()} == {
        "AP": [1, 2],
        "AUROC": [1, 2],
        "precision": [3],
        "recall": [1],
        "F1": [1],
        "ECE": [],
    }
    assert found.each["F1"][3] == found.each["recall"][3] == 0  # it could have found some
    assert found.overall["mAUC"] == pytest.approx(found.each["AUROC"][[0, 3]].mean())
    assert found.overall["CP"] == pytest.approx(found.each["precision"][[0, 2]].mean())
    assert found.overall["CR"] == pytest.approx(found.each["recall"][[0, 2, 3]].mean())
    nothing = Truth(CATEGORIES, t.labels, np.zeros((N, C), bool), "test")
    found = measure.measure(nothing, [never], Asked(resamples=10))
    assert np.isnan(list(found.scores[0].overall.values())).all()
    assert np.isnan(measure.interval_of(found, 0, "AP").low)


def test_a_category_that_a_model_does_not_give_counts_nowhere_for_it():
    t = truth()
    part, whole = model("part", given=(True, False, True, True)), model("whole")
    only = measure.measure(t, [part, whole], Asked(resamples=20))
    found = only.scores[0]
    assert all(np.isnan(values[1]) and not np.isnan(values[[0, 2, 3]]).any() for values in found.each.values())
    kept = [0, 2, 3]
    three = Truth(tuple(CATEGORIES[c] for c in kept), t.labels[:, kept], t.known[:, kept], "test")
    probs = whole.block(slice(0, C)).probs[:, kept]
    same = Predictions(
        "three", np.ones(3, bool), lambda some: Block(probs[:, some], probs[:, some]), whole.thresholds[kept]
    )
    assert found.overall == pytest.approx(measure.measure(three, [same], Asked(resamples=0)).scores[0].overall)
    # The same predictions in the categories that both give: no difference.
    assert measure.difference(only, 1, 0, "AP") == (bootstrap.Interval(0.0, 0.0, 0.0, 20), 1.0)


def test_groups_of_categories_change_nothing(monkeypatch):
    t, models = truth(groups=np.arange(N) // 3), [model(), model("b", 2)]
    whole = measure.measure(t, models, Asked(resamples=30, drawn=[0, 3]))
    monkeypatch.setattr(logits, "BLOCK_BYTES", 1)
    seen = []
    parts = measure.measure(t, models, Asked(resamples=30, drawn=[0, 3]), lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for a, b in zip(whole.scores, parts.scores, strict=True):
        assert a.overall == b.overall
        np.testing.assert_equal(a.each, b.each)
        assert a.curves.keys() == b.curves.keys() == {0, 3}
    np.testing.assert_array_equal(whole.resampled["AP"][1], parts.resampled["AP"][1])


def test_intervals_and_differences_are_percentiles_of_the_same_resamples():
    t, models = truth(groups=np.arange(N) // 3), [model(), model("b", 2)]
    found = measure.measure(t, models, Asked(resamples=50, seed=3))
    each = np.stack([m.block(slice(0, C)).probs for m in models])
    labels = t.labels & t.known
    drawn = bootstrap.resample(each, labels, t.known, groups=t.groups, resamples=50, seed=3)["AUROC"]
    means = drawn.mean(axis=2)
    one = measure.interval_of(found, 0, "AUROC")
    bias = means[0].mean() - found.scores[0].overall["mAUC"]
    np.testing.assert_allclose([one.low, one.high], np.quantile(means[0], [0.025, 0.975]) - bias, atol=1e-6)
    apart = measure.difference(found, 0, 1, "AUROC")
    gap = means[0] - means[1]
    np.testing.assert_allclose([apart.interval.low, apart.interval.high], np.quantile(gap, [0.025, 0.975]), atol=1e-6)
    assert apart.p == pytest.approx(min(1, 2 * (1 + min((gap <= 0).sum(), (gap >= 0).sum())) / 51))
    single = measure.difference(found, 0, 1, "AUROC", 2)
    assert single.interval.value == pytest.approx(found.scores[0].each["AUROC"][2] - found.scores[1].each["AUROC"][2])


def test_p_is_small_for_one_sided_resamples_one_for_none_and_never_zero():
    assert bootstrap.p_value(np.full(999, 0.1)) == pytest.approx(2 / 1000)
    assert bootstrap.p_value(np.full(999, -0.1)) == pytest.approx(2 / 1000)
    assert bootstrap.p_value(np.zeros(99)) == 1
    assert bootstrap.p_value(np.r_[np.full(97, 1.0), -1.0, -2.0, np.nan]) == pytest.approx(2 * 3 / 100)
    assert np.isnan(bootstrap.p_value(np.array([np.nan])))


def test_p_of_two_equally_good_models_is_uniform_enough():
    rng = np.random.default_rng(0)
    small = 0
    for trial in range(120):
        labels = rng.random((80, 1)) < 0.4
        both = labels[None] + rng.normal(size=(2, 80, 1))
        drawn = bootstrap.resample(both, labels, np.ones((80, 1), bool), resamples=120, seed=trial)["AUROC"][..., 0]
        small += bootstrap.p_value(drawn[0] - drawn[1]) <= 0.1
    assert 3 <= small <= 26  # 12 expected; 4 standard deviations


def test_curves_pass_through_scikit_learns_points_and_have_their_areas():
    t, m = truth(), model()
    found = measure.measure(t, [m], Asked(resamples=0, drawn=[2])).scores[0].curves
    assert list(found) == [2]
    told = t.known[:, 2]
    y, p = t.labels[told, 2], m.block(slice(2, 3)).probs[told, 0]
    false, true, _ = sk.roc_curve(y, p, drop_intermediate=False)
    np.testing.assert_allclose(found[2].false_positive_rate, false[1:])
    np.testing.assert_allclose(found[2].recall, true[1:])
    area = (np.diff(np.r_[0, found[2].recall]) * found[2].precision).sum()
    assert area == pytest.approx(sk.average_precision_score(y, p))
