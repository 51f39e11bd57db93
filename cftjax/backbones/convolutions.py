"""Convolutions and maximum pooling that are fast on every platform.

XLA's CPU backend runs a grouped convolution as a slow scalar loop, and its gradients slower still. There, the same sums
are written as k*k shifted multiply-adds, which it turns into vector code over the channels; the kernel gradient of an
ordinary convolution is a matrix product with patches, a few images at a time. GPU and TPU have good kernels of their
own and keep the ordinary forms. `jax.lax.platform_dependent` decides when the program is
lowered, not from the default backend: a program compiled on a CPU machine for TPUs gets the TPU's form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = Literal["same", "symmetric", "none"]
Pads = tuple[tuple[int, int], tuple[int, int]]

TERMS = 16
"""Products summed in registers per output of one kernel-gradient loop; 8 and 32 measured slower."""
UNROLLED = 5
"""Kernels of more taps an axis are compiled one row of taps at a time: a fifth of the time to compile for 7 x 7, and a
third more to run."""
IMAGES = 4
"""Images per pass of the depthwise kernel gradient: few enough for the k*k sweeps over them to stay in the cache."""
PIXELS = 1024
"""Pixels per pass, if images are smaller, of the ordinary kernel gradient: few enough for their patches to stay in the
cache, enough for an efficient product."""


def pad_amounts(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Zeros before and after an axis of `size` pixels.

    Args:
        size: pixels along the axis.
        kernel: taps along the axis.
        stride: pixels between outputs.
        padding: `same` as TensorFlow pads, uneven where it must be, for ceil(size / stride) outputs; `symmetric` as
            torch pads, kernel // 2 on both sides; `none`.
    """
    if padding == "none":
        return 0, 0
    if padding == "symmetric":
        return kernel // 2, kernel // 2
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def grid(size: int, layers: Iterable[tuple[int, int]], padding: Padding) -> tuple[int, float]:
    """Where the outputs of several convolutions lie in the image: strides shift them to one side.

    Args:
        size: pixels along the axis.
        layers: kernel and stride of each.
        padding: of all.

    Returns:
        Pixels between two outputs, and the pixel, from 0, that the first one's receptive field has its middle at.
    """
    between, first = 1, 0.0
    for kernel, stride in layers:
        before, after = pad_amounts(size, kernel, stride, padding)
        first += between * ((kernel - 1) / 2 - before)
        between *= stride
        size = (size + before + after - kernel) // stride + 1
    return between, first


def depthwise_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k c"], *, stride: int = 1, padding: Padding = "same"
) -> Float[Array, "n ho wo c"]:
    """Convolve every channel with its own k x k filter."""
    k = kernel.shape[0]
    pads = (pad_amounts(x.shape[1], k, stride, padding), pad_amounts(x.shape[2], k, stride, padding))
    return _depthwise(x, kernel, stride, pads)


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
        windows = [_window(padded, (i, j), count, (step, step)) for i in range(k) for j in range(k)]
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


@jax.custom_vjp
def max_pool_3x3(x: Float[Array, "n h w c"]) -> Float[Array, "n y x c"]:
    """Maxima of 3 x 3 pixels, every second one of them, of an `x` that is nowhere below zero."""
    return lax.platform_dependent(x, cpu=shifted_maxima, default=ordinary_maxima)


def _pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool_3x3(x)
    return y, (x, y)


def _pool_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array]:
    def ordinary(x: Array, y: Array, dy: Array) -> Array:
        return jax.vjp(ordinary_maxima, x)[1](dy)[0]

    return (lax.platform_dependent(*residuals, dy, cpu=shifted_maxima_gradient, default=ordinary),)


max_pool_3x3.defvjp(_pool_forward, _pool_backward)


def ordinary_maxima(x: Array) -> Array:
    """By the reduction over windows, whose gradient takes a CPU as long as several convolutions."""
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


def shifted_maxima(x: Array) -> Array:
    """The same, as the maximum of nine shifted arrays."""
    return functools.reduce(jnp.maximum, _pool_windows(x))


