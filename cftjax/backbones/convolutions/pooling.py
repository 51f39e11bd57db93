"""Maxima of 3 x 3 pixels, on a CPU of nine shifted arrays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cftjax.backbones.convolutions.windows import window


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
        here = window(pixels, (row, column), (rows, columns), (2, 2))
        total = jnp.zeros((), dy.dtype)
        for i in range(row + 1):
            for j in range(column + 1):
                top, share = (window(a, (i, j), (rows, columns), (1, 1)) for a in (y, dy))
                total = total + jnp.where(here == top, share, 0)
        return total

    whole = jnp.stack([jnp.stack([phase(r, c) for c in range(2)], axis=3) for r in range(2)], axis=2)
    return whole.reshape(pixels.shape)[:, : x.shape[1], : x.shape[2]]


def _pool_windows(x: Array) -> list[Array]:
    """What each of the nine taps of a 3 x 3 pool sees."""
    count = ((x.shape[1] - 1) // 2 + 1, (x.shape[2] - 1) // 2 + 1)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [window(padded, (i, j), count, (2, 2)) for i in range(3) for j in range(3)]
