"""What the search and the polish see of the embeddings: per category its known rows, packed, in chosen coordinates."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float, Num
from scipy import special

from cftjax.cft import ranking
from cftjax.config import Metric
from cftjax.types import Array, Embeddings, Heads

ROWS_AT_ONCE = 16384
# With more positives than this, or than one row in sixteen, sorting is faster than counting (benchmarks/ranking.py).
COUNTED_POSITIVES = 128


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["z", "base", "labels", "where"], meta_fields=["slots"]
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """The known rows of a group of categories, positives first, padded to one length.

    A head's score of a row is `base + z @ genes`.

    Attributes:
        z: [g k r].
        base: [g k], the score that the genes are added to.
        labels: [g k] bool.
        where: [g k] bool, false for padding.
        slots: all positives stand among the first so many rows; 0 where they are too many to count by.
    """

    z: Num[Array, "*g k r"]
    base: Float[Array, "*g k"]
    labels: Bool[Array, "*g k"]
    where: Bool[Array, "*g k"]
    slots: int


def ranking_scores(metric: Metric, rows: Rows, scores: Float[jax.Array, "g p k"]) -> Float[jax.Array, "g p"]:
    """AP or AUROC of p rankings of the rows of each category."""
    way = functools.partial(ranking.by_counting, slots=rows.slots) if rows.slots else ranking.by_sorting
    of_one = functools.partial(way, metric)

    def one_by_one(*each: jax.Array) -> jax.Array:
        """So that each category's loops end with its own rows."""
        if len(scores) == 1:
            return of_one(*(x[0] for x in each))[None]
        return jax.lax.map(lambda one: of_one(*one), each)

    arguments = scores, jnp.asarray(rows.labels), jnp.asarray(rows.where)
    return jax.lax.platform_dependent(*arguments, cpu=one_by_one, default=jax.vmap(of_one))


@dataclasses.dataclass(frozen=True)
class Space:
    """Coordinates for a step away from a head: `kernel = start + directions @ genes`.

    The directions are whitened on the training embeddings, so that one unit of a gene moves the scores of typical
    rows by about one. Without directions the genes are the step itself.

    Attributes:
        directions: [d r], or [c d r] for embeddings per category, or None.
        mean: [d] or [c d]; scores are centred on it so that a gene does not move all scores together.
    """

    directions: np.ndarray | None = None
    mean: np.ndarray | None = None

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
        z: [n r], or [n c r] for embeddings per category.
        base: [n c] logits of the heads it starts from.
        labels: [n c] bool.
        known: [n c] bool.
    """

    z: Array
    base: Float[np.ndarray, "n c"]
    labels: Bool[Array, "n c"]
    known: Bool[Array, "n c"]


def see(split: Embeddings, heads: Heads, space: Space) -> Seen:
    """Project a split once, in blocks, so that memory stays bounded by the coordinates and not by the embeddings."""
    kernel, bias = np.asarray(heads.kernel, np.float32), np.asarray(heads.bias, np.float32)
    labels, known = np.asarray(split.labels, bool), np.asarray(split.known, bool)
    n, c = labels.shape
    base = np.empty((n, c), np.float32)
    shared = split.z.ndim == 2
    mean, directions = space.mean, space.directions
    z = split.z if directions is None else np.empty((*split.z.shape[:-1], directions.shape[-1]), np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block = np.asarray(split.z[rows], np.float32)
        base[rows] = (block @ kernel.T if shared else np.einsum("ncd,cd->nc", block, kernel)) + bias
        if directions is not None and mean is not None:
            centred = block - mean
            z[rows] = centred @ directions if shared else np.einsum("ncd,cdr->ncr", centred, directions)
    return Seen(z, base, labels, known)


def _moments(z: Num[Array, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance, read in blocks."""
    n, d = z.shape
    mean, covariance = np.zeros(d), np.zeros((d, d), np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        mean += np.asarray(z[start : start + ROWS_AT_ONCE], np.float32).sum(0, dtype=np.float64) / n
    for start in range(0, n, ROWS_AT_ONCE):
        block = np.asarray(z[start : start + ROWS_AT_ONCE], np.float32) - mean.astype(np.float32)
        covariance += block.T @ block / n
    return mean.astype(np.float32), covariance


def _leading(matrix: Float[np.ndarray, "d d"], num: int) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, "d r"]]:
    """The largest eigenvalues of a covariance and their vectors, at most `num`, without those that are rounding."""
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    order = np.argsort(values)[::-1][:num]
    order = order[values[order] > values[order[0]] * 1e-7]
    # The sign of an eigenvector is arbitrary; fixing it keeps results the same across linear-algebra libraries.
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(0), order])
    return values[order], vectors


