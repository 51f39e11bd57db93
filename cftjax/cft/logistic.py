"""Logistic regressions of one category under many penalties and weights of its rows at once, by optax's L-BFGS.

All of them read the same rows, so that a step of all is two matrix products. The problems are convex and, divided by
their curvature, round: full steps need no line search, and twenty of them reach float32's rounding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Num

from cftjax.types import Array

MEMORY = 8
# What a row's probability is taken to vary by when coordinates are divided by their curvature: between rare and even.
CURVATURE = 0.05
PRECISION = jax.lax.Precision.HIGHEST


def fit(
    z: Num[Array, "k r"],
    labels: Bool[Array, " k"],
    weights: Float[Array, "s k"],
    offsets: Float[Array, "s k"],
    penalties: Float[Array, "s r"],
    num_steps: int,
) -> tuple[Float[jax.Array, "s r"], Float[jax.Array, " s"]]:
    """Genes [s r] and bias [s] that minimise weighted cross-entropy plus half of penalties times squared genes.

    Args:
        z: coordinates of the rows.
        labels: of the rows; what weighs nothing is not read.
        weights: of the rows for each regression; they are divided by their sum.
        offsets: what is added to the logits.
        penalties: of each coordinate, 0 or more.
        num_steps: of L-BFGS; regressions that are done stay where they are.
    """
    weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-30)
    centre = jnp.einsum("sk,kr->r", weights, z, precision=PRECISION) / weights.shape[0]
    z = z - centre[None, :]
    variance = jnp.einsum("sk,kr->sr", weights, z * z, precision=PRECISION)
    scale = 1 / jnp.sqrt(jnp.maximum(CURVATURE * variance + penalties, 1e-12))
    targets = jnp.asarray(labels, jnp.float32)[None, :]

    def loss(parameters: Float[jax.Array, "s r1"]) -> jax.Array:
        genes = parameters[:, :-1] * scale
        logits = jnp.einsum("sr,kr->sk", genes, z, precision=PRECISION) + parameters[:, -1:] + offsets
        entropy = jnp.sum(weights * (jax.nn.softplus(logits) - targets * logits))
        return entropy + 0.5 * jnp.sum(penalties * genes**2)

    gradient, optimizer = jax.grad(loss), optax.scale_by_lbfgs(memory_size=MEMORY)
    update: Any = jax.vmap(optimizer.update)

    def step(_: jax.Array, carry: Any) -> Any:
        parameters, state = carry
        change, state = update(gradient(parameters), state, parameters)
        # A regression that has arrived has no curvature left to learn from, which rounding turns into nonsense.
        change = jnp.where(jnp.all(jnp.isfinite(change), axis=1, keepdims=True), change, 0.0)
        return parameters - change, state

    start = jnp.zeros((weights.shape[0], z.shape[1] + 1))
    parameters, _ = jax.lax.fori_loop(0, num_steps, step, (start, jax.vmap(optimizer.init)(start)))
    genes = parameters[:, :-1] * scale
    return genes, parameters[:, -1] - jnp.matmul(genes, centre, precision=PRECISION)
