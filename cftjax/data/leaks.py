"""Groups, such as patients, that have images in two splits: scores on them are too good to be true."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped


class Leak(NamedTuple):
    """What two splits share.

    Attributes:
        first: a split.
        second: a later one.
        groups: that have images in both.
        images: of these groups in the first, and in the second.
        sizes: all images of the first, and of the second.
    """

    first: str
    second: str
    groups: int
    images: tuple[int, int]
    sizes: tuple[int, int]

    def __str__(self) -> str:
        """One sentence with all counts."""
        one = self.groups == 1
        parts = [
            f"{images:,} of the {size:,} images of {split}"
            for images, size, split in zip(self.images, self.sizes, (self.first, self.second), strict=True)
        ]
        return (
            f"{self.groups:,} {'group has' if one else 'groups (such as patients) have'} images in both {self.first} "
            f"and {self.second}: {' and '.join(parts)}. Scores on {'it' if one else 'them'} are too good"
        )


def find(groups: Mapping[str, Shaped[np.ndarray, " _"] | None]) -> list[Leak]:
    """What every two splits share, where they share anything.

    Args:
        groups: by split, what each image belongs to; None where every image stands alone.
    """
    # As text: one file may have numbers where another has words.
    named = {split: np.asarray(own).astype(str) for split, own in groups.items() if own is not None}
    found = []
    for (first, own), (second, other) in itertools.combinations(named.items(), 2):
        shared = np.intersect1d(own, other)
        if len(shared):
            images = (int(np.isin(own, shared).sum()), int(np.isin(other, shared).sum()))
            found.append(Leak(first, second, len(shared), images, (len(own), len(other))))
    return found
