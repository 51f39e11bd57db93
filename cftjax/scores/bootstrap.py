"""Paired bootstrap of every metric: how much a score, or a difference of two models, owes to the images drawn.

A resample draws as many images as there are, with replacement; its score is the score of the same ranking under integer
weights. Each category is therefore sorted once and every resample costs a few sums. Images of one patient or study are
drawn together where groups are given (Efron & Tibshirani 1993, chapters 13 and 8).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from cftjax.metrics import METRICS, Metric

# Bytes of one block of resampled counts; a handful of arrays of this size live at a time.
BLOCK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its interval.

    Attributes:
        value: what was measured on the images themselves.
        low: lower end; NaN where no resample is defined.
        high: upper end; NaN where no resample is defined.
        resamples: how many resamples were defined and stand behind the ends.
    """

    value: float
    low: float
    high: float
    resamples: int


# Metric -> [m r c], scores of m models under the same r resamples; NaN where a resample leaves a category undefined.
Resampled = dict[Metric, Float32[np.ndarray, "m r c"]]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One category's known rows in the order of their scores, cut where the score of a positive stands.

    With s distinct scores among the positives, negatives fall into 2 s + 1 bins, best first: bin 2 i lies between the
    positive scores i - 1 and i, bin 2 i + 1 is tied with score i.

    Attributes:
        positives: [k] rows of positives, best first.
        positive_bounds: [s + 1] where each distinct score begins among them.
        negatives: [l] rows of negatives, best first.
        negative_bounds: [2 s + 2] where each bin begins among them.
    """

    positives: Int[np.ndarray, " k"]
    positive_bounds: Int[np.ndarray, " s1"]
    negatives: Int[np.ndarray, " l"]
    negative_bounds: Int[np.ndarray, " b1"]


def rank(
    scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], known: Bool[np.ndarray, " n"]
) -> Ranking | None:
    """Sort one category's known rows; None where it has no known positive, or a NaN among its known scores."""
    positives, negatives = np.flatnonzero(labels & known), np.flatnonzero(~labels & known)
    if len(positives) == 0 or np.isnan(scores[known]).any():
        return None
    distinct, group = np.unique(-scores[positives], return_inverse=True)
    below = np.searchsorted(distinct, -scores[negatives])
    tied = distinct[np.minimum(below, len(distinct) - 1)] == -scores[negatives]
    bins = 2 * below + tied
    by_group, by_bin = np.argsort(group, kind="stable"), np.argsort(bins, kind="stable")
    return Ranking(
        positives[by_group],
        np.searchsorted(group[by_group], np.arange(len(distinct) + 1)),
        negatives[by_bin],
        np.searchsorted(bins[by_bin], np.arange(2 * len(distinct) + 2)),
    )


def _sums(
    weights: Float32[np.ndarray, "n r"], rows: Int[np.ndarray, " k"], bounds: Int[np.ndarray, " b1"]
) -> Float32[np.ndarray, "b r"]:
    """Total weight of each run of rows between two bounds."""
    gathered, lengths = weights.take(rows, axis=0), np.diff(bounds)
    if (lengths == 1).all():
        return gathered
    sums = np.zeros((len(lengths), weights.shape[1]), np.float32)
    for run in np.flatnonzero(lengths):
        np.add.reduce(gathered[bounds[run] : bounds[run + 1]], axis=0, out=sums[run])
    return sums


def _cumulative(x: Float32[np.ndarray, "b r"]) -> Float32[np.ndarray, "b r"]:
    """Running sum down the first axis; NumPy's own walks each column by itself and takes several times as long."""
    running = x.copy()
    for above, row in itertools.pairwise(running):
        np.add(above, row, out=row)
    return running


def weighted_scores(
    ranking: Ranking | None, weights: Float32[np.ndarray, "n r"]
) -> dict[Metric, Float32[np.ndarray, " r"]]:
    """Every metric of one category under each column of weights, ties as scikit-learn counts them.

    Args:
        ranking: the category's; None gives NaN.
        weights: [n r] whole numbers of at least 0 whose columns add up to less than 2**24, where float32 is exact.

    Returns:
        Metric -> [r]; NaN where no positive or no negative has weight.
    """
    if ranking is None:
        return {metric: np.full(weights.shape[1], np.nan, np.float32) for metric in METRICS}
    positive = _sums(weights, ranking.positives, ranking.positive_bounds)
    passed = _cumulative(_sums(weights, ranking.negatives, ranking.negative_bounds))
    true, above, with_tied = _cumulative(positive), passed[:-1:2], passed[1::2]
    total, num_negatives = true[-1], passed[-1]
    # A positive reaches itself; one without weight contributes nothing, and must not divide by 0.
    reaching = np.maximum(2 * true, 2)
    scores: dict[Metric, Float32[np.ndarray, " r"]] = {}
    for name, metric in METRICS.items():
        negatives = 2 * with_tied if metric.ties == 2 else above + with_tied
        won = np.einsum("sr,sr->r", positive, metric.of_positive(reaching, negatives, num_negatives))
        scores[name] = metric.over_whole(won, total, num_negatives)
    return scores


