"""Linear heads with an answer for every judging image from labels without its fold, and how to take their mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from cftjax.cft import rules
from cftjax.cft.pool import Pool
from cftjax.cft.spaces import ROWS_AT_ONCE
from cftjax.config import Metric
from cftjax.types import Heads

# Logits of one block of categories that are scored together, in bytes.
LOGITS_BYTES = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Member:
    """A head of each category, once for every lane of a pool.

    Attributes:
        name: what tables call it.
        start: [l c] factor of the head that came.
        genes: [l c r] what is added to it, in coordinates.
    """

    name: str
    start: Float[np.ndarray, "l c"]
    genes: Float[np.ndarray, "l c r"]

    def columns(self, some: slice) -> Member:
        """Some categories."""
        return Member(self.name, self.start[:, some], self.genes[:, some])


@dataclasses.dataclass(frozen=True)
class Spread:
    """How the logits of the head that came vary over all images, alone and with the coordinates.

    Attributes:
        variance: [c].
        covariance: [c r].
        mean: [c].
    """

    variance: Float[np.ndarray, " c"]
    covariance: Float[np.ndarray, "c r"]
    mean: Float[np.ndarray, " c"]


def spread(pool: Pool) -> Spread:
    """Read all rows, in blocks."""
    n, c = pool.base.shape
    mean = pool.base.mean(axis=0, dtype=np.float64)
    variance, covariance = np.zeros(c), np.zeros((c, pool.z.shape[-1]))
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        centred = (pool.base[rows] - mean).astype(np.float32)
        z = np.asarray(pool.z[rows], np.float32)
        variance += np.square(centred).sum(0, dtype=np.float64) / n
        covariance += (centred.T @ z if pool.shared else np.einsum("nc,ncr->cr", centred, z)) / n
    return Spread(*(x.astype(np.float32) for x in (variance, covariance, mean)))


def standardised(member: Member, pool: Pool, base: Spread) -> Member:
    """The same rankings with logits that vary by one over all images; one that tells no images apart becomes 0."""
    squares = np.square(member.genes)
    own = squares @ pool.variance if pool.shared else np.einsum("lcr,cr->lc", squares, pool.variance)
    shared = np.einsum("lcr,cr->lc", member.genes, base.covariance)
    variance = member.start**2 * base.variance + 2 * member.start * shared + own
    inverse = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0).astype(np.float32)
    return Member(member.name, member.start * inverse, member.genes * inverse[:, :, None])


def mean(name: str, members: Sequence[Member], weights: Float[np.ndarray, " m"]) -> Member:
    """The weighted mean of standardised members: one linear head as well."""
    start = np.tensordot(weights, np.stack([member.start for member in members]), 1)
    genes = np.tensordot(weights, np.stack([member.genes for member in members]), 1)
    return Member(name, start.astype(np.float32), genes.astype(np.float32))


def out_of_fold(member: Member, pool: Pool, base: Spread, some: slice = slice(None)) -> Float[np.ndarray, "v c"]:
    """What each judging image gets from the lane that has not learned from it; zero on average over all images."""
    columns = member.columns(some)
    labels = pool.base[pool.judging][:, some]
    logits = np.empty(labels.shape, np.float32)
    part = pool if pool.shared else dataclasses.replace(pool, z=pool.z[:, some])
    fold = pool.fold[pool.judging]
    for lane in range(pool.num_folds):
        rows = np.flatnonzero(fold == lane)
        shift = columns.start[lane] * (labels[rows] - base.mean[some])
        logits[rows] = shift + part.products(rows + pool.judging.start, columns.genes[lane])
    return logits


def scores(members: Sequence[Member], pool: Pool, base: Spread, metric: Metric) -> Float[np.ndarray, "m c"]:
    """AP or AUROC of every member's out-of-fold logits on the known judging labels; NaN where undefined."""
    rows, c = pool.judging, pool.labels.shape[1]
    size = max(1, LOGITS_BYTES // (4 * len(members) * max(len(pool.fold) - rows.start, 1)))
    found = []
    for some in (slice(start, start + size) for start in range(0, c, size)):
        logits = np.stack([out_of_fold(member, pool, base, some) for member in members])
        found.append(rules.score(metric, logits, pool.labels[rows, some], pool.known[rows, some]))
    return np.concatenate(found, axis=1)


def heads(member: Member, pool: Pool, came: Heads, tuned: Bool[np.ndarray, " c"]) -> Heads:
    """The last lane as kernels of the embeddings; what is not tuned stays as it came."""
    kernel, bias = np.array(came.kernel, np.float32), np.array(came.bias, np.float32)
    for c in np.flatnonzero(tuned):
        step, shift = pool.space.step(member.genes[-1, c], int(c))
        kernel[c] = member.start[-1, c] * kernel[c] + step
        bias[c] = member.start[-1, c] * bias[c] + shift
    return Heads(kernel, bias)
