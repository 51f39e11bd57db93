"""Folds of the images that judge: every one is scored by heads that have not learned from it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cftjax.data.splits import stratify
from cftjax.types import Array


def of_images(
    labels: Bool[Array, "n c"],
    known: Bool[Array, "n c"],
    groups: Shaped[np.ndarray, " n"] | None,
    num: int,
    seed: int = 0,
) -> Int[np.ndarray, " n"]:
    """Which fold holds each image: the known positives of every category spread alike, whole groups together.

    Args:
        labels: read where known.
        known: what is spread.
        groups: a mark shared by the images that must stay together; None where every image stands alone.
        num: folds, at least 2.
        seed: of the draw.
    """
    positive = np.asarray(labels, bool) & np.asarray(known, bool)
    fold = np.full(len(positive), num - 1)
    rest = np.arange(len(positive))
    for k in range(num - 1):
        drawn = stratify(positive[rest], 1 / (num - k), seed + k, None if groups is None else groups[rest])
        fold[rest[drawn]] = k
        rest = np.delete(rest, drawn)
    return fold
