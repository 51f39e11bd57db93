"""Coordinates in which search and polish step away from a head, and the splits seen in them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import special

from cftjax.cft import large
from cftjax.cft.large import ROWS_AT_ONCE, Made, Stacked
from cftjax.data import sparse
from cftjax.data.sparse import SparseLabels
from cftjax.runtime import memory
from cftjax.types import Array, Embeddings, Heads, Matrix, together


@dataclasses.dataclass(frozen=True)
class Space:
    """Coordinates for a step away from a head: `kernel = start + directions @ genes`.

    White directions (`principal_space`) are scaled so that one unit of a gene moves the scores of typical rows by about
    one. Without directions the genes are the step itself.

    Attributes:
        directions: [d r], or [c d r] for embeddings per category, or None.
        mean: [d] or [c d]; scores are centred on it so that a gene does not move all scores together.
    """

    directions: np.ndarray | None = None
    mean: np.ndarray | None = None

    @property
    def num_dimensions(self) -> int:
        """d, of the embeddings, where there are directions."""
        return 1 if self.directions is None else self.directions.shape[-2]

    def step(self, genes: Float[np.ndarray, " r"], category: int) -> tuple[Float[np.ndarray, " d"], float]:
        """What genes [r] add to a category's kernel [d] and bias."""
        if self.directions is None or self.mean is None:
            return genes, 0.0
        one_for_all = self.directions.ndim == 2
        kernel = (self.directions if one_for_all else self.directions[category]) @ genes
        return kernel, -float((self.mean if one_for_all else self.mean[category]) @ kernel)


@dataclasses.dataclass(frozen=True)
class Seen:
    """A split in the coordinates of a space: all its rows, and the scores that genes are added to.

    Attributes:
        z: [n r], or [n c r] for embeddings per category; made when they are read, where they are many (`large`).
        base: [n c] logits of the heads it starts from; made likewise.
        labels: [n c] bool.
        known: [n c] bool.
        groups: [n] or None, as in `Embeddings`.
        part: [n] which fold an image is of; None for halves.
    """

    z: Array | Made
    base: Float[np.ndarray | Made, "n c"]
    labels: Bool[Matrix, "n c"]
    known: Bool[Matrix, "n c"]
    groups: np.ndarray | None = None
    part: np.ndarray | None = None

    @functools.cached_property
    def given(self) -> SparseLabels:
        """Labels and known."""
        return sparse.of(together(self.labels, self.known, None))


def see(split: Embeddings, heads: Heads, space: Space) -> Seen:
    """A split in the coordinates of a space, which are projected in blocks, or when they are read."""
    given, embeddings = sparse.of(split.given), Stacked([split.z])
    z = split.z if space.directions is None else project(embeddings, space)
    return Seen(z, large.logits(embeddings, heads), given.labels, given.known, split.groups)


def project(embeddings: Stacked, space: Space) -> Array | Made:
    """Coordinates of embeddings in a space that has directions."""
    assert space.directions is not None
    assert space.mean is not None
    return large.coordinates(embeddings, space.directions, space.mean)


