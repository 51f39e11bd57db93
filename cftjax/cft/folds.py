"""Folds of the images that judge: every one is scored by heads that have not learned from it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Shaped

from cftjax.data import sparse
from cftjax.data.splits import stratify
from cftjax.types import Labels


def of_images(
    given: Labels,
    groups: Shaped[np.ndarray, " n"] | None,
    num: int,
    seed: int = 0,
) -> Int[np.ndarray, " n"]:
    """Which fold holds each image: the known positives of every category spread alike, whole groups together.

    Args:
        given: labels whose known positives are spread.
        groups: a mark shared by the images that must stay together; None where every image stands alone.
        num: folds, at least 2.
        seed: of the draw.
    """
    positive = sparse.of(given).positive()
    fold = np.full(given.shape[0], num - 1)
    rest = np.arange(len(fold))
    for k in range(num - 1):
        drawn = stratify(positive[rest], 1 / (num - k), seed + k, None if groups is None else groups[rest])
        fold[rest[drawn]] = k
        rest = np.delete(rest, drawn)
    return fold
