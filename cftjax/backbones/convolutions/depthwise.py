"""Convolutions of every channel with a filter of its own, on a CPU as shifted multiply-adds."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cftjax.backbones.convolutions.windows import Padding, Pads, in_memory, pad_amounts, window

TERMS = 16
"""Products summed in registers per output of one kernel-gradient loop; 8 and 32 measured slower."""
UNROLLED = 5
"""Kernels of more taps an axis are compiled one row of taps at a time: a fifth of the time to compile for 7 x 7, and a
third more to run."""
IMAGES = 4
"""Images per pass of the depthwise kernel gradient: few enough for the k*k sweeps over them to stay in the cache."""


def depthwise_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k c"], *, stride: int = 1, padding: Padding = "same"
) -> Float[Array, "n ho wo c"]:
    """Convolve every channel with its own k x k filter."""
    k = kernel.shape[0]
    pads = (pad_amounts(x.shape[1], k, stride, padding), pad_amounts(x.shape[2], k, stride, padding))
    return _depthwise(x, kernel, stride, pads)


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
            out = out + window(padded, (i, j), (rows, columns), (stride, stride)) * taps[i, j]
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
                    total = total + window(padded, (margin + down, margin + across), counts, (1, 1)) * taps[i, j]
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
                        a = window(below, (u * stride, v * stride + j), blocks, (down * stride, across * stride))
                        total = total + a * window(dy, (u, v), blocks, (down, across))
                total = total.reshape(-1, c)
                sums.append(jnp.dot(jnp.ones((1, total.shape[0]), dy.dtype), total, preferred_element_type=jnp.float32))
            return jnp.concatenate(sums)

        return lax.map(row, jnp.arange(k)) if k > UNROLLED else jnp.stack([row(i) for i in range(k)])

    images = math.gcd(n, IMAGES)
    passes = (x.reshape(n // images, images, *x.shape[1:]), dy.reshape(n // images, images, *dy.shape[1:]))
    start = jnp.zeros((k, k, c), jnp.float32)
    return lax.scan(lambda total, chunk: (total + taps(*chunk), None), start, passes)[0]


def _kept(x: Array, kernel: Array) -> Array:
    """Sums of many taps are worth a pass over the memory; sums of few are not, where batch normalisation follows."""
    return in_memory(x) if kernel.shape[0] > UNROLLED else x
