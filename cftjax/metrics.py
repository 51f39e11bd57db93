"""Exact ranking metrics over known labels: average precision and AUROC, with ties, on raw scores.

Both follow scikit-learn's definitions (`average_precision_score`, `roc_auc_score`): equal scores form one group,
which AP takes whole and AUROC credits by half. Give raw logits, not probabilities: a float32 sigmoid makes ties of
its own.

One thing differs on purpose: without a known negative AP is undefined here, as AUROC is, where scikit-learn says 1.0.
Any ranking of positives alone would have that 1.0, a random one too: it says nothing of the scores, and in a mean over
categories it would raise the better part of what was never measured.

The public functions take `[n c]` and return `[c]`: one integer sort per column of scores, the label riding in the key.
The search has faster ways for what it ranks over and over (`cftjax.cft.ranking`).

A metric is one entry of `METRICS`. Whatever scores, resamples, picks, ranks and prints reads that table, so that a new
one is added here (its name in `Metric`, its entry in `METRICS`) and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, Num, Shaped

from cftjax.types import Array, Matrix

# Magnitudes of float32 logits below 2**-63 count as 0 and above 2**64 as equal; within, the key is exact.
_SMALLEST_EXPONENT = 64 << 23
_LARGEST_MAGNITUDE = (1 << 30) - 1
_MASKED_KEY = np.int32(np.iinfo(np.int32).min)

Metric = Literal["AP", "AUROC"]


@dataclasses.dataclass(frozen=True)
class RankingMetric:
    """A score of one ranking: what its positives contribute, added up, over a whole; undefined without both kinds.

    The functions take NumPy arrays (of weights) and JAX arrays (of counts) alike. Counts that positives and negatives
    reach are in halves, for a tie may count by half.

    Attributes:
        mean: what the mean over categories is called.
        ties: how many halves a negative counts that is tied with a positive: 2 as if ranked above it, 1 by half.
        of_positive: halves of positives at or above a positive, itself included; halves of negatives above it; number
            of negatives in all -> what it contributes.
        whole: number of positives, number of negatives -> what the contributions' sum is divided by.
        of_all: halves of entries that the positives reach together, ties by half, number of positives, number of
            negatives -> the score itself; for metrics that can be had from that alone, which saves a count.
    """

    mean: str
    ties: Literal[1, 2]
    of_positive: Callable[[Any, Any, Any], Any]
    whole: Callable[[Any, Any], Any]
    of_all: Callable[[Any, Any, Any], Any] | None = None

    def over_whole(self, won: Any, positives: Any, negatives: Any) -> Any:
        """The score of contributions added up; NaN where no positive or no negative is known."""
        numpy = np if isinstance(won, np.ndarray) else jnp
        undefined = (positives == 0) | (negatives == 0)
        return won / numpy.where(undefined, np.nan, self.whole(positives, negatives))


def _pairs(positives: Any, negatives: Any) -> Any:
    return positives.astype(np.float32) * negatives.astype(np.float32)


def _pairs_won(reaching: Any, positives: Any, negatives: Any) -> Any:
    # Among the positives themselves every ordered pair has been counted half.
    lost = (reaching - positives**2).astype(np.float32) / 2
    pairs = _pairs(positives, negatives)
    return 1.0 - lost / jnp.where(pairs == 0, jnp.nan, pairs)


METRICS: dict[Metric, RankingMetric] = {
    # The mean, over the positives, of the share of positives among the entries that score at least as high.
    "AP": RankingMetric(
        "mAP",
        ties=2,
        of_positive=lambda positives, negatives, _: (
            positives.astype(np.float32) / (positives + negatives).astype(np.float32)
        ),
        whole=lambda positives, _: positives,
    ),
    # The share of pairs of a positive and a negative that are in the right order.
    "AUROC": RankingMetric(
        "mAUC",
        ties=1,
        of_positive=lambda _, negatives, total: (2 * total - negatives).astype(np.float32) / 2,
        whole=_pairs,
        of_all=_pairs_won,
    ),
}
# Metric -> what its mean over categories is called.
MEAN: dict[Metric, str] = {name: metric.mean for name, metric in METRICS.items()}


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


def fixed_order_sum(x: Float[jax.Array, "_ _"], axis: int = 0) -> Float[jax.Array, " _"]:
    """Sum over an axis in one fixed order, so that it is the same to the bit on any device."""
    extent = x.shape[axis]
    size = 1 << max(0, (extent - 1).bit_length())
    x = jnp.pad(x, [(size - extent, 0) if i == axis else (0, 0) for i in range(2)])

    while (half := x.shape[axis] // 2) > 0:
        first, second = (jax.lax.slice_in_dim(x, start, start + half, axis=axis) for start in (0, half))
        x = first + second
    return x[0] if axis == 0 else x[:, 0]


def of_sorted(metric: Metric, ordered: Int32[jax.Array, "n c"]) -> Float[jax.Array, " c"]:
    """The score of `ranking_keys` sorted ascending along the first axis.

    It is a sum over the positives, of which each needs to know only what lies above and below its group of equal
    scores. Masked keys come first and labels break ties, so that a group begins with its negatives.

    Args:
        metric: of `METRICS`.
        ordered: keys of c rankings.

    Returns:
        NaN where there is no known positive or no known negative.
    """
    entry, n = METRICS[metric], ordered.shape[0]
    place = jax.lax.broadcasted_iota(jnp.int32, ordered.shape, 0)
    masked = jnp.sum(ordered == _MASKED_KEY, axis=0, keepdims=True, dtype=jnp.int32)
    positive = ordered & 1
    through = jax.lax.cumsum(positive, axis=0)
    total = through[-1:]
    num_negatives = n - masked - total
    score = ordered >> 1
    first = jnp.ones((1, ordered.shape[1]), bool)
    starts = jnp.concatenate([first, score[1:] != score[:-1]])

    def contributions(start: jax.Array, positives_below: jax.Array) -> jax.Array:
        """Of each positive, given where its group of equal scores starts and how many positives lie below that."""
        reaching, positives = n - start, total - positives_below
        tied_negatives = (place - start) - (through - positive - positives_below)
        negatives = 2 * (reaching - positives) - (2 - entry.ties) * tied_negatives
        return entry.of_positive(2 * positives, negatives, num_negatives)

    def without_ties() -> jax.Array:
        return contributions(place, through - positive)

    def with_ties() -> jax.Array:
        latest = (jax.lax.cummax(jnp.where(starts, x, 0), axis=0) for x in (place, through - positive))
        return contributions(*latest)

    each = jax.lax.cond(jnp.any(~starts & (positive == 1)), with_ties, without_ties)
    won = fixed_order_sum(jnp.where(positive == 1, each, 0.0))
    return entry.over_whole(won, total[0], num_negatives[0])


@jax.jit(static_argnames="metric")
def _score(scores: Array, labels: Array, where: Array, metric: Metric) -> Float[jax.Array, " c"]:
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


def _known_rows(
    scores: Num[np.ndarray, "n c"], labels: Shaped[np.ndarray, "n c"], known: Bool[np.ndarray, "n c"]
) -> tuple[Num[np.ndarray, "k c"], Bool[np.ndarray, "k c"], Bool[np.ndarray, "k c"]]:
    """Each category's known rows alone, where they are less than half: they have the same score to the bit.

    As many for all, a power of two, so that few programs are compiled.
    """
    columns, rows = np.nonzero(known.T)
    counts = np.bincount(columns, minlength=known.shape[1])
    length = 1 << (int(counts.max(initial=1)) - 1).bit_length()
    if 2 * length > len(scores):
        return scores, labels.astype(bool), known
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    packed = np.zeros((length, known.shape[1]), scores.dtype)
    positive, where = np.zeros((2, *packed.shape), bool)
    packed[places, columns] = scores[rows, columns]
    positive[places, columns] = labels[rows, columns]
    where[places, columns] = True
    return packed, positive, where


def score(metric: Metric, scores: Array, labels: Matrix, where: Matrix | None = None) -> Float[jax.Array, " c"]:
    """`average_precision` for metric "AP", `auroc` for "AUROC"."""
    where = np.ones(np.shape(scores), bool) if where is None else where
    scores, labels, known = (x if isinstance(x, jax.Array) else np.asarray(x) for x in (scores, labels, where))
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} must both be [n c]; for one category use [:, None]"
        )
    if known.shape != scores.shape:
        raise ValueError(f"where {known.shape} must have the shape of scores, {scores.shape}")
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    scores = _ranks_if_wide(scores)
    if isinstance(scores, np.ndarray) and isinstance(labels, np.ndarray) and isinstance(known, np.ndarray):
        scores, labels, known = _known_rows(scores, labels, known)
    return _score(scores, labels, known, metric)


def average_precision(
    scores: Num[Array, "n c"], labels: Shaped[Matrix, "n c"], where: Bool[Matrix, "n c"] | None = None
) -> Float[jax.Array, " c"]:
    """Average precision of each category over its known labels.

    Args:
        scores: [n c] raw logits, or anything that ranks; NumPy float64 keeps its full precision.
        labels: [n c], true or 1 for positive; read only where known.
        where: [n c], true where the label is known; None if all are.

    Returns:
        [c] float32 in [0, 1]; NaN where a category has no known positive or no known negative (scikit-learn says 1.0
            without a negative: see the module), or a NaN among its known scores.

    Raises:
        ValueError: on shapes that do not agree.
    """
    return score("AP", scores, labels, where)


def auroc(
    scores: Num[Array, "n c"], labels: Shaped[Matrix, "n c"], where: Bool[Matrix, "n c"] | None = None
) -> Float[jax.Array, " c"]:
    """Area under the ROC curve of each category over its known labels, ties by half.

    Args, returns and errors are those of `average_precision`.
    """
    return score("AUROC", scores, labels, where)


@jax.jit
def mean_defined(values: Float[Array, "... c"]) -> Float[jax.Array, ...]:
    """Mean over the categories whose score is defined (mAP, mAUC); NaN where none is."""
    values = jnp.asarray(values)
    defined = ~jnp.isnan(values)
    count = jnp.sum(defined, axis=-1)
    return jnp.sum(jnp.where(defined, values, 0.0), axis=-1) / jnp.where(count == 0, jnp.nan, count)


def mean_of(values: Float[Array, " c"]) -> float:
    """The same of one row, as a number."""
    return float(mean_defined(values))
