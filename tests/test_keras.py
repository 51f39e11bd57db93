"""The adapter of Keras; run in an environment with keras."""

import os

import jax
import numpy as np
import pytest

import cftjax
from cftjax.config import GAConfig, PolishConfig, TuningConfig

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras")
# Keras' own variables, read by NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
CONFIG = TuningConfig(
    ga=GAConfig(num_generations=4, population_size=6, dimensions=2, restarts=1), polish=PolishConfig(num_steps=20)
)


@pytest.fixture(autouse=True)
def layers_of_keras_may_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def split(n, seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < 0.4).astype(np.float32)
    images = rng.normal(size=(n, 8, 8, 3)).astype(np.float32) + 2 * labels[:, None, None, :]
    labels[rng.random(labels.shape) < 0.3] = np.nan
    return images, labels


TRAIN, VALIDATION = split(64, 0), split(48, 1)


def small(activation=None, use_bias=True):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3, strides=4), keras.layers.Flatten()]
    last = keras.layers.Dense(3, activation=activation, use_bias=use_bias, name="last")
    return keras.Sequential([keras.Input((8, 8, 3)), *layers, last])


def test_the_new_layer_is_in_the_model_and_the_rest_is_as_it_was():
    model = small("sigmoid")
    before = model.get_weights()
    tuned = cftjax.keras.fine_tune(model, TRAIN, VALIDATION, config=CONFIG)
    changed = [not np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True)]
    assert changed == [False, False, True, True]
    z = keras.Model(model.inputs, model.layers[-1].input).predict(VALIDATION[0], verbose=0)
    logits = np.asarray(tuned.chosen.heads(z))
    np.testing.assert_allclose(model.predict(VALIDATION[0], verbose=0), 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_batches_are_as_good_as_arrays():
    batches = [(TRAIN[0][i : i + 16], TRAIN[1][i : i + 16]) for i in range(0, 64, 16)]
    kernels = [
        cftjax.keras.fine_tune(small(), data, VALIDATION, layer="last", config=CONFIG).chosen.heads.kernel
        for data in (TRAIN, batches)
    ]
    np.testing.assert_allclose(*kernels, atol=1e-4)


def test_what_does_not_fit_is_refused_with_the_mend():
    with pytest.raises(ValueError, match="no Dense layer 'fc' in the model: name one with layer=; it has last"):
        cftjax.keras.fine_tune(small(), TRAIN, layer="fc")
    with pytest.raises(ValueError, match="use_bias=True"):
        cftjax.keras.fine_tune(small(use_bias=False), TRAIN)
    with pytest.raises(ValueError, match="labels have 2 categories, and the layer 3 outputs"):
        cftjax.keras.fine_tune(small(), (TRAIN[0], TRAIN[1][:, :2]))
