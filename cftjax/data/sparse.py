"""Labels of large sets: what somebody said is stored; dense blocks are made per batch or per group of categories."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int8, Integer
from scipy.sparse import csr_array

from cftjax import types

# Elements of the largest dense [n c] array made without being asked for rows or columns: 256 MB of bool.
DENSE_LIMIT = 2**28


class Counts(NamedTuple):
    """How many labels of each kind every category has.

    Attributes:
        positive: [c].
        negative: [c].
        uncertain: [c].
    """

    positive: Int[np.ndarray, " c"]
    negative: Int[np.ndarray, " c"]
    uncertain: Int[np.ndarray, " c"]


class SparseLabels(types.Labels):
    """Labels [n c] of which few were ever given: 5 bytes a label, whatever the number of categories.

    It goes wherever `types.Labels` goes: rows are selected by `labels[rows]`, a few categories of all rows by
    `labels.columns(categories)`, and both give dense `types.Labels`. `labels.known` and its like are indexed as arrays
    are; the whole of them is made only where it is small.

    Attributes:
        starts: [n + 1] int64; row i has the entries starts[i] : starts[i + 1].
        categories: [m] int32, ascending within a row.
        values: [m] int8: 1 positive, 0 negative, -1 uncertain.
        num_categories: c.
    """

    starts: Int[np.ndarray, " n1"]
    categories: Int[np.ndarray, " m"]
    values: Int8[np.ndarray, " m"]
    num_categories: int

    def __init__(
        self,
        starts: Int[np.ndarray, " n1"],
        categories: Int[np.ndarray, " m"],
        values: Int8[np.ndarray, " m"],
        num_categories: int,
    ) -> None:
        """Take the arrays as they are; `from_entries` makes them from entries in any order."""
        self.starts, self.categories, self.values = starts, categories, values
        self.num_categories = num_categories

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        return len(self.starts) - 1, self.num_categories

    def __repr__(self) -> str:
        """Shape and number of entries; the inherited one would print the dense arrays."""
        n, c = self.shape
        return f"SparseLabels({n} images, {c} categories, {len(self.values)} labels)"

    def __getitem__(self, rows: Any) -> types.Labels:
        """Select rows, dense: an index, a slice, an array of indices or a mask, as NumPy takes them."""
        n, c = self.shape
        index = np.arange(*rows.indices(n)) if isinstance(rows, slice) else np.asarray(rows)
        if index.dtype == bool:
            if index.shape != (n,):
                raise IndexError(f"a mask of shape {index.shape} cannot select from {n} rows.")
            index = np.flatnonzero(index)
        index = index.astype(np.int64)
        if index.size and not (-n <= index.min() and index.max() < n):
            raise IndexError(f"row {index.min() if index.min() < -n else index.max()} is outside of {n} rows.")
        chosen = np.atleast_1d(index) % max(n, 1)
        entries, owner = ranges(self.starts, chosen)
        dense = fill(owner, self.categories[entries], self.values[entries], (len(chosen), c))
        return dense[0] if index.ndim == 0 else dense

    def take(self, rows: Int[np.ndarray, " k"]) -> SparseLabels:
        """Select rows by their indices, and stay sparse."""
        entries, _ = ranges(self.starts, rows)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[rows])])
        return SparseLabels(starts, self.categories[entries], self.values[entries], self.num_categories)

    def columns(self, categories: Sequence[int] | Integer[np.ndarray, " k"]) -> types.Labels:
        """All rows of some categories, dense [n k], in the order asked for."""
        n, c = self.shape
        chosen = np.asarray(categories, np.int64).reshape(-1)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < c):
            wrong = chosen.min() if chosen.min() < 0 else chosen.max()
            raise IndexError(f"category {wrong} is outside of {c} categories.")
        starts, rows, values = self._by_category
        entries, owner = ranges(starts, chosen)
        return fill(rows[entries], owner, values[entries], (n, len(chosen)))

    def counts(self) -> Counts:
        """The number of positive, negative and uncertain labels of each category."""
        one_of = [
            np.bincount(self.categories[self.values == value], minlength=self.num_categories) for value in (1, 0, -1)
        ]
        return Counts(*one_of)

    def rows(self) -> Int[np.ndarray, " m"]:
        """[m] the row of each entry."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.starts))

    def positive(self) -> csr_array:
        """[n c] bool, the positive labels."""
        present = self.values == 1
        where = (self.rows()[present], self.categories[present])
        return csr_array((np.ones(len(where[0]), bool), where), shape=self.shape)

    def keep(self, kept: Bool[np.ndarray, " m"]) -> SparseLabels:
        """Those of the entries that are kept; the others become unknown."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return SparseLabels(before[self.starts], self.categories[kept], self.values[kept], self.num_categories)

    @functools.cached_property
    def _by_category(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The transpose: starts [c + 1], rows [m] int32 and values [m] int8, made at the first use and kept."""
        _, c = self.shape
        # NumPy's stable sort is a radix sort, several times faster, for 16 bits only.
        order = np.argsort(self.categories.astype(np.uint16) if c <= 2**16 else self.categories, kind="stable")
        starts = np.zeros(c + 1, np.int64)
        np.cumsum(np.bincount(self.categories, minlength=c), out=starts[1:])
        return starts, self.rows()[order], self.values[order]

    def of_category(self, category: int) -> tuple[Int[np.ndarray, " k"], Int8[np.ndarray, " k"]]:
        """The rows of a category's labels, ascending, and their values."""
        starts, rows, values = self._by_category
        some = slice(starts[category], starts[category + 1])
        return rows[some], values[some]

    def known_of(self, category: int) -> tuple[Int[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
        """The rows of a category's known labels, ascending, and whether each is positive."""
        rows, values = self.of_category(category)
        return rows[values >= 0], values[values >= 0] == 1

    def dense(self) -> types.Labels:
        """All of them as arrays; ValueError where they would not fit."""
        n, c = self.shape
        if n * c > DENSE_LIMIT:
            raise ValueError(
                f"{n} images x {c} categories are too many for one dense array ({n * c / 2**30:.1f} GB): "
                "take rows (`labels[rows]`) or a group of categories (`labels.columns(categories)`)."
            )
        return self[:]

    @property
    def labels(self) -> types.Marks:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Positive labels, read as an array is."""
        return types.Marks(self, "labels")

    @property
    def known(self) -> types.Marks:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Known labels, read as an array is."""
        return types.Marks(self, "known")

    @property
    def uncertain(self) -> types.Marks:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Uncertain labels, read as an array is."""
        return types.Marks(self, "uncertain")

    @property
    def unknown(self) -> types.Marks:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Labels that nobody gave, read as an array is."""
        return types.Marks(self, "unknown")


def of(labels: types.Labels) -> SparseLabels:
    """The same labels, stored sparse."""
    if isinstance(labels, SparseLabels):
        return labels
    given = labels.known | labels.uncertain
    categories = np.nonzero(given)[1]
    values = np.where(labels.uncertain, np.int8(-1), (labels.labels & labels.known).astype(np.int8))[given]
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(given, axis=1))])
    return SparseLabels(starts, categories.astype(np.int32), values, labels.shape[1])


