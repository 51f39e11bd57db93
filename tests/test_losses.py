import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cftjax import losses

N, C = 6, 5
rng = np.random.default_rng(0)
LOGITS = rng.normal(scale=3, size=(N, C)).astype(np.float32)
LOGITS[0] = [-9.0, -2.9, 0.0, 2.0, 9.0]  # a probability well below, close to and above the clip of 0.05
TARGETS = rng.choice([0.0, 1.0, 0.2, 0.7], size=(N, C)).astype(np.float32)
WHERE = rng.random((N, C)) < 0.6
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.0, 3.0], np.float32)


def define_bce(x, t):
    p = 1 / (1 + np.exp(-x))
    return -t * np.log(p) - (1 - t) * np.log(1 - p)


def define_asymmetric(x, t, gamma_negative=4.0, gamma_positive=0.0, clip=0.05):
    p = 1 / (1 + np.exp(-x))
    q = np.minimum(1 - p + clip, 1)
    return -t * (1 - p) ** gamma_positive * np.log(p) - (1 - t) * (1 - q) ** gamma_negative * np.log(q)


def define_focal(x, t, gamma=2.0):
    p = 1 / (1 + np.exp(-x))
    return -t * (1 - p) ** gamma * np.log(p) - (1 - t) * p**gamma * np.log(1 - p)


CASES = {
    "bce": (losses.sigmoid_bce, define_bce, {}),
    "focal": (losses.focal, define_focal, {}),
    "focal, gamma 0.5": (losses.focal, define_focal, {"gamma": 0.5}),
    "asymmetric": (losses.asymmetric, define_asymmetric, {}),
    "asymmetric, both exponents": (
        losses.asymmetric,
        define_asymmetric,
        {"gamma_negative": 2.5, "gamma_positive": 1.0, "clip": 0.2},
    ),
    "asymmetric, small exponent": (losses.asymmetric, define_asymmetric, {"gamma_negative": 0.5}),
    "asymmetric, shift alone": (losses.asymmetric, define_asymmetric, {"gamma_negative": 0.0}),
}
every_loss = pytest.mark.parametrize("case", CASES)
ALL, ONES = np.ones((N, C), bool), np.ones(C, np.float32)


@functools.cache
def compiled(case):
    """Values and gradient of one case; compiled once, for compilation is what these tests cost."""
    loss, _, options = CASES[case]

    def evaluate(logits, targets, where, weights):
        values, pullback = jax.vjp(lambda x: loss(x, targets, where, weights, **options), logits)
        return values, *pullback(jnp.ones_like(values))

    return jax.jit(evaluate)


@every_loss
def test_loss_equals_its_definition_for_soft_targets(case):
    _, define, options = CASES[case]
    expected = define(LOGITS.astype(np.float64), TARGETS, **options)
    np.testing.assert_allclose(compiled(case)(LOGITS, TARGETS, ALL, ONES)[0], expected, rtol=2e-5, atol=1e-7)


@every_loss
def test_gradient_equals_finite_differences_of_the_definition(case):
    _, define, options = CASES[case]
    x, step = LOGITS.astype(np.float64), 1e-6
    expected = (define(x + step, TARGETS, **options) - define(x - step, TARGETS, **options)) / (2 * step)
    np.testing.assert_allclose(compiled(case)(LOGITS, TARGETS, ALL, ONES)[1], expected, rtol=1e-4, atol=1e-5)


@every_loss
def test_masked_labels_add_exactly_nothing_even_if_they_are_nan_or_infinite(case):
    bad = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), (N, C))
    logits, targets = np.where(WHERE, LOGITS, bad), np.where(WHERE, TARGETS, np.roll(bad, 1))
    masked, unmasked = compiled(case)(logits, targets, WHERE, ONES), compiled(case)(LOGITS, TARGETS, ALL, ONES)
    for got, known in zip(masked, unmasked, strict=True):
        np.testing.assert_array_equal(got, np.where(WHERE, known, 0))


@every_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_finite_at_extreme_logits(case, dtype):
    logits = np.resize(np.array([-1e4, -20, 0, 20, 1e4]), (N, C)).astype(dtype)
    targets = np.broadcast_to(np.array([0, 1, 0, 1, 0.3, 0.3], np.float32)[:, None], (N, C))
    values, gradient = compiled(case)(logits, targets, ALL, ONES)
    assert (values.dtype, gradient.dtype) == (jnp.float32, dtype)
    assert np.isfinite(values).all()
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