def shifted_maxima_gradient(x: Array, y: Array, dy: Array) -> Array:
    """d/dx of `shifted_maxima`, whose output is y; equal maxima share the gradient.

    An even row of pixels lies in one row of windows, an odd one in two; the same holds of columns.
    """
    equal = functools.reduce(jnp.add, ((window == y).astype(dy.dtype) for window in _pool_windows(x)))
    # One row and one column more, for odd ones at the border. They meet no window that is equal: none is below zero.
    margin = ((0, 0), (0, 1), (0, 1), (0, 0))
    y, dy = jnp.pad(y, margin, constant_values=-1), jnp.pad(dy / equal, margin)
    rows, columns = y.shape[1] - 1, y.shape[2] - 1
    pixels = jnp.pad(x, ((0, 0), (0, 2 * rows - x.shape[1]), (0, 2 * columns - x.shape[2]), (0, 0)))

    def phase(row: int, column: int) -> Array:
        here = _window(pixels, (row, column), (rows, columns), (2, 2))
        total = jnp.zeros((), dy.dtype)
        for i in range(row + 1):
            for j in range(column + 1):
                top, share = (_window(a, (i, j), (rows, columns), (1, 1)) for a in (y, dy))
                total = total + jnp.where(here == top, share, 0)
        return total

    whole = jnp.stack([jnp.stack([phase(r, c) for c in range(2)], axis=3) for r in range(2)], axis=2)
    return whole.reshape(pixels.shape)[:, : x.shape[1], : x.shape[2]]


def _pool_windows(x: Array) -> list[Array]:
    """What each of the nine taps of a 3 x 3 pool sees."""
    count = ((x.shape[1] - 1) // 2 + 1, (x.shape[2] - 1) // 2 + 1)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [_window(padded, (i, j), count, (2, 2)) for i in range(3) for j in range(3)]


# The custom gradient stands outside the choice of platform: differentiating through the choice would keep both forms'
# residuals alive.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _kept(shifted(x, kernel, stride, pads), kernel),
        default=lambda x, kernel: convolution(x, kernel, stride, pads),
    )


def _forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, stride, pads), (x, kernel)