def counts(
    n: int, *, groups: Shaped[np.ndarray, " n"] | None = None, resamples: int, seed: int
) -> Iterator[Float32[np.ndarray, "n _"]]:
    """How often each image occurs in each resample, in blocks of bounded memory that together have `resamples` columns.

    Args:
        n: images.
        groups: [n] what images of one patient share; groups are drawn, each with all its images. None draws images.
        resamples: columns over all blocks.
        seed: the same seed gives the same resamples.
    """
    rng = np.random.default_rng(seed)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(member.max()) + 1
    at_once = max(1, BLOCK_BYTES // (4 * n))
    for start in range(0, resamples, at_once):
        block = np.empty((min(at_once, resamples - start), units), np.float32)
        for row in block:
            row[:] = np.bincount(rng.integers(units, size=units), minlength=units)
        yield np.ascontiguousarray(block.T) if groups is None else block.T[member]


def resample(
    scores: Float[np.ndarray, "m n c"],
    labels: Bool[np.ndarray, "_ _"],
    known: Bool[np.ndarray, "_ _"],
    *,
    groups: Shaped[np.ndarray, " _"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Resampled:
    """Score m models of the same images under the same resamples, so that their differences are paired.

    Args:
        scores: [m n c] raw logits, or anything that ranks.
        labels: [n c], read only where known.
        known: [n c].
        groups: [n], as in `counts`.
        resamples: r.
        seed: randomness; independent of the memory at hand.

    Returns:
        Resampled: metric -> [m r c].

    Raises:
        ValueError: on shapes that do not agree, no images, or no resamples.
    """
    m, n, c = scores.shape
    if labels.shape != (n, c) or known.shape != (n, c):
        raise ValueError(f"labels {labels.shape} and known {known.shape} must both be {(n, c)}, as the scores are")
    if n == 0 or resamples < 1:
        raise ValueError(f"the bootstrap needs at least 1 image and 1 resample, not {n} and {resamples}")
    rankings = [[rank(model[:, i], labels[:, i], known[:, i]) for i in range(c)] for model in scores]
    resampled: Resampled = {metric: np.empty((m, resamples, c), np.float32) for metric in METRICS}
    done = 0
    for weights in counts(n, groups=groups, resamples=resamples, seed=seed):
        block = slice(done, done + weights.shape[1])
        for model, i in itertools.product(range(m), range(c)):
            for metric, scored in weighted_scores(rankings[model][i], weights).items():
                resampled[metric][model, block, i] = scored
        done = block.stop
    return resampled


def score_interval(value: float, samples: Float[np.ndarray, " r"], level: float = 0.95) -> Interval:
    """The interval of a score: percentiles, moved together until the mean of the resamples is the score measured.

    In a resample positives occur repeatedly and are each other's company at the top, so that its AP is on average above
    the AP measured: little where positives are many, but by more than the spread of the resamples where the mean is
    over many categories of few. Percentiles then leave the score itself out; moved, they hold what such sets of images
    score on average about as often as they say (`benchmarks/interval_coverage.py`; docs/evaluate.md).

    Args:
        value: measured on the images themselves, between 0 and 1.
        samples: [r] of the resamples; undefined ones are left out and not counted.
        level: of the interval.

    Returns:
        Interval: between 0 and 1.
    """
    plain = interval(value, samples, level)
    bias = float(np.nanmean(samples)) - value if plain.resamples else 0.0
    low, high = np.clip([plain.low - bias, plain.high - bias], 0, 1)
    return dataclasses.replace(plain, low=float(low), high=float(high))


def interval(value: float, samples: Float[np.ndarray, " r"], level: float = 0.95) -> Interval:
    """The percentile interval of resampled values; undefined resamples are left out and not counted."""
    defined = samples[~np.isnan(samples)]
    if np.isnan(value) or len(defined) == 0:
        return Interval(value, float("nan"), float("nan"), len(defined))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(defined))


def p_value(differences: Float[np.ndarray, " r"]) -> float:
    """Two-sided p value of a paired difference: twice the smaller share of resamples on one side of 0.

    Resamples at 0 count on both sides, and the differences measured count as one more resample on each, so that p is
    never 0. It is small where the percentile interval leaves 0 out (Efron & Tibshirani 1993, section 15.4; Davison &
    Hinkley 1997, section 4.2). NaN where no resample is defined.
    """
    defined = differences[~np.isnan(differences)]
    if len(defined) == 0:
        return float("nan")
    smaller = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return min(1.0, 2 * (1 + smaller) / (1 + len(defined)))
