"""All labelled images in one space: those that are learned from alone, and the folds of those that judge as well."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from cftjax.cft import folds, large, spaces
from cftjax.cft.large import Made, Stacked
from cftjax.cft.spaces import Leading, Space
from cftjax.data import sparse
from cftjax.data.sparse import SparseLabels
from cftjax.types import Array, Embeddings, Heads

LEARNING = -1


@dataclasses.dataclass(frozen=True)
class Pool:
    """Learning images, then judging images.

    Lane k of F + 1 learns from the learning images and all folds but the k-th; the last lane from everything.

    Attributes:
        z: [n r] coordinates, without correlation over all images and centred; or [n c r]. Made when they are read,
            where they are many (`large`).
        base: [n c] logits of the heads that came; made likewise.
        given: [n c] labels; uncertain ones are neither known nor unknown.
        judged: [v c] those of the judging images.
        fold: [n] of the judging images; LEARNING of the others.
        num_folds: F.
        refit: whether the last lane learns from judging images; else it is as the first.
        variance: [r] or [c r] of the coordinates over all images.
        space: the coordinates.
        groups: [v] of the judging images, or None.
    """

    z: Array | Made
    base: Float[np.ndarray | Made, "n c"]
    given: SparseLabels
    judged: SparseLabels
    fold: Int[np.ndarray, " n"]
    num_folds: int
    refit: bool
    variance: Float[np.ndarray, "*c r"]
    space: Space
    groups: np.ndarray | None

    @property
    def shared(self) -> bool:
        """Whether all categories have the same embeddings."""
        return self.z.ndim == 2

    @property
    def num_categories(self) -> int:
        """The number of categories."""
        return self.given.shape[1]

    @property
    def judging(self) -> slice:
        """Rows of the judging images."""
        return slice(int((self.fold == LEARNING).sum()), None)

    @property
    def num_lanes(self) -> int:
        """F + 1."""
        return self.num_folds + 1

    def learns(self, lane: int, rows: slice | np.ndarray = slice(None)) -> Bool[np.ndarray, " k"]:
        """Whether a lane learns from rows."""
        fold = self.fold[rows]
        if lane < self.num_folds:
            return fold != lane
        return np.ones(len(fold), bool) if self.refit else fold == LEARNING

    def of_category(self, category: int) -> Array | Made:
        """[n r] coordinates."""
        return self.z if self.shared else self.z[:, category]

    def variance_of(self, category: int) -> Float[np.ndarray, " r"]:
        """Of the coordinates of a category."""
        return self.variance if self.shared else self.variance[category]

    @functools.cached_property
    def judging_z(self) -> Float[np.ndarray, "v *c r"]:
        """Coordinates of the judging images, which are read again and again."""
        return np.asarray(self.z[self.judging], np.float32)

    def products(self, judging: np.ndarray, genes: Float[np.ndarray, "c r"]) -> Float[np.ndarray, "m c"]:
        """Coordinates of some judging images times the genes of each category."""
        z = self.judging_z[judging]
        return z @ genes.T if self.shared else np.einsum("ncr,cr->nc", z, genes)

    def untunable(self) -> dict[int, str]:
        """Categories that nothing can be learned of: no known positive, or no known negative."""
        counts = self.given.take(np.flatnonzero(self.learns(self.num_folds))).counts()
        reasons = {}
        for kind, count in (("positive", counts.positive), ("negative", counts.negative)):
            for category in np.flatnonzero(count == 0):
                reasons.setdefault(int(category), f"no known {kind}")
        return dict(sorted(reasons.items()))


def gather(
    train: Embeddings,
    validation: Embeddings | None,
    heads: Heads,
    *,
    dimensions: int | None,
    num_folds: int,
    refit: bool,
    seed: int,
    leading: Leading | None = None,
) -> Pool:
    """Project both splits into the principal space of all images, labelled or not, and deal the folds.

    Args:
        train: embeddings with labels and known.
        validation: the same for the split that judges; None lets the training images judge, all of them in folds.
        heads: that came with the backbone.
        dimensions: r at most; None for all.
        num_folds: F.
        refit: whether judging labels may be learned from; False makes one fold of them, which nothing learns from.
        seed: of the folds.
        leading: principal directions of the training embeddings, where they have been found already.
    """
    space = spaces.principal_space(train, dimensions, white=False, leading=leading)
    splits = [train] if validation is None else [train, validation]
    given = [sparse.of(split.given) for split in splits]
    if refit:
        fold = folds.of_images(given[-1], splits[-1].groups, num_folds, seed)
    else:
        fold, num_folds = np.zeros(len(splits[-1]), int), 1
    if validation is not None:
        fold = np.concatenate([np.full(len(train), LEARNING), fold])
    embeddings = Stacked([split.z for split in splits])
    z, base = spaces.project(embeddings, space), large.logits(embeddings, heads)
    whole = given[0] if len(given) == 1 else sparse.joined(given)
    return Pool(z, base, whole, given[-1], fold, num_folds, refit, _variance(z), space, splits[-1].groups)


def _variance(z: Array | Made) -> np.ndarray:
    """Of every coordinate, read in blocks; the mean is next to nothing, for the space is centred."""
    total = np.zeros(z.shape[1:], np.float64)
    for start in range(0, len(z), spaces.ROWS_AT_ONCE):
        block = np.asarray(z[start : start + spaces.ROWS_AT_ONCE], np.float32)
        total += np.square(block).sum(0, dtype=np.float64)
    return (total / len(z)).astype(np.float32)