@every_loss
def test_weights_scale_categories(case):
    plain, weighted = (compiled(case)(LOGITS, TARGETS, ALL, weights) for weights in (ONES, WEIGHTS))
    for got, unit in zip(weighted, plain, strict=True):
        np.testing.assert_allclose(got, np.asarray(unit) * WEIGHTS, rtol=1e-6)


@every_loss
def test_one_category_alone_and_boolean_targets_are_accepted(case):
    loss, _, options = CASES[case]
    hard = (TARGETS > 0.5).astype(np.float32)
    together = compiled(case)(LOGITS, hard, ALL, ONES)[0]
    alone = loss(LOGITS[:, 1], hard[:, 1] == 1, **options)
    np.testing.assert_allclose(alone, np.asarray(together)[:, 1], rtol=1e-6, atol=1e-8)


def test_a_wrong_and_confident_logit_costs_its_size():
    logits = np.array([[1e4, -1e4]], np.float32)
    np.testing.assert_array_equal(losses.sigmoid_bce(logits, np.array([[0, 1]])), [[1e4, 1e4]])


def test_asymmetric_without_exponents_and_clip_is_binary_cross_entropy():
    same = losses.asymmetric(LOGITS, TARGETS, gamma_negative=0.0, gamma_positive=0.0, clip=0.0)
    np.testing.assert_allclose(same, losses.sigmoid_bce(LOGITS, TARGETS), rtol=1e-6)


def test_negatives_below_the_clip_cost_and_move_nothing():
    x, t = np.array([[-9.0, -3.0]], np.float32), np.zeros((1, 2), np.float32)
    np.testing.assert_array_equal(losses.asymmetric(x, t), [[0, 0]])
    np.testing.assert_array_equal(jax.grad(lambda x: losses.asymmetric(x, t).sum())(x), [[0, 0]])


def test_stopped_focusing_gradient_is_the_focusing_factor_times_the_cross_entropy_gradient():
    options = {"gamma_negative": 3.0, "gamma_positive": 1.0, "clip": 0.1, "stop_focusing_gradient": True}
    targets = (TARGETS > 0.5).astype(np.float32)
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    shifted = np.maximum(p - 0.1, 0)
    positive = -((1 - p) ** 1.0) * (1 - p)
    negative = shifted**3.0 * p * (1 - p) / (1 - shifted)
    gradient = jax.grad(lambda x: losses.asymmetric(x, targets, **options).sum())(LOGITS)
    np.testing.assert_allclose(gradient, np.where(targets == 1, positive, negative), rtol=1e-4, atol=1e-6)
    differing = losses.asymmetric(LOGITS, targets, **options) - losses.asymmetric(
        LOGITS, targets, **{**options, "stop_focusing_gradient": False}
    )
    np.testing.assert_array_equal(differing, 0)


def test_mean_counts_known_labels_only():
    loss = np.where(WHERE, LOGITS, np.nan)
    np.testing.assert_allclose(losses.mean_known(loss, WHERE), LOGITS[WHERE].mean(), rtol=1e-6)
    np.testing.assert_allclose(losses.mean_known(LOGITS), LOGITS.mean(), rtol=1e-6)


def test_mean_per_category_is_zero_where_nothing_is_known():
    where = WHERE & (np.arange(C) != 2)
    expected = [LOGITS[where[:, j], j].mean() if j != 2 else 0 for j in range(C)]
    np.testing.assert_allclose(losses.mean_known(LOGITS, where, axis=0), expected, rtol=1e-6)
    assert losses.mean_known(LOGITS, np.zeros((N, C), bool)) == 0


def test_impossible_options_are_refused_by_name():
    with pytest.raises(ValueError, match="gamma is -1"):
        losses.focal(LOGITS, TARGETS, gamma=-1.0)
    with pytest.raises(ValueError, match="gamma_positive -2"):
        losses.asymmetric(LOGITS, TARGETS, gamma_positive=-2.0)
    with pytest.raises(ValueError, match=r"clip is 1\.0"):
        losses.asymmetric(LOGITS, TARGETS, clip=1.0)


@every_loss
def test_positive_weights_scale_the_positive_branch(case):
    loss, define, options = CASES[case]
    x = LOGITS.astype(np.float64)
    expected = TARGETS * define(x, 1.0, **options) * WEIGHTS + (1 - TARGETS) * define(x, 0.0, **options)
    found = loss(LOGITS, TARGETS, positive_weights=WEIGHTS, **options)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