def blocks(z: Num[Array, "n ..."]) -> Iterator[tuple[slice, Float[np.ndarray, "m ..."]]]:
    """Places and rows of embeddings, a block at a time; of a memory map no block stays in memory behind the next."""
    for start in range(0, len(z), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield rows, np.asarray(z[rows], np.float32)
        memory.release(z)


def _moments(z: Num[Array, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance, read in blocks."""
    n, d = z.shape
    mean, covariance = np.zeros(d), np.zeros((d, d), np.float32)
    for _, block in blocks(z):
        mean += block.sum(0, dtype=np.float64) / n
    for _, block in blocks(z):
        centred = block - mean.astype(np.float32)
        covariance += centred.T @ centred / n
    return mean.astype(np.float32), covariance


class Directions(NamedTuple):
    """Leading principal directions of standardised embeddings.

    Attributes:
        mean: [d].
        inverse: [d] one over each dimension's standard deviation, 0 where it never varies.
        variance: [r] of the coordinates, falling.
        vectors: [d r] orthonormal, for standardised embeddings.
    """

    mean: Float[np.ndarray, " d"]
    inverse: Float[np.ndarray, " d"]
    variance: Float[np.ndarray, " r"]
    vectors: Float[np.ndarray, "d r"]


def _directions(z: Num[Array, "n d"], num: int) -> Directions:
    """At most `num`, without those that are rounding."""
    mean, covariance = _moments(z)
    scale = np.sqrt(np.diag(covariance))
    # A dimension that never varies says nothing.
    inverse = np.where(scale > 1e-6 * scale.max(), 1 / np.maximum(scale, 1e-30), 0.0).astype(np.float32)
    values, vectors = np.linalg.eigh(covariance * inverse[:, None] * inverse)
    order = np.argsort(values)[::-1][:num]
    order = order[values[order] > values[order[0]] * 1e-6]
    # The sign of an eigenvector is arbitrary; fixing it keeps results the same across linear-algebra libraries.
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(0), order])
    return Directions(mean, inverse, values[order], vectors)


Leading = list[Directions]


def leading_directions(z: Num[Array, ...], num: int) -> Leading:
    """Of embeddings shared by the categories, one; or of each category's own.

    They cost two readings of the embeddings: whoever asks several times for those of the same ones keeps them.
    """
    each = [z] if z.ndim == 2 else [z[:, c] for c in range(z.shape[1])]
    return [_directions(embeddings, num) for embeddings in each]


def principal_space(train: Embeddings, num: int | None, *, white: bool, leading: Leading | None = None) -> Space:
    """The `num` leading principal directions of the standardised training embeddings, all rows, known or not.

    Fewer genes make a smaller product and overfit less: directions in which the embeddings hardly vary are left alone.

    Args:
        train: the embeddings.
        num: r at most; None for all.
        white: whether every coordinate varies by one, as a search that knows no scale wants it; or as much as it does
            in the standardised embeddings, all of them together by one, as a ridge penalty wants it.
        leading: at least as many directions of the same embeddings, where they have been found already.
    """
    wanted: int = train.z.shape[-1] if num is None else num
    leading = leading_directions(train.z, wanted) if leading is None else leading
    rank = min([wanted, *(len(own.variance) for own in leading)])
    directions = [
        own.vectors[:, :rank]
        * own.inverse[:, None]
        / (np.sqrt(own.variance[:rank]) if white else np.sqrt(np.float32(len(own.inverse))))
        for own in leading
    ]
    if train.z.ndim == 2:
        return Space(directions[0], leading[0].mean)
    return Space(np.stack(directions), np.stack([own.mean for own in leading]))


def as_genes(heads: Sequence[Heads], space: Space, unit: Float[np.ndarray, " c"]) -> Float[np.ndarray, "c s r"]:
    """Heads as genes: kernel and bias themselves, or the nearest step away from the first head in a space."""
    kernels = np.stack([np.asarray(h.kernel, np.float32) for h in heads], axis=1)
    if space.directions is None:
        biases = np.stack([np.asarray(h.bias, np.float32) for h in heads], axis=1)
        return np.concatenate([kernels, biases[:, :, None]], axis=2)
    steps = kernels - kernels[:, :1]
    inverse = np.linalg.pinv(space.directions)
    genes = np.einsum("rd,csd->csr" if inverse.ndim == 2 else "crd,csd->csr", inverse, steps)
    return (genes / unit[:, None, None]).astype(np.float32)


def spread(seen: Seen) -> Float[np.ndarray, " c"]:
    """[c] standard deviation of each head's scores over its known rows, a gene's unit; 1 where they do not vary."""
    deviations = np.ones(seen.labels.shape[1], np.float32)
    for c in range(len(deviations)):
        rows, values = seen.given.of_category(c)
        scores = seen.base[rows[values >= 0], c]
        if len(scores) and (deviation := float(scores.std())) > 1e-6:
            deviations[c] = deviation
    return deviations


def gradient_step(seen: Seen, category: int) -> Float[np.ndarray, " r"]:
    """One step of gradient descent on the binary cross-entropy of a category's known labels, as long as is safe.

    The length is four over the largest eigenvalue of the rows' second moment, which bounds the Hessian; found by power
    iteration. Zero where nothing is known.
    """
    rows = np.flatnonzero(seen.known[:, category])
    z = np.asarray(seen.z[rows] if seen.z.ndim == 2 else seen.z[rows, category], np.float32)
    residual = special.expit(seen.base[rows, category]) - np.asarray(seen.labels[rows, category], np.float32)
    gradient = z.T @ residual / max(len(rows), 1)
    direction, largest = gradient, 0.0
    for _ in range(20):
        length = float(np.linalg.norm(direction))
        if length < 1e-20:
            return np.zeros_like(gradient)
        direction = z.T @ (z @ (direction / length)) / len(rows)
        largest = float(np.linalg.norm(direction))
    return (-4 / largest * gradient).astype(np.float32)