def _directions(z: Num[Array, "n d"], num: int, white: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and directions [d r] of one set of embeddings."""
    mean, covariance = _moments(z)
    if white:
        values, vectors = _leading(covariance, num)
        return mean, (vectors / np.sqrt(values)).astype(np.float32)
    # A dimension that never varies says nothing.
    scale = np.sqrt(np.diag(covariance))
    inverse = np.where(scale > 1e-6 * scale.max(), 1 / np.maximum(scale, 1e-30), 0.0)
    _, vectors = _leading(covariance * inverse[:, None] * inverse, num)
    return mean, (vectors * inverse[:, None] / np.sqrt(len(inverse))).astype(np.float32)


def principal_space(train: Embeddings, num: int | None, *, white: bool) -> Space:
    """The `num` leading principal directions of the training embeddings, all rows, known or not.

    Fewer genes make a smaller product and overfit less: directions in which the embeddings hardly vary are left alone.

    Args:
        train: the embeddings.
        num: r at most; None for all.
        white: whether every coordinate varies alike, as a search that knows no scale wants it; or as much as it does in
            embeddings whose dimensions were standardised, together by one, as a ridge penalty wants it.
    """
    z = train.z
    most = z.shape[-1] if num is None else num
    if z.ndim == 2:
        mean, directions = _directions(z, most, white)
        return Space(directions, mean)
    per_category = [_directions(z[:, c], most, white) for c in range(z.shape[1])]
    rank = min(directions.shape[1] for _, directions in per_category)
    return Space(np.stack([v[:, :rank] for _, v in per_category]), np.stack([m for m, _ in per_category]))


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


def untunable(train: Embeddings, validation: Embeddings) -> dict[int, str]:
    """Categories that no search can judge: either split lacks a known positive or a known negative."""
    reasons = {}
    for name, split in (("train", train), ("validation", validation)):
        labels, known = np.asarray(split.labels, bool), np.asarray(split.known, bool)
        for kind, count in (("positive", (labels & known).sum(0)), ("negative", (~labels & known).sum(0))):
            for c in np.flatnonzero(count == 0):
                reasons.setdefault(int(c), f"no known {kind} in {name}")
    return dict(sorted(reasons.items()))


class Shape(NamedTuple):
    """The static extents of packed rows: one program serves all categories that share them.

    Attributes:
        length: k, known rows with padding.
        slots: as in `Rows`.
    """

    length: int
    slots: int


def padded_length(count: int, per_octave: int = 4, smallest: int = 512) -> int:
    """The next of a few lengths: few programs to compile, and with four an octave less than a fifth of it padding."""
    step = max(smallest, 1 << max(0, (count - 1).bit_length() - 1)) // per_octave
    return max(smallest, -(-count // step) * step)


def positive_slots(count: int, length: int) -> int:
    """Enough for so many positives, or 0 where they are too many to count by.

    A CPU counts as far as the positives go, so that one program serves all; elsewhere the next power of two.
    """
    most = min(max(COUNTED_POSITIVES, length // 16), 2**29 // length, length)
    if count > most:
        return 0
    return most if jax.default_backend() == "cpu" else min(most, max(16, 1 << max(0, count - 1).bit_length()))


def rows_of(
    seen: Seen,
    categories: Sequence[int],
    shape: Shape,
    unit: Float[np.ndarray, " c"],
    *,
    add_base: bool = True,
    dtype: type = np.float32,
) -> Rows:
    """Known rows of some categories, positives first, then negatives, padded.

    Args:
        seen: the split.
        categories: which, length g.
        shape: k and slots, enough for all of them.
        unit: [c], what one gene of each category is multiplied by.
        add_base: whether genes are a step away from the starting heads, or the kernels themselves.
        dtype: of z.
    """
    z = np.zeros((len(categories), shape.length, seen.z.shape[-1]), dtype)
    base = np.zeros((len(categories), shape.length), np.float32)
    labels, where = (np.zeros((len(categories), shape.length), bool) for _ in range(2))
    for g, c in enumerate(categories):
        rows = np.flatnonzero(seen.known[:, c])
        rows = rows[np.argsort(~np.asarray(seen.labels[rows, c]), kind="stable")]
        labels[g, : len(rows)] = seen.labels[rows, c]
        where[g, : len(rows)] = True
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            block = seen.z[some] if seen.z.ndim == 2 else seen.z[some, c]
            z[g, start : start + len(some)] = block * unit[c]
        if add_base:
            base[g, : len(rows)] = seen.base[rows, c]
    return Rows(z, base, labels, where, shape.slots)


def spread(seen: Seen) -> Float[np.ndarray, " c"]:
    """[c] standard deviation of each head's scores over its known rows, a gene's unit; 1 where they do not vary."""
    found = np.ones(seen.labels.shape[1], np.float32)
    for c in range(len(found)):
        scores = seen.base[seen.known[:, c], c]
        if len(scores) and (deviation := float(scores.std())) > 1e-6:
            found[c] = deviation
    return found


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


@dataclasses.dataclass(frozen=True)
class Group:
    """Categories that advance together.

    Attributes:
        categories: which.
        train: extents of their packed training rows.
        validation: extents of their packed validation rows.
    """

    categories: tuple[int, ...]
    train: Shape
    validation: Shape

    @property
    def name(self) -> str:
        """For a file."""
        first, *others = self.categories
        return f"group-{first}-{zlib.crc32(str(self.categories).encode()):08x}" if others else f"group-{first}"

    def rows(
        self,
        train: Seen,
        validation: Seen,
        unit: Float[np.ndarray, " c"],
        sharding: NamedSharding | None,
        *,
        add_base: bool = True,
        dtype: type = np.float32,
    ) -> tuple[Rows, Rows]:
        """Both splits' rows, on the devices; the last category is repeated until the group divides over them."""
        devices = 1 if sharding is None else sharding.mesh.size
        members = [*self.categories, *[self.categories[-1]] * (-len(self.categories) % devices)]
        packed = (
            rows_of(seen, members, shape, unit, add_base=add_base, dtype=dtype)
            for seen, shape in ((train, self.train), (validation, self.validation))
        )
        first, second = (jax.device_put(rows, sharding) for rows in packed)
        return first, second


def _shapes(seen: Seen, per_octave: int, ranked: bool) -> list[Shape]:
    """Of each category; where nothing is ranked, positives are not told apart."""
    known = np.asarray(seen.known, bool)
    lengths = [padded_length(int(count), per_octave) for count in known.sum(0)]
    positives = (known & np.asarray(seen.labels, bool)).sum(0)
    return [
        Shape(k, positive_slots(int(count), k) if ranked else 0) for k, count in zip(lengths, positives, strict=True)
    ]


def groups(
    train: Seen, validation: Seen, categories: Sequence[int], at_once: int, *, ranked: bool = True
) -> list[Group]:
    """Categories of the same extents together, in groups of nearly equal size, the longest first.

    Args:
        train: the split that is learned from.
        validation: the split that judges.
        categories: those to be tuned.
        at_once: the largest group.
        ranked: whether the training rows are ranked as well.
    """
    # A generation scores one candidate on validation, so that padding costs little there, and programs are saved.
    train_shapes, validation_shapes = _shapes(train, 4, ranked), _shapes(validation, 1, True)
    alike: dict[tuple[Shape, Shape], list[int]] = {}
    for c in categories:
        alike.setdefault((train_shapes[c], validation_shapes[c]), []).append(c)
    found = []
    for (train_shape, validation_shape), members in sorted(alike.items(), reverse=True):
        size = -(-len(members) // -(-len(members) // at_once))
        found += [
            Group(tuple(members[start : start + size]), train_shape, validation_shape)
            for start in range(0, len(members), size)
        ]
    return found


def categories_at_once(bytes_each: float, devices: int) -> int:
    """As many as fit in half of the devices' memory, or on a CPU one a device.

    A CPU gains nothing from a batch, and alone each category stops when it is done.
    """
    if jax.default_backend() == "cpu":
        return devices
    stats = jax.local_devices()[0].memory_stats() or {}
    return max(1, int(0.5 * stats.get("bytes_limit", 8 * 2**30) / bytes_each)) * devices


def refit_bias(heads: Heads, train: Embeddings, categories: Sequence[int]) -> Float[np.ndarray, " c"]:
    """Biases of maximum likelihood on the known training labels of some categories, the others as they were.

    At that bias the mean probability is the share of known positives. The share counts half a positive and half a
    negative more than were seen, so that it stays finite. Found by bisection, as the mean probability only grows with
    the bias.
    """
    kernel, bias = np.asarray(heads.kernel, np.float32), np.array(heads.bias, np.float32)
    for c in categories:
        rows = np.flatnonzero(np.asarray(train.known[:, c]))
        z = train.z if train.z.ndim == 2 else train.z[:, c]
        blocks = (np.asarray(z[rows[s : s + ROWS_AT_ONCE]], np.float32) for s in range(0, len(rows), ROWS_AT_ONCE))
        scores = np.concatenate([block @ kernel[c] for block in blocks]).astype(np.float64)
        share = (np.asarray(train.labels[:, c])[rows].sum() + 0.5) / (len(rows) + 1.0)
        low, high = -np.abs(scores).max() - 30.0, np.abs(scores).max() + 30.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            too_high = special.expit(scores + middle).mean() > share
            low, high = (low, middle) if too_high else (middle, high)
        bias[c] = (low + high) / 2
    return bias
