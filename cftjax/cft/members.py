"""Linear heads with an answer for every judging image from labels without its fold, and how to take their mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from cftjax.cft import rules
from cftjax.cft.large import Made
from cftjax.cft.pool import Pool
from cftjax.cft.spaces import ROWS_AT_ONCE
from cftjax.config import Metric
from cftjax.types import Heads, Labels

# Logits of one block of categories that are scored together, in bytes.
LOGITS_BYTES = 128 * 2**20
# Categories that are scored together where each brings its known images alone.
CATEGORIES_AT_ONCE = 128


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
    if isinstance(pool.base, Made):
        return _spread_of_made(pool, pool.base)
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


def _spread_of_made(pool: Pool, base: Made) -> Spread:
    """The same from the moments of the embeddings: it takes no product for every image and category."""
    n, d = base.embeddings.shape
    mean = sum(block.sum(0, dtype=np.float64) for _, block in base.embeddings.blocks()) / n
    own, mixed = np.zeros((d, d)), np.zeros((d, pool.z.shape[-1]))
    for rows, block in base.embeddings.blocks():
        centred = block - np.asarray(mean, np.float32)
        own += centred.T @ centred / n
        mixed += centred.T @ np.asarray(pool.z[rows], np.float32) / n
    kernel = base.factor.astype(np.float64)
    variance = np.einsum("dc,dc->c", kernel, own @ kernel)
    parts = variance, kernel.T @ mixed, (mean - base.centre) @ kernel + base.shift
    return Spread(*(x.astype(np.float32) for x in parts))


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
    part = pool if pool.shared else dataclasses.replace(pool, z=pool.z[:, some])
    fold = pool.fold[pool.judging]
    logits = np.empty((len(fold), columns.start.shape[1]), np.float32)
    came = pool.base[pool.judging, some] if columns.start.any() else None
    for lane in range(pool.num_folds):
        rows = np.flatnonzero(fold == lane)
        logits[rows] = part.products(rows, columns.genes[lane])
        if came is not None:
            logits[rows] += columns.start[lane] * (came[rows] - base.mean[some])
    return logits


def scores(members: Sequence[Member], pool: Pool, base: Spread, metric: Metric) -> Float[np.ndarray, "m c"]:
    """AP or AUROC of every member's out-of-fold logits on the known judging labels; NaN where undefined."""
    read = _known_alone if isinstance(pool.base, Made) else _whole
    return np.concatenate([rules.score(metric, *block) for block in read(members, pool, base)], axis=1)


# Logits [m v g] of some categories, their labels [v g] and where these are known.
Block = tuple[Float[np.ndarray, "m v g"], Bool[np.ndarray, "v g"], Bool[np.ndarray, "v g"]]


def _whole(members: Sequence[Member], pool: Pool, base: Spread) -> Iterator[Block]:
    """Of all judging images, by products with all categories."""
    for some in blocks_of(pool.judged, len(members)):
        logits = np.stack([out_of_fold(member, pool, base, some) for member in members])
        yield logits, pool.judged.labels[:, some], pool.judged.known[:, some]


def _known_alone(members: Sequence[Member], pool: Pool, base: Spread) -> Iterator[Block]:
    """Of each category's known judging images, one after the other and padded; the same scores."""
    c, fold = pool.num_categories, pool.fold[pool.judging]
    for some in (range(start, min(start + CATEGORIES_AT_ONCE, c)) for start in range(0, c, CATEGORIES_AT_ONCE)):
        each = [pool.judged.of_category(category) for category in some]
        # A power of two, so that few programs are compiled.
        length = 1 << (max(len(rows) for rows, _ in each) - 1).bit_length()
        logits = np.zeros((len(members), length, len(each)), np.float32)
        labels, known = np.zeros((2, length, len(each)), bool)
        for place, (category, (rows, values)) in enumerate(zip(some, each, strict=True)):
            k = len(rows)
            genes = np.concatenate([member.genes[: pool.num_folds, category] for member in members])
            own = (pool.judging_z[rows] @ genes.T).reshape(k, len(members), pool.num_folds)[np.arange(k), :, fold[rows]]
            start = np.stack([member.start[:, category] for member in members])
            if start.any():
                came = pool.base[rows + pool.judging.start, category] - base.mean[category]
                own = own + came[:, None] * start[:, fold[rows]].T
            logits[:, :k, place] = own.T
            labels[:k, place], known[:k, place] = values == 1, values >= 0
        yield logits, labels, known


def blocks_of(judged: Labels, num: int) -> Iterator[slice]:
    """Categories, some at a time, so that their logits by `num` heads stay within `LOGITS_BYTES`."""
    n, c = judged.shape
    size = max(1, LOGITS_BYTES // (4 * num * max(n, 1)))
    return (slice(start, min(start + size, c)) for start in range(0, c, size))


def heads(member: Member, pool: Pool, came: Heads, tuned: Bool[np.ndarray, " c"]) -> Heads:
    """The last lane as kernels of the embeddings; what is not tuned stays as it came."""
    kernel, bias = np.array(came.kernel, np.float32), np.array(came.bias, np.float32)
    for c in np.flatnonzero(tuned):
        step, shift = pool.space.step(member.genes[-1, c], int(c))
        kernel[c] = member.start[-1, c] * kernel[c] + step
        bias[c] = member.start[-1, c] * bias[c] + shift
    return Heads(kernel, bias)
