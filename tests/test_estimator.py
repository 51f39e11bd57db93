import dataclasses

import numpy as np
import pytest
import toy
from sklearn import linear_model
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

import cftjax
from cftjax import CategoryWiseFineTuner, estimator
from cftjax.config import GAConfig, PolishConfig, TuningConfig

CONFIG = TuningConfig(
    ga=GAConfig(num_generations=5, population_size=6, dimensions=2, restarts=1), polish=PolishConfig(num_steps=20)
)
TRAIN, VALIDATION = toy.embeddings(96, 0), toy.embeddings(64, 1)


def with_nan(split):
    return np.where(split.known, split.labels.astype(float), np.nan)


@pytest.fixture(scope="module")
def fitted():
    tuner = CategoryWiseFineTuner(CONFIG)
    return tuner.fit(TRAIN.z, with_nan(TRAIN), heads=toy.heads(), validation=(VALIDATION.z, with_nan(VALIDATION)))


def logistic(train, validation, heads, *, config):
    """In the place of fine_tune, which compiles for every shape of the checks."""
    kernel, bias = [], []
    for labels, known in zip(np.transpose(train.labels), np.transpose(train.known), strict=True):
        several = labels[known].any() and not labels[known].all()
        model = linear_model.LogisticRegression().fit(train.z[known], labels[known]) if several else None
        kernel.append(model.coef_[0] if model else np.zeros(train.z.shape[1]))
        bias.append(model.intercept_[0] if model else 0.0)
    new = cftjax.Heads(np.array(kernel, np.float32), np.array(bias, np.float32))
    return estimator.tuning.Chosen(new, ["polish"] * len(bias), {}, {})


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_it_passes_the_estimator_checks_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(estimator.tuning, "fine_tune", logistic)
    # Settings of no type that they may have: here, and here alone, types are checked at each call.
    untyped = {"check_do_not_raise_errors_in_init_or_set_params": "types are checked at each call of the tests"}
    results = check_estimator(CategoryWiseFineTuner(), expected_failed_checks=untyped)
    assert {result["status"] for result in results if result["check_name"] not in untyped} <= {"passed", "skipped"}
    assert sum(result["status"] == "passed" for result in results) > 50


def test_it_finds_what_fine_tune_finds(fitted):
    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    config = dataclasses.replace(CONFIG, seed=seed)
    chosen = cftjax.fine_tune(TRAIN, VALIDATION, toy.heads(), config=config)
    np.testing.assert_array_equal(fitted.heads_.kernel, chosen.heads.kernel)
    assert fitted.chosen_.names == chosen.names


def test_probabilities_are_calibrated_and_agree_with_decisions(fitted):
    z = VALIDATION.z
    probs = fitted.predict_proba(z)
    assert probs.shape == (64, 3)
    np.testing.assert_array_equal(fitted.predict(z), probs >= 0.5)
    np.testing.assert_array_equal(fitted.decision_function(z) > 0, probs > 0.5)
    logits = np.asarray(fitted.heads_(z))
    np.testing.assert_allclose(probs, fitted.decisions_.probabilities(logits))


def test_fitted_thresholds_decide_where_asked_for(fitted):
    other = clone(fitted).set_params(threshold="fitted")
    vars(other).update({name: value for name, value in vars(fitted).items() if name.endswith("_") or name[0] == "_"})
    probs = other.predict_proba(VALIDATION.z)
    np.testing.assert_array_equal(other.predict(VALIDATION.z), fitted.decisions_.decide(probs))


def test_unknown_labels_do_not_count(fitted):
    labels = with_nan(TRAIN)
    other = TRAIN.labels ^ ~TRAIN.known
    assert (other != TRAIN.labels).any()
    changed = np.where(TRAIN.known, other.astype(float), np.nan)
    np.testing.assert_array_equal(labels, changed)
    masked = cftjax.Embeddings(TRAIN.z, other, TRAIN.known)
    again = CategoryWiseFineTuner(CONFIG).fit(
        masked.z, with_nan(masked), heads=toy.heads(), validation=(VALIDATION.z, with_nan(VALIDATION))
    )
    np.testing.assert_array_equal(again.heads_.kernel, fitted.heads_.kernel)


def test_a_single_category_may_have_classes_of_any_name(monkeypatch):
    monkeypatch.setattr(estimator.tuning, "fine_tune", logistic)
    y = np.where(TRAIN.labels[:, 0], "sick", "well")
    tuner = CategoryWiseFineTuner().fit(TRAIN.z, y)
    assert tuner.classes_.tolist() == ["sick", "well"]
    assert (tuner.predict(TRAIN.z) == y).mean() > 0.7
    np.testing.assert_allclose(tuner.predict_proba(TRAIN.z).sum(1), 1)


@pytest.mark.parametrize(
    ("labels", "heads", "message"),
    [
        (np.full((96, 3), -1.0), None, "labels .n c. are 1, 0, and NaN"),
        (np.zeros((96, 3)), cftjax.Heads(np.zeros((3, 4), np.float32), np.zeros(3, np.float32)), r"ask for \(3, 5\)"),
        (np.arange(96) % 3, None, "a column of 1 and 0 for each category"),
        (np.zeros((95, 3)), None, "96 rows and y 95"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_mend(labels, heads, message):
    with pytest.raises(ValueError, match=message):
        CategoryWiseFineTuner(CONFIG).fit(TRAIN.z, labels, heads=heads)
