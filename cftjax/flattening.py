"""A traced function as one list of operations, for converters that know none of JAX's calls and choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

# Calls -> the parameter that holds what is called; of custom gradients, the function itself.
CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def flattened(traced: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The same function with calls in line, and the choices of `jax.lax.platform_dependent` made.

    They are made for a platform that none of them names, so that CPU, CUDA and TPU do not appear in what comes of it.

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
        given, params, name = [read(place) for place in operation.invars], operation.params, operation.primitive.name
        if name in CALLS:
            found = _run(params[CALLS[name]], given)
        elif name == "platform_index":
            found = [params["platforms"].index(None)]
        elif name == "cond" and isinstance(given[0], int):
            found = _run(params["branches"][given[0]], given[1:])
        else:
            found = operation.primitive.bind(*given, **params)
            found = found if operation.primitive.multiple_results else [found]
        values |= zip(operation.outvars, found, strict=True)
    return [read(place) for place in jaxpr.outvars]
