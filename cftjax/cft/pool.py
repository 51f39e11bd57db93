"""All labelled images in one space: those that are learned from alone, and the folds of those that judge as well."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from cftjax.cft import folds, spaces
from cftjax.cft.spaces import Leading, Seen, Space
from cftjax.types import Array, Embeddings, Heads

LEARNING = -1


@dataclasses.dataclass(frozen=True)
class Pool:
    """Learning images, then judging images.

    Lane k of F + 1 learns from the learning images and all folds but the k-th; the last lane from everything.

    Attributes:
        z: [n r] coordinates, without correlation over all images and centred; or [n c r].
        base: [n c] logits of the heads that came.
        labels: [n c] bool, read where known.
        known: [n c] bool.
        unknown: [n c] bool, what nobody said anything of; uncertain labels are neither known nor unknown.
        fold: [n] of the judging images; LEARNING of the others.
        num_folds: F.
        refit: whether the last lane learns from judging images; else it is as the first.
        variance: [r] or [c r] of the coordinates over all images.
        space: the coordinates.
        groups: [v] of the judging images, or None.
    """

    z: Array
    base: Float[np.ndarray, "n c"]
    labels: Bool[np.ndarray, "n c"]
    known: Bool[np.ndarray, "n c"]
    unknown: Bool[np.ndarray, "n c"]
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
    def judging(self) -> slice:
        """Rows of the judging images."""
        return slice(int((self.fold == LEARNING).sum()), None)

    @property
    def num_lanes(self) -> int:
        """F + 1."""
        return self.num_folds + 1

    def learns(self, lane: int) -> Bool[np.ndarray, " n"]:
        """The rows that a lane learns from."""
        if lane < self.num_folds:
            return self.fold != lane
        return np.ones(len(self.fold), bool) if self.refit else self.fold == LEARNING

    def of_category(self, category: int) -> Array:
        """[n r] coordinates."""
        return self.z if self.shared else self.z[:, category]

    def variance_of(self, category: int) -> Float[np.ndarray, " r"]:
        """Of the coordinates of a category."""
        return self.variance if self.shared else self.variance[category]

    def products(self, rows: slice | np.ndarray, genes: Float[np.ndarray, "c r"]) -> Float[np.ndarray, "m c"]:
        """Coordinates of some rows times the genes of each category."""
        z = np.asarray(self.z[rows], np.float32)
        return z @ genes.T if self.shared else np.einsum("ncr,cr->nc", z, genes)

    def untunable(self) -> dict[int, str]:
        """Categories that nothing can be learned of: no known positive, or no known negative."""
        known = self.known[self.learns(self.num_folds)]
        positive = (self.labels[self.learns(self.num_folds)] & known).sum(0)
        reasons = {}
        for kind, counts in (("positive", positive), ("negative", known.sum(0) - positive)):
            for category in np.flatnonzero(counts == 0):
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
    z = None
    if space.directions is not None:
        # Both splits in one array: to join two would take as much again.
        z = np.empty((sum(map(len, splits)), *train.z.shape[1:-1], space.directions.shape[-1]), np.float32)
    ends = np.cumsum([0, *map(len, splits)])
    seen = [
        spaces.see(split, heads, space, None if z is None else z[start:end])
        for split, start, end in zip(splits, ends, ends[1:], strict=False)
    ]
    judging = seen[-1]
    if refit:
        fold = folds.of_images(judging.labels, judging.known, judging.groups, num_folds, seed)
    else:
        fold, num_folds = np.zeros(len(judging.labels), int), 1
    if validation is not None:
        fold = np.concatenate([np.full(len(seen[0].labels), LEARNING), fold])
    base, labels, known = (_stacked(seen, name) for name in ("base", "labels", "known"))
    z = _stacked(seen, "z") if z is None else z
    hedged = [np.zeros(split.labels.shape, bool) if split.uncertain is None else split.uncertain for split in splits]
    unknown = ~known & ~np.concatenate([np.asarray(uncertain, bool) for uncertain in hedged])
    return Pool(z, base, labels & known, known, unknown, fold, num_folds, refit, _variance(z), space, judging.groups)


def _stacked(seen: list[Seen], name: str) -> np.ndarray:
    parts = [np.asarray(getattr(split, name)) for split in seen]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _variance(z: np.ndarray) -> np.ndarray:
    """Of every coordinate, read in blocks; the mean is next to nothing, for the space is centred."""
    total = np.zeros(z.shape[1:], np.float64)
    for start in range(0, len(z), spaces.ROWS_AT_ONCE):
        block = np.asarray(z[start : start + spaces.ROWS_AT_ONCE], np.float32)
        total += np.square(block).sum(0, dtype=np.float64)
    return (total / len(z)).astype(np.float32)
