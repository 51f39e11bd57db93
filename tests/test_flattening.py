import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cftjax.backbones import convolutions
from cftjax.inference.flattening import flattened


def operations(function, *arguments):
    return {operation.primitive.name for operation in jax.make_jaxpr(function)(*arguments).eqns}


def test_choices_of_platform_take_the_branch_of_no_named_platform():
    def chosen(x):
        return jax.jit(lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos))(x)

    x = jnp.linspace(0.0, 1.0, 5)
    flat = flattened(jax.make_jaxpr(chosen)(x))
    assert operations(lambda x: flat(x)[0], x) == {"cos"}
    np.testing.assert_array_equal(flat(x)[0], jnp.cos(x))
    np.testing.assert_array_equal(chosen(x), jnp.sin(x))


@pytest.mark.parametrize("taken", [0, 1])
def test_choices_that_depend_on_the_data_stay(taken):
    def function(x, i):
        return jax.lax.cond(i > 0, lambda x: x + 1, lambda x: x * 3, x)

    x = jnp.arange(4.0)
    flat = flattened(jax.make_jaxpr(function)(x, taken))
    np.testing.assert_array_equal(flat(x, taken)[0], function(x, taken))


def test_custom_gradients_go_and_the_function_stays_under_a_free_batch():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 9, 7, 4)), jnp.float32)

    def function(x):
        x = jax.nn.relu(convolutions.depthwise_conv(x, kernel, stride=2, padding="symmetric"))
        return convolutions.max_pool_3x3(x)

    free = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), 9, 7, 4), jnp.float32)
    flat = flattened(jax.make_jaxpr(function)(free))
    assert not operations(lambda x: flat(x)[0], free) & {"custom_vjp_call", "custom_jvp_call", "jit", "platform_index"}
    np.testing.assert_allclose(flat(x)[0], function(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "window", "stride", "pads"), [(9, 3, 2, (1, 1)), (8, 2, 2, (0, 0)), (7, 3, 1, (2, 0))]
)
def test_maxima_over_windows_stay_the_same(size, window, stride, pads):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size + 1, 3)), jnp.float32)

    def function(x):
        shape, steps, padding = (1, window, window, 1), (1, stride, stride, 1), ((0, 0), pads, pads, (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, steps, padding)

    flat = flattened(jax.make_jaxpr(function)(x))
    assert "reduce_window_max" not in operations(lambda x: flat(x)[0], x)
    np.testing.assert_array_equal(flat(x)[0], function(x))
