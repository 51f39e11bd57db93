"""The linear discriminant in closed form: means of the labelled images, covariance of all images, labelled or not.

A category's direction is (covariance + strength)^-1 (mean of positives - mean of negatives). In principal coordinates
the covariance is diagonal, so that one decomposition serves all categories, folds and strengths, and sums over the rows
are all that has to be known of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from cftjax.cft.large import Made
from cftjax.cft.pool import LEARNING, Pool
from cftjax.cft.spaces import ROWS_AT_ONCE
from cftjax.data.sparse import SparseLabels

POSITIVE, NEGATIVE, UNKNOWN = range(3)


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the rows of each part: the learning images first, then the folds.

    Attributes:
        counts: [f 3 c] known positives, known negatives, unknown.
        totals: [f 3 c r] sums of their coordinates.
    """

    counts: Float[np.ndarray, "f 3 c"]
    totals: Float[np.ndarray, "f 3 c r"]


def sums(pool: Pool) -> Sums:
    """Read all rows once, in blocks."""
    of_rows = _of_few if isinstance(pool.base, Made) else _of_rows
    c, r = pool.num_categories, pool.z.shape[-1]
    counts, totals = np.zeros((pool.num_lanes, 3, c)), np.zeros((pool.num_lanes, 3, c, r))
    for part in range(pool.num_lanes):
        rows = np.flatnonzero(pool.fold == part - 1)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            z = np.asarray(pool.z[some], np.float32)
            for kind, (count, total) in enumerate(of_rows(pool.given.take(some), z)):
                counts[part, kind] += count
                totals[part, kind] += total
    return Sums(counts, totals)


def _of_rows(given: SparseLabels, z: Float[np.ndarray, "n *c r"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Number [c] and sum [c r] of known positives, known negatives, and unknown, by products with all categories."""
    block = given[:]
    for members in (block.labels, ~block.labels & block.known, block.unknown):
        weights = members.astype(np.float32)
        yield members.sum(0), weights.T @ z if z.ndim == 2 else np.einsum("nc,ncr->cr", weights, z)


def _of_few(given: SparseLabels, z: Float[np.ndarray, "n r"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same from the entries alone: what is unknown is everything less what is not."""
    counts, total = given.counts(), z.sum(0, dtype=np.float64)[None]
    rest = len(z) - np.sum(counts, axis=0)
    for value, count in ((1, counts.positive), (0, counts.negative), (-1, counts.uncertain)):
        weights = (given.values == value).astype(np.float32)
        own = csr_array((weights, given.categories, given.starts), shape=given.shape).T @ z
        total = total - own
        if value >= 0:
            yield count, own
    yield rest, total


def difference(pool: Pool, given: Sums, unknown_weight: float, judging_weight: float) -> Float[np.ndarray, "l c r"]:
    """What every lane's means of positives and negatives differ by; 0 where one of them has no rows.

    Args:
        pool: the images.
        given: their sums.
        unknown_weight: what an unknown label weighs as a negative.
        judging_weight: what the judging images weigh against the learning ones.
    """
    means = []
    for lane in range(pool.num_lanes):
        parts = [part for part in range(pool.num_lanes) if _learned(pool, part, lane)]
        weights = np.array([1.0 if part - 1 == LEARNING else judging_weight for part in parts])
        counts = np.tensordot(weights, given.counts[parts], 1)
        totals = np.tensordot(weights, given.totals[parts], 1)
        negative = counts[NEGATIVE] + unknown_weight * counts[UNKNOWN]
        negatives = totals[NEGATIVE] + unknown_weight * totals[UNKNOWN]
        positive = counts[POSITIVE]
        both = (positive > 0) & (negative > 0)
        mean = (
            totals[POSITIVE] / np.maximum(positive, 1e-30)[:, None] - negatives / np.maximum(negative, 1e-30)[:, None]
        )
        means.append(np.where(both[:, None], mean, 0.0))
    return np.stack(means).astype(np.float32)


def _learned(pool: Pool, part: int, lane: int) -> bool:
    """Whether a lane learns from a part: the learning images, or the fold before its number."""
    if part - 1 == LEARNING:
        return True
    return part - 1 != lane if lane < pool.num_folds else pool.refit


def directions(
    pool: Pool, means: Float[np.ndarray, "l c r"], strengths: Sequence[float]
) -> Float[np.ndarray, "g l c r"]:
    """Genes for every strength, in multiples of the mean variance of a dimension of the embeddings.

    Args:
        pool: the images; all variances of standardised embeddings add up to one in its space.
        means: of `difference`.
        strengths: what is added to every variance.
    """
    mean_variance = 1 / pool.space.num_dimensions
    scaled = [means / (pool.variance + strength * mean_variance) for strength in strengths]
    return np.stack(scaled).astype(np.float32)
