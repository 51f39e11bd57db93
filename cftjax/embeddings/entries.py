"""Labels of a bundle as entries: row, column and value of what somebody said, for sets too large for a table [n c]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int8

from cftjax.data import meaning, sparse
from cftjax.data.reading.problems import Problems
from cftjax.data.sparse import SparseLabels

# What stands in place of the array `labels` of a split.
PARTS = ("label_rows", "label_columns", "label_values")


class Entries(NamedTuple):
    """What somebody said of the images of one split.

    Attributes:
        rows: [m] images.
        columns: [m] categories.
        values: [m] 1, 0 or -1.
        num_rows: n.
    """

    rows: Int[np.ndarray, " m"]
    columns: Int[np.ndarray, " m"]
    values: Int8[np.ndarray, " m"]
    num_rows: int


def check(split: str, arrays: Sequence[np.ndarray], shape: tuple[int, int], problems: Problems) -> Entries | None:
    """The entries of a split; None where something is wrong, which is noted.

    Args:
        split: to be named.
        arrays: of the names in `PARTS`.
        shape: (n, c).
        problems: where to note.
    """
    before = len(problems)
    sizes = {array.shape for array in arrays}
    if len(sizes) != 1 or arrays[0].ndim != 1:
        shapes = ", ".join(f"{split}_{part} {array.shape}" for part, array in zip(PARTS, arrays, strict=True))
        problems.add(f"{shapes} must be of one length [m], an entry for each label that somebody gave")
        return None
    for part, array, size in zip(PARTS, arrays, shape, strict=False):
        if array.dtype.kind not in "iu":
            problems.add(f"{split}_{part}, of type {array.dtype}, must hold whole numbers")
        elif array.size and not (array.min() >= 0 and array.max() < size):
            wrong = array.min() if array.min() < 0 else array.max()
            problems.add(f"{split}_{part} holds {wrong}, and is not in 0 to {size - 1}")
    values = np.asarray(arrays[2])
    if values.dtype.kind not in "iuf" or not np.isin(values, (1, 0, -1)).all():
        problems.add(f"{split}_label_values must be 1, 0 or -1", mend="leave out what is unknown")
    if len(problems) > before:
        return None
    rows, columns = (np.asarray(array, np.int64) for array in arrays[:2])
    return Entries(rows, columns, values.astype(np.int8), shape[0])


def of_table(values: Float[np.ndarray, "n c"]) -> Entries:
    """The entries of labels of 1, 0, -1 and NaN."""
    rows, columns = np.nonzero(~np.isnan(values))
    return Entries(rows, columns, values[rows, columns].astype(np.int8), len(values))


def labels(
    written: Mapping[str, Entries], categories: Sequence[str], answer: meaning.Answer, problems: Problems
) -> tuple[dict[str, SparseLabels], tuple[str, ...]]:
    """The labels of all splits, a column being one thing in all of them, and how they were read.

    Args:
        written: by split.
        categories: names.
        answer: what somebody said of -1.
        problems: where the columns are noted that need an answer.
    """
    c, n = len(categories), sum(entries.num_rows for entries in written.values())
    # Of each column the number of -1, 0 and 1.
    counts = np.zeros((3, c), np.int64)
    for own in written.values():
        np.add.at(counts, (own.values + 1, own.columns), 1)
    blank = n - counts.sum(0) >= meaning.BLANK_SHARE * max(n, 1)
    held = [meaning.Holding(*map(bool, own)) for own in zip(counts[1] > 0, counts[0] > 0, blank, strict=True)]
    meanings, told = meaning.settle(held, categories, answer, problems, always_ask=True)
    by_column = np.array(meanings).reshape(c, 2)
    found = {}
    for split, own in written.items():
        means = np.where(own.values == -1, by_column[own.columns, 0], by_column[own.columns, 1])
        values = np.where(own.values == 1, 1.0, means)
        said = ~np.isnan(values)
        parts = (own.rows[said], own.columns[said], values[said].astype(np.int8))
        found[split] = sparse.from_entries(*parts, (own.num_rows, c))
    return found, tuple(told)
