"""Extents of packed rows: few kinds, since each is programs to compile, and little padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from cftjax.cft.spaces import Seen

# With more positives than this, or than one row in sixteen, sorting is faster than counting: on a CPU as measured by
# benchmarks/ranking.py, on a TPU by counted instructions (docs/scaling.md). On a GPU a sort of everything costs as much
# as counting by some 250 positives, and one program then serves all categories (docs/gpu.md).
COUNTED_POSITIVES, COUNTED_POSITIVES_ON_TPU = 128, 512
# In so many rows a CPU counts no more positives than that: what is counted grows with the square, what is sorted hardly
# faster than the rows.
MANY_ROWS = 8192
# Rows that may be added to save programs, as a share of those in extents of their own.
MOST_PADDING = 0.2


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


def positive_slots(count: int, length: int, platform: str | None = None) -> int:
    """Enough for so many positives, or 0 where they are too many to count by.

    A CPU counts as far as the positives go, so that one program serves all; a TPU as far as the next power of two, or
    multiple of 128, its lanes. The platform is the default backend's, unless one is named.
    """
    platform = platform or jax.default_backend()
    if platform not in ("cpu", "tpu"):
        return 0
    counted = COUNTED_POSITIVES_ON_TPU if platform == "tpu" else COUNTED_POSITIVES
    share = 0 if platform == "cpu" and length > MANY_ROWS else length // 16
    most = min(max(counted, share), 2**29 // length, length)
    if count > most:
        return 0
    if platform == "cpu":
        return most
    return min(most, -(-count // 128) * 128 if count > 128 else max(16, 1 << max(0, count - 1).bit_length()))


class Counts(NamedTuple):
    """Of each category of a split, [c].

    Attributes:
        known: rows with a known label.
        positives: of them.
    """

    known: Int[np.ndarray, " c"]
    positives: Int[np.ndarray, " c"]

    @classmethod
    def of(cls, seen: Seen) -> Counts:
        """Count."""
        counts = seen.given.counts()
        return cls(counts.positive + counts.negative, counts.positive)

    def shape(self, categories: Sequence[int], per_octave: int, ranked: bool) -> Shape:
        """Extents that hold each of some categories; where nothing is ranked, positives are not told apart."""
        some = list(categories)
        length = padded_length(int(self.known[some].max()), per_octave)
        return Shape(length, positive_slots(int(self.positives[some].max()), length) if ranked else 0)


def merged(alike: Mapping[tuple[Shape, Shape], Sequence[int]]) -> list[list[int]]:
    """Categories of the fewest kinds that hold at most `MOST_PADDING` more rows than each in extents of its own.

    Args:
        alike: by their own extents, of training and of validation.
    """
    kinds = sorted(alike)
    lengths = np.array([[shape.length for shape in kind] for kind in kinds])
    number = np.array([len(alike[kind]) for kind in kinds])
    allowed = (1 + MOST_PADDING) * (number * lengths.sum(1)).sum()

    def rows(start: int, stop: int) -> int:
        return int(number[start:stop].sum() * lengths[start:stop].max(0).sum())

    # least[j] is the least number of rows of the first j kinds in so many parts, cuts[j] where those parts begin.
    least, cuts = [0.0] + [np.inf] * len(kinds), [[]] * (len(kinds) + 1)
    while least[-1] > allowed:
        best = [min(((least[i] + rows(i, j), i) for i in range(j)), default=(np.inf, 0)) for j in range(len(kinds) + 1)]
        least, cuts = [total for total, _ in best], [[*cuts[i], i] for _, i in best]
    ends = [*cuts[-1][1:], len(kinds)]
    return [
        sorted(c for kind in kinds[start:end] for c in alike[kind]) for start, end in zip(cuts[-1], ends, strict=True)
    ]
