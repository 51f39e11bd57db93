import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_recall_curve, roc_curve

from cftjax import decisions
from cftjax.config import DecideConfig

METHODS = ("none", "platt", "temperature", "isotonic")


def labelled(n=400, c=3, seed=0):
    """Logits that are too bold by half and shifted, differently in each category."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1, 2, (n, c))
    labels = rng.random((n, c)) < special.expit(true)
    logits = true * np.linspace(1.5, 3, c)[None, :] + np.linspace(-1, 2, c)[None, :]
    return logits.astype(np.float32), labels, rng.random((n, c)) < 0.8


def fitted(calibration="platt", rule="f1", logits=None, labels=None, known=None, **options):
    if logits is None:
        logits, labels, known = labelled()
    config = DecideConfig(rule=rule, calibration=calibration, **options)
    names = [f"c{j}" for j in range(logits.shape[1])]
    return decisions.fit(logits, labels, known, config, categories=names, split="validation")


def counts(probs, labels, threshold):
    decided = probs >= threshold
    return (decided & labels).sum(), (decided & ~labels).sum()


def worth(rule, target, tp, fp, positive, negative):
    """What a rule prefers, and then fewer positive decisions, or for `precision` more."""
    if rule == "f1":
        return 2 * tp / (tp + fp + positive), -(tp + fp)
    if rule == "youden":
        return int(tp) * int(negative) - int(fp) * int(positive), -(tp + fp)
    if rule == "precision":
        return tp + fp > 0 and tp / (tp + fp) >= target, tp + fp
    return tp / positive >= target, -(tp + fp)


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]) | st.floats(0, 1), st.booleans()),
        min_size=2,
        max_size=12,
    ),
    rule=st.sampled_from(["f1", "youden", "precision", "sensitivity"]),
    target=st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]),
)
def test_no_other_threshold_serves_a_rule_better(scores, rule, target):
    probs, labels = np.array([p for p, _ in scores]), np.array([y for _, y in scores])
    labels[0], labels[1] = True, False
    found = decisions.threshold(probs, labels, rule, target)
    positive, negative = labels.sum(), (~labels).sum()
    # Nothing is decided positive only where no cut has the precision.
    cuts = np.unique(probs)
    best = max(worth(rule, target, *counts(probs, labels, cut), positive, negative) for cut in cuts)
    if found == decisions.NEVER:
        assert rule == "precision"
        assert not best[0]
    else:
        assert worth(rule, target, *counts(probs, labels, found), positive, negative) == best


def test_thresholds_are_those_of_scikit_learn_s_curves():
    rng = np.random.default_rng(3)
    labels = rng.random(300) < 0.3
    probs = np.round(special.expit(rng.normal(size=300) + labels), 2)  # with ties
    precision, recall, cuts = precision_recall_curve(labels, probs)
    at = {rule: decisions.threshold(probs, labels, rule, 0.6) for rule in ("f1", "youden", "precision", "sensitivity")}
    assert f1_score(labels, probs >= at["f1"]) == max(f1_score(labels, probs >= cut) for cut in cuts)
    fpr, tpr, _ = roc_curve(labels, probs, drop_intermediate=False)
    decided = probs >= at["youden"]
    assert decided[labels].mean() - decided[~labels].mean() == pytest.approx((tpr - fpr).max(), abs=1e-12)
    assert (probs >= at["precision"]).sum() == (probs >= cuts[precision[:-1] >= 0.6].min()).sum()
    assert (probs >= at["sensitivity"]).sum() == (probs >= cuts[recall[:-1] >= 0.6].max()).sum()


def test_a_threshold_lies_half_way_between_the_scores_on_both_sides():
    probs, labels = np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True])
    assert decisions.threshold(probs, labels, "f1") == pytest.approx(0.4)
    assert decisions.threshold(probs, labels[::-1], "sensitivity", 1.0) == pytest.approx(0.05)
    neighbours = np.array([0.5, np.nextafter(0.5, 1)])
    assert (neighbours >= decisions.threshold(neighbours, np.array([False, True]), "f1")).tolist() == [False, True]


@pytest.mark.parametrize("method", METHODS)
def test_a_higher_logit_never_has_a_lower_probability_and_what_is_stored_decides_alike(tmp_path, method):
    logits, labels, known = labelled()
    made = fitted(method, logits=np.where([True, True, False], logits, -logits), labels=labels, known=known)
    order = np.sort(logits, axis=0)
    assert (np.diff(made.probabilities(order), axis=0) >= 0).all()
    decisions.write(tmp_path / "decisions.json", made)
    stored = decisions.read(tmp_path / "decisions.json")
    probs = stored.probabilities(logits)
    np.testing.assert_array_equal(probs, made.probabilities(logits))
    np.testing.assert_array_equal(stored.decide(probs), made.decide(probs))
    assert stored.rule == "f1"
    assert stored.fitted_on.split == "validation"
    np.testing.assert_array_equal(stored.fitted_on.positive, (labels & known).sum(0))
    np.testing.assert_array_equal(stored.fitted_on.negative, (~labels & known).sum(0))


def test_platt_is_scikit_learn_s_logistic_regression_on_smoothed_targets():
    logits, labels, known = labelled()
    made = fitted("platt")
    for j in range(3):
        x, y = logits[known[:, j], j].astype(float), labels[known[:, j], j]
        positive, negative = y.sum(), (~y).sum()
        target = np.where(y, (positive + 1) / (positive + 2), 1 / (negative + 2))
        twice = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
            np.tile(x, 2)[:, None], np.repeat([1, 0], len(x)), sample_weight=np.concatenate([target, 1 - target])
        )
        np.testing.assert_allclose(made.scale[j], twice.coef_[0, 0], rtol=1e-4)
        np.testing.assert_allclose(made.offset[j], twice.intercept_[0], atol=1e-4)


def test_a_temperature_is_the_one_scale_of_least_cross_entropy():
    logits, labels, known = labelled()
    made = fitted("temperature")
    np.testing.assert_array_equal(made.offset, 0)
    x, y = logits[known[:, 0], 0].astype(float), labels[known[:, 0], 0]
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    best = optimize.minimize_scalar(lambda a: np.mean(np.logaddexp(0, a * x) - target * a * x), bounds=(0, 5))
    assert made.scale[0] == pytest.approx(best.x, abs=1e-4)


def test_isotonic_is_scikit_learn_s_also_beyond_the_logits_seen():
    logits, labels, known = labelled()
    made = fitted("isotonic")
    beyond = np.repeat(np.linspace(-30, 30, 101, dtype=np.float32)[:, None], 3, 1)
    for j in range(3):
        oracle = IsotonicRegression(out_of_bounds="clip").fit(logits[known[:, j], j], labels[known[:, j], j])
        np.testing.assert_allclose(made.probabilities(beyond)[:, j], oracle.predict(beyond[:, j]), atol=1e-6)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_calibrated_probabilities_of_unseen_images_are_nearer_to_the_truth(method):
    logits, labels, _ = labelled(4000, seed=5)
    brier = {name: ((fitted(name).probabilities(logits) - labels) ** 2).mean() for name in ("none", method)}
    assert brier[method] < brier["none"]


def test_labels_that_are_not_known_change_nothing():
    logits, labels, known = labelled()
    other = fitted(logits=logits, labels=np.where(known, labels, ~labels), known=known)
    np.testing.assert_array_equal(other.thresholds, fitted().thresholds)
    np.testing.assert_array_equal(other.scale, fitted().scale)


def test_categories_without_both_labels_are_named_and_decided_at_one_half(tmp_path):
    logits, labels, known = labelled()
    labels[:, 0] = False
    known[:, 1] = False
    for method in METHODS:
        made = fitted(method, logits=logits, labels=labels, known=known)
        assert np.isnan(made.thresholds).tolist() == [True, True, False]
        assert made.notes["c0"].startswith("no known positive in validation")
        assert set(made.notes) == {"c0", "c1"}
        decisions.write(tmp_path / "decisions.json", made)
        assert json.loads((tmp_path / "decisions.json").read_text())["categories"][0]["threshold"] is None
        stored = decisions.read(tmp_path / "decisions.json")
        probs = stored.probabilities(logits)
        np.testing.assert_allclose(probs[:, :2], special.expit(logits[:, :2].astype(float)))
        np.testing.assert_array_equal(stored.decide(probs)[:, :2], logits[:, :2] >= 0)


def test_a_precision_that_nothing_reaches_decides_nothing_positive():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 1)), np.arange(50)[:, None] % 2 == 0
    labels[logits[:, 0].argmax()] = False
    made = fitted("isotonic", "precision", logits=logits, labels=labels, known=np.ones_like(labels), precision=1.0)
    assert made.thresholds[0] == decisions.NEVER
    assert "no threshold reaches precision 1" in made.notes["c0"]
    assert not made.decide(np.ones((2, 1))).any()


def test_separable_and_constant_logits_have_finite_fits():
    labels = np.arange(10)[:, None] % 2 == 0
    known = np.ones_like(labels)
    for method in ("platt", "temperature"):
        separable = fitted(method, logits=np.where(labels, 2.0, -2.0), labels=labels, known=known)
        np.testing.assert_allclose(separable.probabilities(np.array([[-2.0], [2.0]])), [[1 / 7], [6 / 7]], atol=1e-5)
        constant = fitted(method, logits=np.zeros((10, 1)), labels=labels, known=known)
        assert constant.probabilities(np.zeros((1, 1))).item() == pytest.approx(0.5, abs=1e-6)


def test_groups_of_categories_joined_are_the_whole():
    logits, labels, known = labelled()
    for method in METHODS:
        whole = fitted(method)
        parts = [
            decisions.fit(
                logits[:, some],
                labels[:, some],
                known[:, some],
                DecideConfig(calibration=method),
                categories=whole.categories[some],
                split="validation",
            )
            for some in (slice(0, 2), slice(2, 3))
        ]
        joined = decisions.joined(parts)
        assert joined.categories == whole.categories
        np.testing.assert_array_equal(joined.thresholds, whole.thresholds)
        np.testing.assert_array_equal(joined.probabilities(logits), whole.probabilities(logits))
        np.testing.assert_array_equal(joined.fitted_on.positive, whole.fitted_on.positive)


def test_training_labels_are_called_optimistic():
    logits, labels, known = labelled()
    made = decisions.fit(logits, labels, known, DecideConfig(), categories=["a", "b", "c"], split="train")
    assert made.fitted_on.split == "train"
    assert "optimistic" in made.fitted_on.note


def test_wrong_settings_and_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"decide\.precision 1\.2 is not a share"):
        DecideConfig(precision=1.2)
    with pytest.raises(ValueError, match="must have 3 columns"):
        fitted().probabilities(np.zeros((2, 4)))
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(ValueError, match=r"wrong\.json does not hold decisions"):
        decisions.read(tmp_path / "wrong.json")
