"""Exact ranking metrics over known labels: average precision and AUROC, with ties, on raw scores.

Both follow scikit-learn's definitions (`average_precision_score`, `roc_auc_score`): equal scores form one group,
which AP takes whole and AUROC credits by half. Give raw logits, not probabilities: a float32 sigmoid makes ties of
its own.

The public functions take `[n c]` and return `[c]`: one integer sort per column of scores, the label riding in the key.
The search has faster ways for what it ranks over and over (`cftjax.cft.ranking`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, Num, Shaped

from cftjax.types import Array

# Magnitudes of float32 logits below 2**-63 count as 0 and above 2**64 as equal; within, the key is exact.
_SMALLEST_EXPONENT = 64 << 23
_LARGEST_MAGNITUDE = (1 << 30) - 1
METRICS = ("AP", "AUROC")
_MASKED_KEY = np.int32(np.iinfo(np.int32).min)


def ranking_keys(
    scores: Float[Array, "*shape"], labels: Bool[Array, "*#shape"], where: Bool[Array, "*#shape"]
) -> Int32[jax.Array, "*shape"]:
    """Integers that sort as the scores do, with the label in the lowest bit and masked entries below all others.

    The order of float32 is the order of its bits, sign aside. Dropping the exponents that no logit has frees the bit
    that the label takes, so that nothing of the score's mantissa is lost: two scores share a key (label aside) only if
    they are equal, both within 2**-63 of zero, or both beyond the same 2**64.
    """
    bits = jax.lax.bitcast_convert_type(jnp.asarray(scores, jnp.float32), jnp.int32)
    magnitude = jnp.clip((bits & 0x7FFFFFFF) - _SMALLEST_EXPONENT, 0, _LARGEST_MAGNITUDE)
    keys = 2 * jnp.where(bits < 0, -magnitude, magnitude) + labels.astype(jnp.int32)
    return jnp.where(where, keys, _MASKED_KEY)


def fixed_order_sum(x: Float[jax.Array, "n c"]) -> Float[jax.Array, " c"]:
    """Sum over the first axis in one fixed order, so that it is the same to the bit on any device."""
    size = 1 << max(0, (x.shape[0] - 1).bit_length())
    x = jnp.pad(x, [(size - x.shape[0], 0), (0, 0)])

    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = x[:half] + x[half:]
    return x[0]


def of_sorted(metric: str, ordered: Int32[jax.Array, "n c"]) -> Float[jax.Array, " c"]:
    """AP or AUROC of `ranking_keys` sorted ascending along the first axis.

    Both are sums over the positives, of which each needs to know only what lies above and below its group of equal
    scores. Masked keys come first and labels break ties, so that a group begins with its negatives.

    Args:
        metric: "AP" or "AUROC".
        ordered: keys of c rankings.

    Returns:
        NaN where there is no known positive (AUROC: or no known negative).
    """
    n = ordered.shape[0]
    place = jax.lax.broadcasted_iota(jnp.int32, ordered.shape, 0)
    masked = jnp.sum(ordered == _MASKED_KEY, axis=0, keepdims=True, dtype=jnp.int32)
    positive = ordered & 1
    through = jax.lax.cumsum(positive, axis=0)
    total = through[-1:]
    score = ordered >> 1
    first = jnp.ones((1, ordered.shape[1]), bool)
    starts = jnp.concatenate([first, score[1:] != score[:-1]])

    def contributions(start: jax.Array, positives_below: jax.Array) -> jax.Array:
        """Of each positive, given where its group of equal scores starts and how many positives lie below that.

        Divisions come last: a product followed by a sum could be fused and rounded differently from one program to the
        next.
        """
        if metric == "AP":
            return (total - positives_below).astype(jnp.float32) / (n - start).astype(jnp.float32)
        negatives_below = start - masked - positives_below
        tied_negatives = (place - start) - (through - positive - positives_below)
        return negatives_below.astype(jnp.float32) + tied_negatives.astype(jnp.float32) / 2

    def without_ties() -> jax.Array:
        return contributions(place, through - positive)

    def with_ties() -> jax.Array:
        latest = (jax.lax.cummax(jnp.where(starts, x, 0), axis=0) for x in (place, through - positive))
        return contributions(*latest)

    each = jax.lax.cond(jnp.any(~starts & (positive == 1)), with_ties, without_ties)
    won, total = fixed_order_sum(jnp.where(positive == 1, each, 0.0)), total[0]
    if metric == "AP":
        return won / jnp.where(total == 0, jnp.nan, total)
    pairs = total.astype(jnp.float32) * (n - masked[0] - total).astype(jnp.float32)
    return won / jnp.where(pairs == 0, jnp.nan, pairs)


@jax.jit(static_argnames="metric")
def _score(scores: Array, labels: Array, where: Array, metric: str) -> Float[jax.Array, " c"]:
    keys = ranking_keys(scores, labels.astype(bool), where)
    unordered = jnp.any(jnp.isnan(scores) & where, axis=0)
    ordered = jax.lax.sort(keys, dimension=0, is_stable=False)
    return jnp.where(unordered, jnp.nan, of_sorted(metric, ordered))


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
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
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
