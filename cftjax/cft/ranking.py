"""AP and AUROC of a population, ranking the same rows over and over: by counting where positives are few, else sorted.

Exact, ties included, and the same to the bit whatever padding stands behind the rows. Platforms ("cpu", "tpu" or
another) differ in how they count and sort, never in what they find.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32

from cftjax import metrics
from cftjax.cft import host_ranking
from cftjax.metrics import Metric

# Thresholds and scores compared at a time on a CPU: what LLVM turns into vector instructions. Other sizes, or none at
# all, run 2 to 80 times longer.
_BLOCK = 16


def _halves(score: jax.Array, threshold: jax.Array, ties: int, dtype: Any) -> jax.Array:
    """2 where a score lies above a threshold, `ties` (1 or 2) where it equals it, else 0."""
    if ties == 1:
        return (score > threshold).astype(dtype) + (score >= threshold).astype(dtype)
    return 2 * (score >= threshold).astype(dtype)


def _num_reaching(
    scores: Float[jax.Array, "p n"],
    thresholds: Float[jax.Array, "p q"],
    ties: int,
    rows: Int32[jax.Array, ""],
    slots: Int32[jax.Array, ""],
    platform: str,
) -> Int32[jax.Array, "p q"]:
    """How many scores of each row lie above each threshold of that row, ties counted `ties` (1 or 2) halves.

    Args:
        scores: -inf where there is none.
        thresholds: to be reached.
        ties: halves.
        rows: scores behind the first so many are -inf.
        slots: thresholds behind the first so many do not matter.
        platform: a CPU compares in blocks that end with rows and slots, others all at once.

    Returns:
        Twice the number, an integer; 0 or more where it does not matter.
    """
    if platform != "cpu":
        compared = _halves(scores[:, :, None], thresholds[:, None, :], ties, jnp.int32)
        return jnp.sum(compared, axis=1, dtype=jnp.int32)
    num, wanted = scores.shape[0], thresholds.shape[1]
    scores, thresholds = (
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK)), constant_values=-jnp.inf) for x in (scores, thresholds)
    )

    def against(j: jax.Array, counts: jax.Array) -> jax.Array:
        threshold = jax.lax.dynamic_slice(thresholds, (0, j * _BLOCK), (num, _BLOCK))

        def add(i: jax.Array, count: jax.Array) -> jax.Array:
            block = jax.lax.dynamic_slice(scores, (0, i * _BLOCK), (num, _BLOCK))
            for k in range(_BLOCK):
                count = count + _halves(block[:, k : k + 1], threshold, ties, jnp.int32)
            return count

        count = jax.lax.fori_loop(0, (rows + _BLOCK - 1) // _BLOCK, add, jnp.zeros((num, _BLOCK), jnp.int32))
        return jax.lax.dynamic_update_slice(counts, count, (0, j * _BLOCK))

    counts = jnp.zeros(thresholds.shape, jnp.int32)
    return jax.lax.fori_loop(0, (slots + _BLOCK - 1) // _BLOCK, against, counts)[:, :wanted]


def _num_reaching_by_product(
    scores: Float[jax.Array, "p n"],
    thresholds: Float[jax.Array, "p q"],
    ties: int,
    kinds: Bool[jax.Array, "n 2"],
) -> Int32[jax.Array, "p q 2"]:
    """What `_num_reaching` counts, of two kinds of scores at once, as a product of comparisons with kinds.

    On a TPU the matrix unit adds, in whole numbers, what the vector unit compares, and no comparison goes to memory.
    Of one kind alone it would not: a product with a vector is compiled to a sum by the vector unit, which the compiler
    expects to take thirteen times as long.
    """
    compared = _halves(scores[:, None, :], thresholds[:, :, None], ties, jnp.int8)
    return jnp.einsum("pqn,nk->pqk", compared, kinds.astype(jnp.int8), preferred_element_type=jnp.int32)


def by_counting(
    metric: Metric,
    scores: Float[jax.Array, "p n"],
    labels: Bool[jax.Array, " n"],
    where: Bool[jax.Array, " n"],
    slots: int,
    platform: str,
) -> Float[jax.Array, " p"]:
    """Scores of p rankings of the same entries, without a sort, where positives are few.

    What a positive contributes to a metric of `metrics.METRICS` depends only on how many positives and negatives reach
    it, and takes ties as they come. A CPU makes as many comparisons a ranking as there are positives times known
    entries, whatever the padding; other devices `slots * n`.

    Args:
        metric: of `metrics.METRICS`.
        scores: of n entries in p rankings.
        labels: of the entries; the known positives stand among the first `slots`.
        where: which entries are known; the fewer unknown ones before the last known one, the less is done for nothing.
        slots: static; how many entries at the front are looked at as positives; `slots * n` below 2**29.
        platform: static; of the device.

    Returns:
        [p], NaN as in `average_precision` and `auroc`.
    """
    scores = jnp.where(where[None, :], jnp.maximum(scores, jnp.finfo(jnp.float32).min), -jnp.inf)
    positive = (labels & where)[None, :slots]
    thresholds = scores[:, :slots]
    total = jnp.sum(positive)
    place = jax.lax.iota(jnp.int32, scores.shape[1]) + 1
    rows = jnp.max(jnp.where(where, place, 0))
    last = jnp.max(jnp.where(positive[0], place[:slots], 0))
    entry = metrics.METRICS[metric]
    ties, num_negatives = entry.ties, jnp.sum(where) - total
    if platform == "tpu":
        counts = _num_reaching_by_product(scores, thresholds, ties, jnp.stack([where & ~labels, where & labels], 1))
        reaching, positives = counts[..., 0] + counts[..., 1], counts[..., 1]
    else:
        reaching = _num_reaching(scores, thresholds, ties, rows, last, platform)
        # A metric of `of_all` does not need it, and it is compiled away.
        positives = _num_reaching(jnp.where(positive, thresholds, -jnp.inf), thresholds, ties, last, last, platform)
    if entry.of_all is not None:
        return entry.of_all(jnp.sum(jnp.where(positive, reaching, 0), axis=1), total, num_negatives)
    negatives = reaching - positives
    if ties != 2:  # positives count in full, whatever a tied negative does
        positives = _num_reaching(jnp.where(positive, thresholds, -jnp.inf), thresholds, 2, last, last, platform)
    # A positive reaches itself; where there is none, what is counted does not matter and must not divide by 0.
    each = entry.of_positive(jnp.maximum(positives, 2), negatives, num_negatives)
    return entry.over_whole(metrics.fixed_order_sum(jnp.where(positive, each, 0.0).T), total, num_negatives)


def by_sorting(
    metric: Metric,
    scores: Float[jax.Array, "p n"],
    labels: Bool[jax.Array, " n"],
    where: Bool[jax.Array, " n"],
    platform: str,
) -> Float[jax.Array, " p"]:
    """Scores of p rankings of the same entries; NaN as in `metrics.average_precision` and `metrics.auroc`."""
    if platform == "gpu":
        return by_sorting_rows(metric, scores, labels[None], where[None])
    if platform == "cpu":
        return by_sorting_on_host(metric, scores, labels, where)
    keys = metrics.ranking_keys(scores.T, labels[:, None], where[:, None])
    return metrics.of_sorted(metric, jax.lax.sort(keys, dimension=0, is_stable=False))


def by_sorting_on_host(
    metric: Metric,
    scores: Float[jax.Array, "p n"],
    labels: Bool[jax.Array, " n"],
    where: Bool[jax.Array, " n"],
) -> Float[jax.Array, " p"]:
    """What `metrics.of_sorted` finds, to the bit, from what NumPy says of the order."""
    entry, n = metrics.METRICS[metric], scores.shape[1]
    start, positive, below, before = host_ranking.places(metrics.ranking_keys(scores, labels[None], where[None]))
    total = jnp.sum(positive, axis=1, keepdims=True, dtype=jnp.int32)
    num_negatives = jnp.sum(where, dtype=jnp.int32) - total
    positives = total - below
    tied_negatives = jax.lax.broadcasted_iota(jnp.int32, start.shape, 1) - start - (before - below)
    negatives = 2 * (n - start - positives) - (2 - entry.ties) * tied_negatives
    each = entry.of_positive(2 * positives, negatives, num_negatives)
    won = metrics.fixed_order_sum(jnp.where(positive == 1, each, 0.0), axis=1)
    return entry.over_whole(won, total[:, 0], num_negatives[:, 0])


def by_sorting_rows(
    metric: Metric,
    scores: Float[jax.Array, "p n"],
    labels: Bool[jax.Array, "#p n"],
    where: Bool[jax.Array, "#p n"],
) -> Float[jax.Array, " p"]:
    """Scores of p rankings, each of entries of its own: on a GPU one sort for all categories."""
    keys = metrics.ranking_keys(scores, labels, where)
    return of_sorted_rows(metric, jax.lax.sort(keys, dimension=1, is_stable=False))


def of_sorted_rows(metric: Metric, ordered: Int32[jax.Array, "p n"]) -> Float[jax.Array, " p"]:
    """What `metrics.of_sorted` finds in columns, of `metrics.ranking_keys` sorted ascending along rows.

    A GPU sorts and sums rows several times faster than columns. Among so many rankings some positive is always tied,
    so that ties are not a case of their own: one scan more finds each group of equal scores.
    """
    entry, n = metrics.METRICS[metric], ordered.shape[1]
    place = jax.lax.broadcasted_iota(jnp.int32, ordered.shape, 1)
    masked = jnp.sum(ordered == jnp.iinfo(jnp.int32).min, axis=1, keepdims=True, dtype=jnp.int32)
    positive, score = ordered & 1, ordered >> 1
    through = jax.lax.cumsum(positive, axis=1)
    total, before = through[:, -1:], through - positive
    num_negatives = n - masked - total
    starts = jnp.pad(score[:, 1:] != score[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    if entry.ties == 2:
        # A group counts where it starts, all of its positives at once.
        later = jax.lax.cummin(jnp.where(starts, before, total), axis=1, reverse=True)
        of_group = jnp.concatenate([later[:, 1:], total], axis=1) - before
        reaching = total - before
        each = entry.of_positive(2 * reaching, 2 * (n - place - reaching), num_negatives)
        won = _sum_of_rows(jnp.where(starts, of_group.astype(jnp.float32) * each, 0.0))
    else:
        # A group begins with its negatives, so that a positive has all of them behind it, and the tied ones count half.
        negatives = place - before - masked
        below, positives_below = (jax.lax.cummax(jnp.where(starts, x, 0), axis=1) for x in (negatives, before))
        reaching = 2 * num_negatives - below - negatives
        each = entry.of_positive(2 * (total - positives_below), reaching, num_negatives)
        won = _sum_of_rows(jnp.where(positive == 1, each, 0.0))
    return entry.over_whole(won, total[:, 0], num_negatives[:, 0])


def _sum_of_rows(x: Float[jax.Array, "p n"]) -> Float[jax.Array, " p"]:
    """`metrics.fixed_order_sum` of rows, in two passes: one pass would leave most of a GPU's threads idle."""
    columns = 1 << max(0, (x.shape[1] - 1).bit_length()) // 2
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % columns, 0)))
    # Every `columns`-th entry is what the halves of `fixed_order_sum` bring together.
    parts = metrics.fixed_order_sum(x.reshape(len(x), -1, columns).swapaxes(0, 1).reshape(x.shape[1] // columns, -1))
    return metrics.fixed_order_sum(jax.lax.optimization_barrier(parts.reshape(len(x), columns)).T)
