"""A traced function as one list of operations, for converters that know none of JAX's calls and choices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal

# Calls -> the parameter that holds what is called; of custom gradients, the function itself.
CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def flattened(traced: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The same function with calls in line, and the choices of `jax.lax.platform_dependent` made.

    Maxima over windows become maxima of as many arrays, for jax2onnx gives onnxruntime windows that it does not take.
    Choices are made for a platform that none of them names: CPU, CUDA and TPU do not appear in what comes of it.

    Args:
        traced: what `jax.make_jaxpr` gives.

    Returns:
        A function of as many arrays, which gives the list of results; it may be traced again.
    """
    return lambda *arguments: _run(traced, arguments)


def _run(traced: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    jaxpr = traced.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*traced.consts, *arguments], strict=True))

    def read(place: Any) -> Any:
        return place.val if isinstance(place, Literal) else values[place]

    for operation in jaxpr.eqns:
        operands, params, name = [read(place) for place in operation.invars], operation.params, operation.primitive.name
        if name in CALLS:
            results = _run(params[CALLS[name]], operands)
        elif name == "platform_index":
            results = [params["platforms"].index(None)]
        elif name == "cond" and isinstance(operands[0], int):
            results = _run(params["branches"][operands[0]], operands[1:])
        elif name == "reduce_window_max":
            results = [largest_of_windows(*operands, **params)]
        else:
            results = operation.primitive.bind(*operands, **params)
            results = results if operation.primitive.multiple_results else [results]
        values |= zip(operation.outvars, results, strict=True)
    return [read(place) for place in jaxpr.outvars]


def largest_of_windows(
    x: jax.Array,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> jax.Array:
    """What the operation `reduce_window_max` with these parameters gives, one axis after the other.

    Raises:
        ValueError: for dilated windows.
    """
    if any(step != 1 for step in (*base_dilation, *window_dilation)):
        raise ValueError("maxima over dilated windows are not converted")
    axes = zip(window_dimensions, window_strides, padding, strict=True)
    for axis, (length, stride, (before, after)) in enumerate(axes):
        if length == 1 and stride == 1:
            continue
        # What lies outside counts as the nearest pixel, which is in the window too.
        first, last = (jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, x.shape[axis] - 1))
        x = jax.lax.concatenate([first] * before + [x] + [last] * after, axis)
        reach = (x.shape[axis] - length) // stride * stride + 1
        parts = (jax.lax.slice_in_dim(x, shift, shift + reach, stride, axis) for shift in range(length))
        x = functools.reduce(jax.lax.max, parts)
    return x
