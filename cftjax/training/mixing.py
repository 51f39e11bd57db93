"""Mixup of a batch whose labels are partial."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cftjax import types
from cftjax.training.state import Spec


def mixed(spec: Spec, step: Int[Array, ""], batch: types.Batch) -> tuple[types.Batch, Float[Array, "n c"]]:
    """Every image of a batch mixed with the one at the same place from the end, and weights for the losses of labels.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, with a share of its own per image. A
    label known in both images has the mixed target and weighs 1. One known in one of them alone has that image's
    target and weighs that image's share, which is what mixup's loss, linear in the target, takes from that image. It
    is unknown where it is known in neither.
    """
    key = jax.random.fold_in(jax.random.key(spec.seed), step)
    n, alpha = len(batch.rows), spec.config.mixup
    share = jax.random.beta(key, alpha, alpha, (n, 1), jnp.float32)

    def both(x: types.Array) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        by = share.reshape(n, *[1] * (x.ndim - 1))
        return by * x + (1 - by) * x[::-1]

    known = jnp.asarray(batch.known)
    weights, positive = both(known), both(jnp.where(known, batch.labels, 0))
    either = known | known[::-1]
    labels = jnp.where(either, positive / jnp.where(weights > 0, weights, 1), 0)
    unknown = None
    if batch.unknown is not None:
        blank = jnp.asarray(batch.unknown)
        unknown = (blank | blank[::-1]) & ~either
        weights = jnp.where(unknown, both(blank), weights)
    mix = batch._replace(image=both(batch.image), labels=labels, known=either, unknown=unknown)
    return mix, weights
