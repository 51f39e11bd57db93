import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from sklearn.linear_model import LogisticRegression

from cftjax import metrics
from cftjax.cft import packing, spaces
from cftjax.cft import polish as polishing
from cftjax.cft.choose import choose
from cftjax.config import PolishConfig
from cftjax.types import Embeddings, Heads

TRAIN, VALIDATION = toy.embeddings(seed=0), toy.embeddings(seed=1, known=0.9)
SHORT = PolishConfig(num_steps=60, dimensions=5, l2=(0.0, 0.01, 0.1))


def ap(heads, split):
    return np.asarray(metrics.average_precision(np.asarray(heads(split.z)), split.labels, split.known))


@pytest.fixture(scope="module")
def polished():
    return polishing.polish(toy.heads(), TRAIN, VALIDATION, config=SHORT)


def test_validation_rises_and_the_score_reported_is_that_of_the_head_returned(polished):
    np.testing.assert_allclose(polished.before, ap(toy.heads(), VALIDATION), atol=1e-5)
    np.testing.assert_allclose(polished.after, ap(polished.heads, VALIDATION), atol=0.01)
    assert (polished.after > polished.before).all()
    assert set(polished.pulls) <= {pull.name for pull in polishing.pulls(SHORT)}


def rows_of_one_category(category):
    zero = Heads(np.zeros((3, 5), np.float32), np.zeros(3, np.float32))
    seen = spaces.see(TRAIN, zero, spaces.Space())
    return jax.tree.map(
        lambda x: x[0], packing.rows_of(seen, [category], packing.Shape(256, 0), np.ones(3, np.float32))
    )


def test_the_polish_reaches_the_logistic_regression_of_scikit_learn():
    rows, towards, l2 = rows_of_one_category(1), jnp.zeros(2), jnp.float32([0.05, 1e-3])

    fitted = jax.jit(lambda rows: polishing._regressions(rows, towards, l2, 30))(rows)
    known = TRAIN.known[:, 1]
    for i, strength in enumerate((0.05, 1e-3)):
        oracle = LogisticRegression(C=1 / (strength * known.sum()), tol=1e-8, max_iter=1000)
        oracle.fit(TRAIN.z[known], TRAIN.labels[known, 1])
        np.testing.assert_allclose(fitted["genes"][i], oracle.coef_[0], atol=1e-3)
        np.testing.assert_allclose(fitted["bias"][i], oracle.intercept_[0], atol=1e-3)


def test_pulls_towards_the_start_and_towards_zero_reach_the_least_objective():
    seen = spaces.see(TRAIN, toy.heads(), spaces.Space())
    packed = packing.rows_of(seen, [0], packing.Shape(256, 0), np.ones(3, np.float32))
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), packed)
    towards, l2 = jnp.float32([1, 0]), jnp.float32([0.02, 0.02])
    found = jax.jit(lambda rows: polishing._regressions(rows, towards, l2, 30))(rows)
    gradient = jax.vmap(jax.grad(polishing._objective), (0, None, 0, 0, None))
    for slope in gradient((found["genes"], found["bias"]), rows, towards, l2, "bce"):
        np.testing.assert_allclose(slope, 0, atol=2e-5)


def test_the_published_variant_keeps_the_best_step_and_stops(polished):
    config = PolishConfig(
        optimizer="adam",
        num_steps=60,
        patience=5,
        learning_rate=1.0,
        dimensions=None,
        pull_towards=("start",),
        l2=(0.0,),
        rule="best",
        refit_bias=False,
    )
    result = polishing.polish(toy.heads(), TRAIN, VALIDATION, config=config)
    assert (result.steps < 60).all()
    assert (result.after >= result.before).all()
    np.testing.assert_allclose(result.after, ap(result.heads, VALIDATION), atol=1e-5)
    with pytest.raises(ValueError, match=r"use --polish\.optimizer adam"):
        polishing.polish(toy.heads(), TRAIN, VALIDATION, config=PolishConfig(loss="asymmetric"))


def test_a_strong_pull_keeps_the_head_where_it_started():
    config = dataclasses.replace(SHORT, l2=(1e4,), pull_towards=("start",), refit_bias=False)
    result = polishing.polish(toy.heads(), TRAIN, VALIDATION, config=config)
    np.testing.assert_allclose(result.heads.kernel, toy.heads().kernel, atol=0.02)


def test_the_mean_that_is_told_is_over_all_categories_and_never_falls():
    told = []
    config = dataclasses.replace(SHORT, rule="best")
    result = polishing.polish(
        toy.heads(), TRAIN, VALIDATION, config=config, progress=lambda *news: told.append(news[2])
    )
    gain = np.maximum(result.after - result.before, 0)
    assert result.before.mean() <= told[0] <= result.before.mean() + gain.max() / 3 + 1e-6
    assert (np.diff(told) >= -1e-6).all()
    np.testing.assert_allclose(told[-1], result.after.mean(), atol=1e-6)


def test_devices_agree_and_a_store_saves_the_work(polished):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    store = {}
    sharded = polishing.polish(toy.heads(), TRAIN, VALIDATION, config=SHORT, mesh=mesh, store=store)
    np.testing.assert_allclose(sharded.heads.kernel, polished.heads.kernel, atol=1e-5)
    done = []
    again = polishing.polish(
        toy.heads(),
        TRAIN,
        VALIDATION,
        config=SHORT,
        mesh=mesh,
        store=store,
        progress=lambda d, t, s: done.append((d, t)),
    )
    assert done[-1] == (3, 3)
    np.testing.assert_array_equal(again.heads.kernel, sharded.heads.kernel)


def test_choosing_takes_the_best_on_validation_and_keeps_the_first_on_a_tie(polished):
    better = dataclasses.replace(polished.heads)
    worse = Heads(-better.kernel, better.bias)
    chosen = choose({"backbone": toy.heads(), "same": toy.heads(), "worse": worse, "polish": better}, TRAIN, VALIDATION)
    assert chosen.names == ["polish"] * 3
    assert choose({"backbone": toy.heads(), "same": toy.heads()}, TRAIN, VALIDATION).names == ["backbone"] * 3
    mixed = Heads(np.stack([better.kernel[0], worse.kernel[1], better.kernel[2]]), better.bias)
    chosen = choose({"backbone": toy.heads(), "polish": mixed}, TRAIN, VALIDATION)
    assert chosen.names == ["polish", "backbone", "polish"]
    np.testing.assert_array_equal(chosen.heads.kernel[1], toy.heads().kernel[1])


def test_a_category_that_cannot_be_judged_keeps_its_head_and_is_named(polished):
    known = VALIDATION.known.copy()
    known[:, 2] &= VALIDATION.labels[:, 2]
    validation = Embeddings(VALIDATION.z, VALIDATION.labels, known)
    result = polishing.polish(toy.heads(), TRAIN, validation, config=SHORT)
    assert result.untuned == {2: "no known negative in validation"}
    np.testing.assert_array_equal(result.heads.kernel[2], toy.heads().kernel[2])
    chosen = choose({"backbone": toy.heads(), "polish": polished.heads}, TRAIN, validation)
    assert chosen.names[2] == "backbone"
    assert list(chosen.untuned) == [2]