def from_arrays(starts: np.ndarray, categories: np.ndarray, values: np.ndarray, num_categories: int) -> SparseLabels:
    """Sparse labels from arrays that were read from a file; ValueError where they are none."""
    m, kinds = len(values), [array.dtype for array in (starts, categories, values)]
    sound = kinds == [np.int64, np.int32, np.int8] and [starts.ndim, categories.ndim, values.ndim] == [1, 1, 1]
    sound = sound and len(starts) > 0 and starts[0] == 0 and starts[-1] == m == len(categories)
    sound = sound and bool((np.diff(starts) >= 0).all() and np.isin(values, (1, 0, -1)).all())
    if not (sound and (m == 0 or (categories.min() >= 0 and categories.max() < num_categories))):
        raise ValueError("these arrays are no labels [n c] stored sparse")
    return SparseLabels(starts, categories, values, num_categories)


def joined(parts: Sequence[SparseLabels]) -> SparseLabels:
    """The rows of several splits, one after the other."""
    ends = np.cumsum([len(part.values) for part in parts])
    starts = [part.starts[1:] + end - len(part.values) for part, end in zip(parts, ends, strict=True)]
    return SparseLabels(
        np.concatenate([[0], *starts]),
        np.concatenate([part.categories for part in parts]),
        np.concatenate([part.values for part in parts]),
        parts[0].num_categories,
    )


def from_entries(
    rows: Integer[np.ndarray, " m"],
    categories: Integer[np.ndarray, " m"],
    values: Integer[np.ndarray, " m"],
    shape: tuple[int, int],
) -> SparseLabels:
    """Sparse labels from entries in any order.

    A pair of image and category that was labelled several times keeps its value where all agree, and is uncertain where
    they do not.

    Args:
        rows: the image of each entry, in 0..n-1.
        categories: the category of each entry, in 0..c-1.
        values: 1, 0 or -1.
        shape: (n, c).

    Raises:
        ValueError: an entry is outside of the shape, or its value is not one of the three.
    """
    n, c = shape
    for name, index, size in (("row", rows, n), ("category", categories, c), ("value + 1", values + 1, 3)):
        if len(index) and not (index.min() >= 0 and index.max() < size):
            raise ValueError(
                f"{name} {index.min() if index.min() < 0 else index.max()} of an entry is not in 0..{size - 1}."
            )
    # One int64 holds row, category and value, so that sorting needs no second array to follow.
    key = rows.astype(np.int64)
    key *= c
    key += categories
    key <<= 2
    key += values
    key += 1
    key.sort()
    value = ((key & 3) - 1).astype(np.int8)
    key >>= 2
    first = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    if not first.all():
        # Sorted: the first value of a pair is its least, the last its greatest.
        last = np.append(first[1:], True)
        key, value = key[first], np.where(value[first] == value[last], value[first], np.int8(-1))
    category = (key % c).astype(np.int32)
    key //= c
    starts = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(key, minlength=n), out=starts[1:])
    return SparseLabels(starts, category, value, c)


def ranges(
    starts: Int[np.ndarray, " n1"], chosen: Int[np.ndarray, " k"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """The entries of the chosen rows one after the other, and for each the place of its row among the chosen."""
    length = starts[chosen + 1] - starts[chosen]
    owner = np.repeat(np.arange(len(chosen)), length)
    before = np.cumsum(length) - length
    return np.arange(length.sum()) + (starts[chosen] - before)[owner], owner


def fill(
    rows: Integer[np.ndarray, " m"],
    columns: Integer[np.ndarray, " m"],
    values: Int8[np.ndarray, " m"],
    shape: tuple[int, int],
) -> types.Labels:
    """Dense labels of a shape from entries."""
    labels, known, uncertain = np.zeros((3, *shape), bool)
    labels[rows, columns] = values == 1
    known[rows, columns] = values >= 0
    uncertain[rows, columns] = values < 0
    return types.Labels(labels, known, uncertain)
