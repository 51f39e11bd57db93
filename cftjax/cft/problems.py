"""What the search and the polish see of the embeddings: per category its known rows, packed, in chosen coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from cftjax.types import Array, Embeddings, Heads

ROWS_AT_ONCE = 16384


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The known rows of a group of categories, padded to one length.

    A head's score of a row is `base + z @ genes`.

    Attributes:
        z: [g k r].
        base: [g k], the score that the genes are added to.
        labels: [g k] bool.
        where: [g k] bool, false for padding.
    """

    z: Float[Array, "*g k r"]
    base: Float[Array, "*g k"]
    labels: Bool[Array, "*g k"]
    where: Bool[Array, "*g k"]


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


def _whitened(z: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and the `num` leading principal directions [d r] of z [n d], the coordinates white."""
    n, d = z.shape
    mean = np.zeros(d)
    for start in range(0, n, ROWS_AT_ONCE):
        mean += np.asarray(z[start : start + ROWS_AT_ONCE], np.float32).sum(0, dtype=np.float64) / n
    covariance = np.zeros((d, d), np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        block = np.asarray(z[start : start + ROWS_AT_ONCE], np.float32) - mean.astype(np.float32)
        covariance += block.T @ block / n
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    order = np.argsort(values)[::-1][: min(num, n, d)]
    order = order[values[order] > values[order[0]] * 1e-7]
    # The sign of an eigenvector is arbitrary; fixing it keeps results the same across linear-algebra libraries.
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(0), order])
    return mean.astype(np.float32), (vectors / np.sqrt(values[order])).astype(np.float32)


def principal_space(train: Embeddings, num: int) -> Space:
    """The `num` leading principal directions of the training embeddings, all rows, known or not.

    Fewer genes make a smaller product and overfit less: directions in which the embeddings hardly vary are left alone.
    """
    z = np.asarray(train.z)
    if z.ndim == 2:
        mean, directions = _whitened(z, num)
        return Space(directions, mean)
    per_category = [_whitened(z[:, c], num) for c in range(z.shape[1])]
    rank = min(directions.shape[1] for _, directions in per_category)
    return Space(np.stack([v[:, :rank] for _, v in per_category]), np.stack([m for m, _ in per_category]))


def untunable(train: Embeddings, validation: Embeddings) -> dict[int, str]:
    """Categories that no search can judge: either split lacks a known positive or a known negative."""
    reasons = {}
    for name, split in (("train", train), ("validation", validation)):
        labels, known = np.asarray(split.labels, bool), np.asarray(split.known, bool)
        for kind, count in (("positive", (labels & known).sum(0)), ("negative", (~labels & known).sum(0))):
            for c in np.flatnonzero(count == 0):
                reasons.setdefault(int(c), f"no known {kind} in {name}")
    return dict(sorted(reasons.items()))


def padded_length(count: int, smallest: int = 256) -> int:
    """The next of a few lengths, an eighth of an octave apart: few programs to compile, little padding."""
    step = max(smallest, 1 << max(0, (count - 1).bit_length() - 1)) // 8
    return max(smallest, -(-count // step) * step)


def rows_of(
    seen: Seen, categories: Sequence[int], length: int, unit: Float[np.ndarray, " c"], *, add_base: bool = True
) -> Rows:
    """Known rows of some categories, packed to the front and padded to `length`.

    Args:
        seen: the split.
        categories: which, length g.
        length: k, at least the largest number of known rows.
        unit: [c], what one gene of each category is multiplied by.
        add_base: whether genes are a step away from the starting heads, or the kernels themselves.
    """
    z = np.zeros((len(categories), length, seen.z.shape[-1]), np.float32)
    base = np.zeros((len(categories), length), np.float32)
    labels, where = (np.zeros((len(categories), length), bool) for _ in range(2))
    for g, c in enumerate(categories):
        rows = np.flatnonzero(seen.known[:, c])
        labels[g, : len(rows)] = seen.labels[rows, c]
        where[g, : len(rows)] = True
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            target = slice(start, start + len(some))
            z[g, target] = seen.z[some] if seen.z.ndim == 2 else seen.z[some, c]
            z[g, target] *= unit[c]
        if add_base:
            base[g, : len(rows)] = seen.base[rows, c]
    return Rows(z, base, labels, where)


def spread(seen: Seen) -> Float[np.ndarray, " c"]:
    """[c] standard deviation of each head's scores over its known rows, a gene's unit; 1 where they do not vary."""
    found = np.ones(seen.labels.shape[1], np.float32)
    for c in range(len(found)):
        scores = seen.base[seen.known[:, c], c]
        if len(scores) and (deviation := float(scores.std())) > 1e-6:
            found[c] = deviation
    return found


def groups(counts: dict[int, int], at_once: int) -> Iterator[tuple[int, list[int]]]:
    """(padded rows, categories): categories of one padded length together, in groups of equal size.

    Args:
        counts: category -> known rows.
        at_once: the largest group.
    """
    by_length: dict[int, list[int]] = {}
    for category, count in counts.items():
        by_length.setdefault(padded_length(count), []).append(category)
    for length, members in sorted(by_length.items(), reverse=True):
        size = -(-len(members) // -(-len(members) // at_once))
        for start in range(0, len(members), size):
            yield length, members[start : start + size]


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
