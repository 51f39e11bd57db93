"""Logistic regressions of one category under many penalties and weights of its rows at once, by optax's L-BFGS.

All of them read the same rows, so that a step of all is two matrix products. The problems are convex and, divided by
their curvature, round: full steps need no line search, and twenty of them reach float32's rounding. Many rows are read
in blocks, so that nothing as large as they or their logits is ever made beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Num

from cftjax.types import Array

MEMORY = 8
# What a row's probability is taken to vary by when coordinates are divided by their curvature: between rare and even.
CURVATURE = 0.05
PRECISION = jax.lax.Precision.HIGHEST
# Coordinates of more numbers than the first are read in blocks of at most the second; below that, all at once is as
# fast. Blocks of fewer rows than the last would be slow.
LARGE, BLOCK, FEWEST_ROWS = 2**24, 2**22, 1024


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
    weights = jnp.asarray(weights) / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-30)
    rows = Rows(jnp.asarray(z), jnp.asarray(labels, jnp.float32)[None, :], weights, jnp.asarray(offsets))
    problem = _in_blocks if rows_at_once(*z.shape) else _whole
    centre, scale, gradient = problem(rows, penalties)
    optimizer = optax.scale_by_lbfgs(memory_size=MEMORY)
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


class Rows(NamedTuple):
    """What the regressions read.

    Attributes:
        z: [k r] coordinates.
        targets: [1 k] 0 or 1.
        weights: [s k], of a regression adding up to one.
        offsets: [s k] what is added to the logits.
    """

    z: jax.Array
    targets: jax.Array
    weights: jax.Array
    offsets: jax.Array

    def block(self, start: jax.Array, size: int) -> Rows:
        """So many rows from a place on."""
        z = jax.lax.dynamic_slice_in_dim(self.z, start, size)
        return Rows(z, *(jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in self[1:]))


# Where rows are centred [r], what coordinates are multiplied by [s r], and the gradient at parameters [s r+1]: of the
# coordinates so changed, then of the bias.
Problem = tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]


def _scale(variance: Float[jax.Array, "s r"], penalties: Float[Array, "s r"]) -> Float[jax.Array, "s r"]:
    """What makes the problem round."""
    return 1 / jnp.sqrt(jnp.maximum(CURVATURE * variance + penalties, 1e-12))


def _whole(rows: Rows, penalties: Float[Array, "s r"]) -> Problem:
    """All rows at once."""
    centre = jnp.einsum("sk,kr->r", rows.weights, rows.z, precision=PRECISION) / rows.weights.shape[0]
    z = rows.z - centre[None, :]
    variance = jnp.einsum("sk,kr->sr", rows.weights, z * z, precision=PRECISION)
    scale = _scale(variance, penalties)

    def loss(parameters: Float[jax.Array, "s r1"]) -> jax.Array:
        genes = parameters[:, :-1] * scale
        logits = jnp.einsum("sr,kr->sk", genes, z, precision=PRECISION) + parameters[:, -1:] + rows.offsets
        entropy = jnp.sum(rows.weights * (jax.nn.softplus(logits) - rows.targets * logits))
        return entropy + 0.5 * jnp.sum(penalties * genes**2)

    return centre, scale, jax.grad(loss)


def rows_at_once(num_rows: int, num_dimensions: int) -> int:
    """Rows of a block, all blocks alike; 0 where they are read at once."""
    divisor = num_rows & -num_rows
    size = min(divisor, 1 << max(0, (BLOCK // num_dimensions).bit_length() - 1))
    return size if num_rows * num_dimensions > LARGE and size >= FEWEST_ROWS else 0


def _in_blocks(rows: Rows, penalties: Float[Array, "s r"]) -> Problem:
    """The same to within rounding; the gradient by hand, for differentiation would keep all logits."""
    size = rows_at_once(*rows.z.shape)

    def over_blocks(add: Callable[[Rows, Any], Any], start: Any) -> Any:
        number = rows.z.shape[0] // size
        return jax.lax.fori_loop(0, number, lambda i, total: add(rows.block(i * size, size), total), start)

    def product(weights: Float[jax.Array, "s k"], z: Float[jax.Array, "k r"]) -> Float[jax.Array, "s r"]:
        return jnp.einsum("sk,kr->sr", weights, z, precision=PRECISION)

    nothing = jnp.zeros(penalties.shape)
    means = over_blocks(lambda block, total: total + product(block.weights, block.z), nothing)
    centre = means.mean(axis=0)

    def add_squares(block: Rows, total: jax.Array) -> jax.Array:
        return total + product(block.weights, (block.z - centre[None, :]) ** 2)

    scale = _scale(over_blocks(add_squares, nothing), penalties)

    def gradient(parameters: Float[jax.Array, "s r1"]) -> jax.Array:
        genes = parameters[:, :-1] * scale
        bias = parameters[:, -1:] - jnp.matmul(genes, centre, precision=PRECISION)[:, None]

        def add(block: Rows, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            logits = jnp.einsum("sr,kr->sk", genes, block.z, precision=PRECISION) + bias + block.offsets
            residual = block.weights * (jax.nn.sigmoid(logits) - block.targets)
            return total[0] + product(residual, block.z), total[1] + residual.sum(axis=1, keepdims=True)

        by_genes, by_bias = over_blocks(add, (nothing, jnp.zeros((len(parameters), 1))))
        by_genes = by_genes - by_bias * centre[None, :] + penalties * genes
        return jnp.concatenate([by_genes * scale, by_bias], axis=1)

    return centre, scale, gradient