def _backward(stride: int, pads: Pads, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def on_cpu(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        dx = _kept(shifted_input_gradient(dy, kernel, (x.shape[1], x.shape[2]), stride, pads), kernel)
        return dx.astype(x.dtype), shifted_kernel_gradient(x, dy, kernel.shape[0], stride, pads).astype(kernel.dtype)

    def elsewhere(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: convolution(x, kernel, stride, pads), x, kernel)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=on_cpu, default=elsewhere)


_depthwise.defvjp(_forward, _backward)


def convolution(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """The ordinary grouped convolution."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """The same sums as `convolution`, one shifted multiply-add per tap."""
    k = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((padded.shape[axis] - k) // stride + 1 for axis in (1, 2))
    taps = kernel[:, :, None, None, None, :]
    out = jnp.zeros((), x.dtype)
    for i in range(k):
        for j in range(k):
            out = out + _window(padded, (i, j), (rows, columns), (stride, stride)) * taps[i, j]
    return out


def shifted_input_gradient(dy: Array, kernel: Array, size: tuple[int, int], stride: int, pads: Pads) -> Array:
    """d/dx of `shifted`: one stride-1 sum for each of the stride x stride phases of the input grid, then interleaved.

    Spreading dy out with zeros instead would cost stride^2 times the multiplications.
    """
    k = kernel.shape[0]
    margin = k // stride + 1
    padded = jnp.pad(dy, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    counts = (-(-size[0] // stride), -(-size[1] // stride))
    # Outputs that exist may end before the last input row is reached by every shift; zeros stand for the missing ones.
    short = [max(0, n + margin + k // stride + 1 - padded.shape[a]) for a, n in zip((1, 2), counts, strict=True)]
    padded = jnp.pad(padded, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))

    taps = kernel[:, :, None, None, None, :]

    def phase(row: int, column: int) -> Array:
        total = jnp.zeros((), dy.dtype)
        for i in range(k):
            for j in range(k):
                (down, r), (across, c) = divmod(row + pads[0][0] - i, stride), divmod(column + pads[1][0] - j, stride)
                if r == 0 and c == 0:
                    total = total + _window(padded, (margin + down, margin + across), counts, (1, 1)) * taps[i, j]
        return jnp.broadcast_to(total, (dy.shape[0], *counts, dy.shape[3]))

    if stride == 1:
        return phase(0, 0)
    rows = [jnp.stack([phase(r, c) for c in range(stride)], axis=3) for r in range(stride)]
    whole = jnp.stack(rows, axis=2).reshape(dy.shape[0], counts[0] * stride, counts[1] * stride, dy.shape[3])
    return whole[:, : size[0], : size[1]]


def shifted_kernel_gradient(x: Array, dy: Array, k: int, stride: int, pads: Pads) -> Array:
    """d/dkernel of `shifted`, [k k c] in float32: for each tap the sum over images and pixels of shifted x times dy.

    Left to itself XLA reduces each tap channel by channel with strided loads. Summing `TERMS` neighbouring pixels as
    one expression keeps the channels in the inner loop; the sixteenth that remains is summed by a product with ones.
    """
    n, rows, columns, c = dy.shape
    across = min(columns, TERMS)
    down = min(rows, max(1, TERMS // across))
    blocks = (-(-rows // down), -(-columns // across))
    need = [(b * u - 1) * stride + k for b, u in zip(blocks, (down, across), strict=True)]
    after = [max(0, m - x.shape[a] - pads[a - 1][0]) for a, m in zip((1, 2), need, strict=True)]

    def taps(x: Array, dy: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (pads[0][0], after[0]), (pads[1][0], after[1]), (0, 0)))
        dy = jnp.pad(dy, ((0, 0), (0, blocks[0] * down - rows), (0, blocks[1] * across - columns), (0, 0)))

        def row(i: int | Array) -> Array:
            below, sums = lax.dynamic_slice_in_dim(x, i, need[0] - k + 1, axis=1), []
            for j in range(k):
                total = jnp.zeros((), dy.dtype)
                for u in range(down):
                    for v in range(across):
                        a = _window(below, (u * stride, v * stride + j), blocks, (down * stride, across * stride))
                        total = total + a * _window(dy, (u, v), blocks, (down, across))
                total = total.reshape(-1, c)
                sums.append(jnp.dot(jnp.ones((1, total.shape[0]), dy.dtype), total, preferred_element_type=jnp.float32))
            return jnp.concatenate(sums)

        return lax.map(row, jnp.arange(k)) if k > UNROLLED else jnp.stack([row(i) for i in range(k)])

    images = math.gcd(n, IMAGES)
    passes = (x.reshape(n // images, images, *x.shape[1:]), dy.reshape(n // images, images, *dy.shape[1:]))
    start = jnp.zeros((k, k, c), jnp.float32)
    return lax.scan(lambda total, chunk: (total + taps(*chunk), None), start, passes)[0]


def in_memory(x: Array) -> Array:
    """The same, but computed once and stored.

    XLA's CPU backend hands sums and matrix products to a library together with the elementwise operations that lead to
    them, which that computes more slowly, and again for every sum. It does not have this operation, rounding to the
    precision that x has already.
    """
    kind = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, kind.nexp, kind.nmant)


def _kept(x: Array, kernel: Array) -> Array:
    """Sums of many taps are worth a pass over the memory; sums of few are not, where batch normalisation follows."""
    return in_memory(x) if kernel.shape[0] > UNROLLED else x


def _window(x: Array, start: tuple[int, int], count: tuple[int, int], step: tuple[int, int]) -> Array:
    """Every `step`-th pixel from `start`, `count` of them along each axis."""
    stop = tuple(s + (m - 1) * t + 1 for s, m, t in zip(start, count, step, strict=True))
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[3]), (1, *step, 1))
