import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from cftjax.backbones import convolutions

SHAPES = [
    ((8, 8), 3, 1, "same"),
    ((9, 7), 5, 2, "same"),
    ((18, 20), 3, 2, "symmetric"),
    ((2, 1), 5, 2, "same"),
    ((6, 18), 7, 1, "symmetric"),
]


def draw(*shapes):
    rng = np.random.default_rng(3)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(("size", "k", "stride", "padding"), SHAPES)
def test_shifted_sums_equal_the_ordinary_convolution_in_value_and_gradient(size, k, stride, padding):
    pads = tuple(convolutions.pad_amounts(s, k, stride, padding) for s in size)
    x, kernel = draw((6, *size, 3), (k, k, 3))
    ordinary = lambda x, kernel: convolutions.convolution(x, kernel, stride, pads)  # noqa: E731
    ours = lambda x, kernel: convolutions.depthwise_conv(x, kernel, stride=stride, padding=padding)  # noqa: E731

    @jax.jit
    def both(x, kernel):
        y, pull = jax.vjp(ours, x, kernel)
        expected, expected_pull = jax.vjp(ordinary, x, kernel)
        dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y, *pull(dy)), (expected, *expected_pull(dy))

    for got, expected in zip(*both(x, kernel), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 7), (5, 4)])
def test_shifted_maxima_equal_the_ordinary_ones_in_value_and_gradient(size):
    (x,) = draw((2, *size, 3))
    x = jnp.abs(x)
    dy = jnp.cos(jnp.arange(convolutions.ordinary_maxima(x).size, dtype=jnp.float32))

    @jax.jit
    def both(x):
        y, pull = jax.vjp(convolutions.max_pool_3x3, x)
        expected, expected_pull = jax.vjp(convolutions.ordinary_maxima, x)
        return (y, *pull(dy.reshape(y.shape))), (expected, *expected_pull(dy.reshape(y.shape)))

    for got, expected in zip(*both(x), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "amounts"),
    [
        (224, 3, 2, "same", (0, 1)),
        (56, 5, 2, "same", (1, 2)),
        (15, 3, 2, "same", (1, 1)),
        (7, 3, 1, "same", (1, 1)),
        (224, 3, 2, "symmetric", (1, 1)),
        (56, 5, 2, "symmetric", (2, 2)),
    ],
)
def test_padding_is_that_of_tensorflow_or_of_torch(size, kernel, stride, padding, amounts):
    assert convolutions.pad_amounts(size, kernel, stride, padding) == amounts


def test_a_pointwise_convolution_has_the_gradient_of_the_product_it_is():
    x, kernel, weight = draw((2, 3, 3, 4), (4, 5), (2, 3, 3, 5))
    got = jax.jit(jax.grad(lambda *a: jnp.sum(convolutions.pointwise_conv(*a) * weight), (0, 1)))(x, kernel)
    np.testing.assert_allclose(got[0], np.einsum("nhwo,io->nhwi", weight, kernel), atol=1e-5)
    np.testing.assert_allclose(got[1], np.einsum("nhwi,nhwo->io", x, weight), atol=1e-5)


def test_accelerators_get_the_ordinary_convolution_and_the_cpu_does_not():
    gradient = jax.jit(jax.grad(lambda x, kernel: jnp.sum(convolutions.depthwise_conv(x, kernel)), (0, 1)))
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 4), (3, 3, 4))]
    text = {p: jax.export.export(gradient, platforms=[p])(*arguments).mlir_module() for p in ("cpu", "tpu", "cuda")}
    assert "stablehlo.convolution" not in text["cpu"]
    assert "stablehlo.convolution" in text["tpu"]
    assert "stablehlo.convolution" in text["cuda"]


@pytest.mark.parametrize(
    ("size", "k", "stride", "padding", "channels"),
    [
        ((8, 9), 3, 1, "symmetric", (4, 3)),
        ((9, 7), 3, 2, "same", (2, 3)),
        ((11, 8), 7, 2, "symmetric", (3, 5)),
        ((9, 8), 4, 4, "none", (3, 2)),
        ((6, 6), 3, 1, "same", (2, 4)),
        ((40, 40), 5, 1, "same", (3, 2)),
    ],
)
def test_a_kernel_gradient_by_patches_is_that_of_the_convolution(size, k, stride, padding, channels):
    pads = tuple(convolutions.pad_amounts(s, k, stride, padding) for s in size)
    x, kernel = draw((4, *size, channels[0]), (k, k, *channels))

    @jax.jit
    def both(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: convolutions.conv(x, kernel, stride=stride, padding=padding), x, kernel)
        expected, expected_pull = jax.vjp(
            lambda x, kernel: convolutions.ordinary_conv(x, kernel, stride, pads), x, kernel
        )
        dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y, *pull(dy)), (expected, *expected_pull(dy))

    for got, expected in zip(*both(x, kernel), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * float(jnp.abs(expected).max()) * size[0])


@pytest.mark.parametrize("size", [(8, 8), (11, 9)])
def test_tiles_that_do_not_overlap_are_the_ordinary_convolution_in_value_and_gradient(size):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(2, *size, 3), (4, 4, 3, 5)])

    def ours(x, kernel):
        return convolutions.conv(x, kernel, stride=4, padding="none")

    def ordinary(x, kernel):
        return convolutions.ordinary_conv(x, kernel, 4, ((0, 0), (0, 0)))

    (y, pull), (expected, expected_pull) = (jax.vjp(f, x, kernel) for f in (ours, ordinary))
    dy = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for value, wanted in zip((y, *pull(dy)), (expected, *expected_pull(dy)), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


def test_equal_maxima_share_the_gradient():
    # Of 3 x 3 equal pixels pool (0, 0) sees 2 x 2, (0, 1) the right 2 x 2, and so on: the middle is in all four.
    _, pull = jax.vjp(convolutions.max_pool_3x3, jnp.ones((1, 3, 3, 1)))
    (dx,) = pull(jnp.full((1, 2, 2, 1), 4.0))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 2, 1], [2, 4, 2], [1, 2, 1]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_kept_in_memory_is_what_came(dtype):
    numbers = [0.0, -0.0, 1e-30, -3.3, 1 / 3, 6e30, float(jnp.finfo(dtype).max), np.inf, -np.inf, np.nan]
    x = jnp.asarray(numbers, dtype)
    kept = jax.jit(convolutions.in_memory)(x)
    assert kept.dtype == dtype
    assert np.asarray(kept).tobytes() == np.asarray(x).tobytes()
