"""Convolutions of all channels: a matrix product where pixels do not overlap, and a CPU's own kernel gradient."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cftjax.backbones.convolutions.windows import Padding, Pads, in_memory, pad_amounts, window

PIXELS = 1024
"""Pixels per pass, if images are smaller, of the ordinary kernel gradient: few enough for their patches to stay in the
cache, enough for an efficient product."""


def conv(
    x: Float[Array, "n h w i"], kernel: Float[Array, "k k i o"], *, stride: int = 1, padding: Padding = "symmetric"
) -> Float[Array, "n ho wo o"]:
    """Convolve all channels with k x k filters."""
    k = kernel.shape[0]
    if k == 1:
        return pointwise_conv(x if stride == 1 else fenced(x[:, ::stride, ::stride]), kernel[0, 0])
    if k == stride and padding == "none":
        return pointwise_conv(fenced(_tiles(x, k)), kernel.reshape(-1, kernel.shape[3]))
    pads = (pad_amounts(x.shape[1], k, stride, padding), pad_amounts(x.shape[2], k, stride, padding))
    return _conv(x, kernel, stride, pads)


def fenced(x: Array) -> Array:
    """The same, but on a GPU kept out of the products that follow.

    There XLA takes what cuts or reorders an array into the product behind it. In the kernel gradient of a strided 1 x 1
    convolution, a sum over so many pixels that it is split, its tiling fails a check and ends the process (jax 0.11.2).
    """
    barrier = lax.optimization_barrier
    return lax.platform_dependent(x, cuda=barrier, rocm=barrier, default=lambda x: x)


def _tiles(x: Array, k: int) -> Array:
    """Squares of k x k pixels that do not overlap, each as one pixel of k * k times the channels."""
    n, height, width, channels = x.shape
    rows, columns = height // k, width // k
    x = x[:, : rows * k, : columns * k].reshape(n, rows, k, columns, k, channels)
    return x.swapaxes(2, 3).reshape(n, rows, columns, k * k * channels)


# As for _depthwise, the custom gradient stands outside the choice of platform.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    return ordinary_conv(x, kernel, stride, pads)


def _conv_backward(stride: int, pads: Pads, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals

    def ordinary(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: ordinary_conv(x, kernel, stride, pads), x, kernel)[1](dy)

    def by_patches(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        k, around = kernel.shape[0], dy
        if stride == 1:
            # Stored once, with the margins that the windows see: both gradients would compute again what leads to dy,
            # the kernel's for every window, in a DenseNet a sum over all later layers.
            margins = [(k - 1 - before, k - 1 - after) for before, after in pads]
            around = in_memory(jnp.pad(dy, ((0, 0), *margins, (0, 0))))
            dy = window(around, (margins[0][0], margins[1][0]), (dy.shape[1], dy.shape[2]), (1, 1))
        (dx,) = jax.vjp(lambda x: ordinary_conv(x, kernel, stride, pads), x)[1](dy)
        if stride == 1 and dy.shape[3] <= x.shape[3]:
            return dx, kernel_gradient_of_outputs(x, around, k).astype(kernel.dtype)
        return dx, kernel_gradient_of_inputs(x, dy, k, stride, pads).astype(kernel.dtype)

    return lax.platform_dependent(x, kernel, dy, cpu=by_patches, default=ordinary)


_conv.defvjp(lambda x, kernel, stride, pads: (_conv(x, kernel, stride, pads), (x, kernel)), _conv_backward)


def ordinary_conv(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """XLA's own convolution, whose kernel gradient takes a CPU two to seven times as long as the matrix product."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient_of_outputs(x: Array, around: Array, k: int) -> Array:
    """d/dkernel of `conv` at stride 1, [k k i o] in float32: the product of x with the patches of dy that it meets.

    For fewer outputs than inputs: patches have k * k times as many channels.

    Args:
        x: what was convolved.
        around: dy with margins, of as many pixels as x sees.
        k: height and width of the kernel.
    """
    (height, width, inputs), outputs = x.shape[1:], around.shape[3]

    def gradient(x: Array, around: Array) -> Array:
        # What lies k - 1 pixels before an x has met the kernel's last tap there.
        taps = _product(x, _patches(around, k, (height, width), 1)).reshape(inputs, k, k, outputs)
        return taps[:, ::-1, ::-1].transpose(1, 2, 0, 3)

    return _sum_over_images(gradient, x, around, height * width)


def kernel_gradient_of_inputs(x: Array, dy: Array, k: int, stride: int, pads: Pads) -> Array:
    """d/dkernel of `conv`, [k k i o] in float32: the product of the patches of x with the dy that they meet."""
    (height, width, outputs), inputs = dy.shape[1:], x.shape[3]

    def gradient(x: Array, dy: Array) -> Array:
        padded = in_memory(jnp.pad(x, ((0, 0), *pads, (0, 0))))
        return _product(_patches(padded, k, (height, width), stride), dy).reshape(k, k, inputs, outputs)

    return _sum_over_images(gradient, x, dy, height * width)


def _product(a: Array, b: Array) -> Array:
    a, b = a.reshape(-1, a.shape[3]), b.reshape(-1, b.shape[3])
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _patches(padded: Array, k: int, count: tuple[int, int], step: int) -> Array:
    windows = [window(padded, (i, j), count, (step, step)) for i in range(k) for j in range(k)]
    return jnp.concatenate(windows, axis=3)


def _sum_over_images(gradient: Callable[[Array, Array], Array], a: Array, b: Array, pixels: int) -> Array:
    """The sum of a gradient over all images, as many at once as have at most `PIXELS`."""
    images = math.gcd(a.shape[0], max(1, PIXELS // pixels))
    passes = tuple(array.reshape(-1, images, *array.shape[1:]) for array in (a, b))
    start = jnp.zeros_like(jax.eval_shape(gradient, *(array[0] for array in passes)))
    return lax.scan(lambda total, chunk: (total + gradient(*chunk), None), start, passes)[0]


@jax.custom_vjp
def pointwise_conv(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """A 1x1 convolution, as the matrix product it is."""
    return lax.platform_dependent(x, cpu=in_memory, default=lambda x: x) @ kernel


def _pointwise_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # Without the barrier XLA's CPU backend writes what leads to dy a second time, transposed, for the kernel's
    # gradient: with batch normalisation behind it, a third of the whole training step.
    dy = lax.platform_dependent(dy, cpu=lax.optimization_barrier, default=lambda dy: dy)
    rows = dy.reshape(-1, dy.shape[-1])
    return dy @ kernel.T, (x.reshape(-1, x.shape[-1]).T @ rows).astype(kernel.dtype)


pointwise_conv.defvjp(lambda x, kernel: (pointwise_conv(x, kernel), (x, kernel)), _pointwise_backward)
