"""Exact ranking metrics over known labels: average precision and AUROC, with ties, on raw scores.

Both follow scikit-learn's definitions (`average_precision_score`, `roc_auc_score`): equal scores form one group,
which AP takes whole and AUROC credits by half. Give raw logits, not probabilities: a float32 sigmoid makes ties of
its own.

The public functions take `[n c]` and return `[c]`. The search calls `ranking_keys` and the `*_of_keys` functions
directly, over any leading axes: one integer sort per row of scores, the label riding in the key.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, Num, Shaped

from cftjax.types import Array

# Magnitudes of float32 logits below 2**-63 count as 0 and above 2**64 as equal; within, the key is exact.
_SMALLEST_EXPONENT = 64 << 23
_LARGEST_MAGNITUDE = (1 << 30) - 1
_MASKED_KEY = np.int32(np.iinfo(np.int32).min)


def ranking_keys(
    scores: Float[Array, "... n"], labels: Bool[Array, "... n"], where: Bool[Array, "... n"]
) -> Int32[jax.Array, "... n"]:
    """Integers that sort as the scores do, with the label in the lowest bit and masked entries below all others.

    The order of float32 is the order of its bits, sign aside. Dropping the exponents that no logit has frees the bit
    that the label takes, so that nothing of the score's mantissa is lost: two scores share a key (label aside) only if
    they are equal, both within 2**-63 of zero, or both beyond the same 2**64.
    """
    bits = jax.lax.bitcast_convert_type(jnp.asarray(scores, jnp.float32), jnp.int32)
    magnitude = jnp.clip((bits & 0x7FFFFFFF) - _SMALLEST_EXPONENT, 0, _LARGEST_MAGNITUDE)
    keys = 2 * jnp.where(bits < 0, -magnitude, magnitude) + labels.astype(jnp.int32)
    return jnp.where(where, keys, _MASKED_KEY)


def _cumulative_sum(x: Int32[jax.Array, "... n"]) -> Int32[jax.Array, "... n"]:
    """Inclusive sum along the last axis, in blocks: XLA's own is slower than the product with a small triangle.

    Each block's product is exact in float32 (counts of at most 32) and the blocks' offsets are added as integers.
    """
    n, block = x.shape[-1], 32
    blocks = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % block)]).reshape(*x.shape[:-1], -1, block)
    triangle = jnp.triu(jnp.ones((block, block), jnp.float32))
    within = jnp.matmul(blocks.astype(jnp.float32), triangle).astype(jnp.int32)
    totals = within[..., -1]
    offsets = jnp.cumsum(totals, axis=-1) - totals
    return (within + offsets[..., None]).reshape(*x.shape[:-1], -1)[..., :n]


def _sum(x: Float[jax.Array, "... n"]) -> Float[jax.Array, ...]:
    """Sum of the last axis in one fixed order, the same to the bit on any device and with any zeros behind."""
    size = 1 << max(0, (x.shape[-1] - 1).bit_length())
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def _next_start(
    values: Int32[jax.Array, "... n"], starts: Bool[jax.Array, "... n"], last: Any
) -> Int32[jax.Array, "... n"]:
    """For each position the value at the next group's start, `last` behind the final one; values never fall."""
    at_starts = jnp.where(starts, values, last)
    later = jnp.concatenate([at_starts[..., 1:], jnp.broadcast_to(last, (*values.shape[:-1], 1))], axis=-1)
    return jax.lax.cummin(later, axis=later.ndim - 1, reverse=True)


