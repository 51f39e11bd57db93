"""Convolutions of all channels: a matrix product where pixels do not overlap, and a CPU's own kernel gradient."""

from __future__ import annotations

import functools
import math

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

    def ordinary(x: Array, dy: Array) -> Array:
        return jax.vjp(lambda kernel: ordinary_conv(x, kernel, stride, pads), kernel)[1](dy)[0]

    def by_patches(x: Array, dy: Array) -> Array:
        return patches_kernel_gradient(x, dy, kernel.shape[0], stride, pads).astype(kernel.dtype)

    (dx,) = jax.vjp(lambda x: ordinary_conv(x, kernel, stride, pads), x)[1](dy)
    return dx, lax.platform_dependent(x, dy, cpu=by_patches, default=ordinary)


_conv.defvjp(lambda x, kernel, stride, pads: (_conv(x, kernel, stride, pads), (x, kernel)), _conv_backward)


def ordinary_conv(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """XLA's own convolution, whose kernel gradient takes a CPU two to seven times as long as the matrix product."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def patches_kernel_gradient(x: Array, dy: Array, k: int, stride: int, pads: Pads) -> Array:
    """d/dkernel of `conv`, [k k i o] in float32: the product of x with every dy that it meets, or the reverse.

    Patches have k*k times as many channels, and so are made of whichever array has fewer.
    """
    (n, *_, inputs), outputs = x.shape, dy.shape[3]

    def product(a: Array, b: Array) -> Array:
        a, b = a.reshape(-1, a.shape[3]), b.reshape(-1, b.shape[3])
        return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    def patches(padded: Array, count: tuple[int, int], step: int) -> Array:
        windows = [window(padded, (i, j), count, (step, step)) for i in range(k) for j in range(k)]
        return jnp.concatenate(windows, axis=3)

    def of_outputs(x: Array, dy: Array) -> Array:
        margins = [(k - 1 - before, k - 1 - after) for before, after in pads]
        around = patches(jnp.pad(dy, ((0, 0), *margins, (0, 0))), (x.shape[1], x.shape[2]), 1)
        # What lies k - 1 pixels before an x has met the kernel's last tap there.
        return product(x, around).reshape(inputs, k, k, outputs)[:, ::-1, ::-1].transpose(1, 2, 0, 3)

    def of_inputs(x: Array, dy: Array) -> Array:
        around = patches(jnp.pad(x, ((0, 0), *pads, (0, 0))), (dy.shape[1], dy.shape[2]), stride)
        return product(around, dy).reshape(k, k, inputs, outputs)

    gradient = of_outputs if stride == 1 and outputs <= inputs else of_inputs
    images = math.gcd(n, max(1, PIXELS // (dy.shape[1] * dy.shape[2])))
    passes = (x.reshape(n // images, images, *x.shape[1:]), dy.reshape(n // images, images, *dy.shape[1:]))
    start = jnp.zeros((k, k, inputs, outputs), jnp.float32)
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
