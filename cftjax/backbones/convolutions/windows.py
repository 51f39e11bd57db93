"""Which pixels a tap of a kernel sees, and keeping what it made in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Padding = Literal["same", "symmetric", "none"]
Pads = tuple[tuple[int, int], tuple[int, int]]


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


def in_memory(x: Array) -> Array:
    """The same, but computed once and stored.

    XLA's CPU backend hands sums and matrix products to a library together with the elementwise operations that lead to
    them, which that computes more slowly, and again for every sum. It does not have this operation, rounding to the
    precision that x has already.
    """
    kind = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, kind.nexp, kind.nmant)


def window(x: Array, start: tuple[int, int], count: tuple[int, int], step: tuple[int, int]) -> Array:
    """Every `step`-th pixel from `start`, `count` of them along each axis."""
    stop = tuple(s + (m - 1) * t + 1 for s, m, t in zip(start, count, step, strict=True))
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[3]), (1, *step, 1))