def _sorted_keys(keys: Int32[jax.Array, "... n"]) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Ascending keys, their labels (0 or 1), whether each continues a group of equal scores, and n masked."""
    masked = jnp.sum(keys == _MASKED_KEY, axis=-1, keepdims=True, dtype=jnp.int32)
    ordered = jax.lax.sort(keys, dimension=keys.ndim - 1, is_stable=False)
    score = ordered >> 1
    first = jnp.zeros((*keys.shape[:-1], 1), bool)
    continues = jnp.concatenate([first, score[..., 1:] == score[..., :-1]], axis=-1)
    return ordered, ordered & 1, continues, masked


def _positions(keys: Int32[jax.Array, "... n"]) -> Int32[jax.Array, "... n"]:
    return jax.lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)


def average_precision_of_keys(keys: Int32[jax.Array, "... n"]) -> Float[jax.Array, ...]:
    """AP of rows of `ranking_keys`; NaN where a row has no known positive."""
    ordered, positive, continues, _ = _sorted_keys(keys)
    n = keys.shape[-1]
    total = jnp.sum(positive, axis=-1, keepdims=True)
    before = _cumulative_sum(positive) - positive
    at_least = n - _positions(keys)  # entries ranked at or above each position
    positives_at_least = (total - before).astype(jnp.float32)

    # Divisions come last: a product followed by a sum could be fused and rounded differently from one program to the
    # next.
    def without_ties() -> jax.Array:
        return _sum(jnp.where(positive == 1, positives_at_least / at_least.astype(jnp.float32), 0.0))

    def with_ties() -> jax.Array:
        starts = ~continues & (ordered != _MASKED_KEY)
        in_group = (_next_start(before, starts, total) - before).astype(jnp.float32)
        return _sum(jnp.where(starts, positives_at_least * in_group / at_least.astype(jnp.float32), 0.0))

    tied = jnp.any(continues & (positive == 1))
    found = jax.lax.cond(tied, with_ties, without_ties)
    return found / jnp.where(total == 0, jnp.nan, total)[..., 0]


def auroc_of_keys(keys: Int32[jax.Array, "... n"]) -> Float[jax.Array, ...]:
    """AUROC of rows of `ranking_keys`; NaN where a row lacks a known positive or a known negative."""
    ordered, positive, continues, masked = _sorted_keys(keys)
    n = keys.shape[-1]
    position = _positions(keys) - masked
    total = jnp.sum(positive, axis=-1, keepdims=True)
    negatives = n - masked - total
    # Within a group of equal scores the negatives come first, so this counts tied negatives in full; ties give half
    # back.
    below = position - (_cumulative_sum(positive) - positive)
    won = _sum(jnp.where(positive == 1, below.astype(jnp.float32), 0.0))

    def tied_pairs() -> jax.Array:
        starts = ~continues & (ordered != _MASKED_KEY)
        before = position - below
        positives = _next_start(before, starts, total) - before
        entries = _next_start(position, starts, n - masked) - position
        pairs = positives.astype(jnp.float32) * (entries - positives).astype(jnp.float32) / 2.0
        return _sum(jnp.where(starts, pairs, 0.0))

    tied = jnp.any(continues & (positive == 1))
    won = won - jax.lax.cond(tied, tied_pairs, lambda: jnp.zeros_like(won))
    pairs = total[..., 0].astype(jnp.float32) * negatives[..., 0].astype(jnp.float32)
    return won / jnp.where(pairs == 0, jnp.nan, pairs)


OF_KEYS = {"AP": average_precision_of_keys, "AUROC": auroc_of_keys}


def _num_reaching(
    scores: Float[jax.Array, "p n"], thresholds: Float[jax.Array, "p q"], ties: int
) -> Int32[jax.Array, "p q"]:
    """How many scores of each row lie above each threshold of that row, ties counted `ties` (0, 1 or 2) halves.

    Returns:
        Twice the number, an integer.
    """

    def compare(score: jax.Array, threshold: jax.Array) -> jax.Array:
        if ties == 1:
            return (score > threshold).astype(jnp.int32) + (score >= threshold).astype(jnp.int32)
        return 2 * (score >= threshold if ties else score > threshold).astype(jnp.int32)

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        # Blocks of 16 are what LLVM turns into vector instructions; without them this runs 10 to 80 times longer.
        blocks = jnp.pad(row[0], (0, -len(row[0]) % 16), constant_values=-jnp.inf).reshape(-1, 16)

        def add(i: jax.Array, count: jax.Array) -> jax.Array:
            block = jax.lax.dynamic_index_in_dim(blocks, i, keepdims=False)
            for k in range(16):
                count = count + compare(block[k], row[1])
            return count

        return jax.lax.fori_loop(0, len(blocks), add, jnp.zeros(row[1].shape, jnp.int32))

    return jax.lax.platform_dependent(
        scores,
        thresholds,
        cpu=lambda scores, thresholds: jax.lax.map(one, (scores, thresholds)),
        default=lambda scores, thresholds: jnp.sum(
            compare(scores[:, :, None], thresholds[:, None, :]), axis=1, dtype=jnp.int32
        ),
    )


def by_counting(
    metric: str,
    scores: Float[jax.Array, "p n"],
    labels: Bool[jax.Array, " n"],
    where: Bool[jax.Array, " n"],
    slots: int,
) -> Float[jax.Array, " p"]:
    """AP or AUROC of p rankings of the same entries, without a sort, where positives are few.

    AP is the mean, over the positives, of the share of positives among the entries that score at least as high. AUROC
    is the share of pairs in the right order. Both need only counts, `slots * n` comparisons a ranking, and take ties
    as they come.

    Args:
        metric: "AP" or "AUROC".
        scores: of n entries in p rankings.
        labels: of the entries; the known positives stand among the first `slots`.
        where: which entries are known.
        slots: static; how many entries at the front are looked at as positives; `slots * n` below 2**29.

    Returns:
        [p], NaN as in `average_precision` and `auroc`.
    """
    scores = jnp.where(where[None, :], jnp.maximum(scores, jnp.finfo(jnp.float32).min), -jnp.inf)
    positive = (labels & where)[None, :slots]
    thresholds = scores[:, :slots]
    total = jnp.sum(positive)
    if metric == "AP":
        at_least = _num_reaching(scores, thresholds, ties=2)
        positives = _num_reaching(jnp.where(positive, thresholds, -jnp.inf), thresholds, ties=2)
        precision = positives.astype(jnp.float32) / jnp.maximum(at_least, 2).astype(jnp.float32)
        return _sum(jnp.where(positive, precision, 0.0)) / jnp.where(total == 0, jnp.nan, total)
    reaching = jnp.sum(jnp.where(positive, _num_reaching(scores, thresholds, ties=1), 0), axis=1)
    # Among the positives themselves every ordered pair has been counted half.
    lost = (reaching - total**2).astype(jnp.float32) / 2
    pairs = total.astype(jnp.float32) * (jnp.sum(where) - total).astype(jnp.float32)
    return 1.0 - lost / jnp.where(pairs == 0, jnp.nan, pairs)


@jax.jit(static_argnames="metric")
def _score(scores: Array, labels: Array, where: Array, metric: str) -> Float[jax.Array, " c"]:
    keys = ranking_keys(scores.T, labels.T.astype(bool), where.T)
    unordered = jnp.any(jnp.isnan(scores) & where, axis=0)
    return jnp.where(unordered, jnp.nan, OF_KEYS[metric](keys))


def _ranks_if_wide(scores: Array) -> Array:
    """Float64 and integer scores as ranks of their distinct values, so that float32 makes no ties of its own."""
    if isinstance(scores, np.ndarray) and scores.dtype not in (np.float32, np.float16):
        ranked = np.empty(scores.shape, np.float32)
        for c in range(scores.shape[1]):
            ranked[:, c] = np.unique(scores[:, c], return_inverse=True)[1]
        return np.where(np.isnan(scores), np.float32(np.nan), ranked)
    return scores


def score(metric: str, scores: Array, labels: Array, where: Array | None = None) -> Float[jax.Array, " c"]:
    """`average_precision` for metric "AP", `auroc` for "AUROC"."""
    scores, labels = (x if isinstance(x, jax.Array) else np.asarray(x) for x in (scores, labels))
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} must both be [n c]; for one category use [:, None]"
        )
    known = np.ones(scores.shape, bool) if where is None else where
    if known.shape != scores.shape:
        raise ValueError(f"where {known.shape} must have the shape of scores, {scores.shape}")
    if metric not in OF_KEYS:
        raise ValueError(f"metric {metric!r} is not one of {', '.join(OF_KEYS)}")
    return _score(_ranks_if_wide(scores), labels, known, metric)


def average_precision(
    scores: Num[Array, "n c"], labels: Shaped[Array, "n c"], where: Bool[Array, "n c"] | None = None
) -> Float[jax.Array, " c"]:
    """Average precision of each category over its known labels.

    Args:
        scores: [n c] raw logits, or anything that ranks; NumPy float64 keeps its full precision.
        labels: [n c], true or 1 for positive; read only where known.
        where: [n c], true where the label is known; None if all are.

    Returns:
        [c] float32 in [0, 1]; NaN where a category has no known positive, or a NaN among its known scores.

    Raises:
        ValueError: on shapes that do not agree.
    """
    return score("AP", scores, labels, where)


def auroc(
    scores: Num[Array, "n c"], labels: Shaped[Array, "n c"], where: Bool[Array, "n c"] | None = None
) -> Float[jax.Array, " c"]:
    """Area under the ROC curve of each category over its known labels, ties by half.

    Args, returns and errors are those of `average_precision`; NaN also where a category has no known negative.
    """
    return score("AUROC", scores, labels, where)


def mean_defined(values: Float[Array, "... c"]) -> Float[jax.Array, ...]:
    """Mean over the categories whose score is defined (mAP, mAUC); NaN where none is."""
    values = jnp.asarray(values)
    defined = ~jnp.isnan(values)
    count = jnp.sum(defined, axis=-1)
    return jnp.sum(jnp.where(defined, values, 0.0), axis=-1) / jnp.where(count == 0, jnp.nan, count)
