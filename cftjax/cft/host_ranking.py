"""Ranking on a CPU by NumPy, called from within the compiled program.

NumPy's vector instructions sort in a twentieth of the time of any program of XLA's, and ties, which are few, are looked
at alone. A primitive of its own and not `jax.pure_callback`, which hands its function JAX arrays: to look into one of
those, a thread waits for another that a machine with one core does not have. JAX keeps no program with such a call in
its compilation cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Int32


class Places(NamedTuple):
    """What is known of each entry of rankings [p n], in ascending order.

    Attributes:
        start: where its group of equal scores starts.
        positive: 1 of a positive, else 0.
        below: positives before that start.
        before: positives before it.
    """

    start: Int32[jax.Array, "*p n"]
    positive: Int32[jax.Array, "*p n"]
    below: Int32[jax.Array, "*p n"]
    before: Int32[jax.Array, "*p n"]


def places(keys: Int32[jax.Array, "*p n"]) -> Places:
    """Sort each row of `metrics.ranking_keys`; in programs for a CPU alone."""
    marked, below, before = _rank.bind(keys)
    return Places(marked >> 1, marked & 1, below, before)


def _on_host(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twice the start plus one of a positive, below, and before."""
    n = keys.shape[-1]
    ordered = np.sort(keys, axis=-1).reshape(-1, n)
    positive = ordered & 1
    before = np.cumsum(positive, axis=1, dtype=np.int32)
    before -= positive
    below = before.copy()
    positive += 2 * np.arange(n, dtype=np.int32)
    ordered >>= 1
    tied = np.zeros(ordered.shape, bool)
    np.equal(ordered[:, 1:], ordered[:, :-1], out=tied[:, 1:])
    later = np.flatnonzero(tied)
    if len(later):
        # Runs of tied entries begin one before their first.
        firsts = np.flatnonzero(np.diff(later, prepend=-1) != 1)
        starts = np.repeat(later[firsts] - 1, np.diff(firsts, append=len(later)))
        marked, flat = positive.reshape(-1), below.reshape(-1)
        marked[later] -= (2 * (later - starts)).astype(np.int32)
        flat[later] = flat[starts]
    return positive.reshape(keys.shape), below.reshape(keys.shape), before.reshape(keys.shape)


def _lowered(context: Any, keys: Any) -> Sequence[Any]:
    results, _, _ = mlir.emit_python_callback(
        context, _on_host, None, [keys], context.avals_in, context.avals_out, has_side_effect=False
    )
    return results


def _batched(arguments: Sequence[jax.Array], axes: Sequence[int]) -> tuple[Sequence[jax.Array], Sequence[int]]:
    return _rank.bind(jnp.moveaxis(arguments[0], axes[0], 0)), (0, 0, 0)


_rank = Primitive("rank_on_host")
_rank.multiple_results = True
_rank.def_impl(lambda keys: [jnp.asarray(each) for each in _on_host(np.asarray(keys))])
_rank.def_abstract_eval(lambda keys: [keys] * 3)
mlir.register_lowering(_rank, _lowered, platform="cpu")
batching.primitive_batchers[_rank] = _batched
