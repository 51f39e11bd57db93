"""Random weights that torch and we draw alike, from an array's name and shape alone."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np


def draw(name: str, shape: Sequence[int]) -> np.ndarray:
    """One array of a state dict; nothing is left at a value, such as 0 or 1, that would hide a mistake.

    Variances and the scales of normalisations lie around 1, so that activations keep their size.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(shape)
    if len(shape) == 1 and name.endswith(("running_var", ".weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("gamma", "layer_scale")):
        return rng.uniform(0.2, 0.8, shape).astype(np.float32)
    if len(shape) < 2 or "token" in name or "pos_embed" in name:
        return rng.normal(0, 0.3, shape).astype(np.float32)
    return (rng.normal(size=shape, scale=1 / math.sqrt(math.prod(shape[1:])))).astype(np.float32)


def images(size: int | tuple[int, int], n: int = 2) -> np.ndarray:
    """Random images [n height width 3] of coarse and of fine squares: of noise alone all would have the same means."""
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(size)
    total = np.zeros((n, height, width, 3), np.float32)
    for side in (1, 4, 16, 64):
        squares = rng.normal(size=(n, -(-height // side), -(-width // side), 3))
        total += squares.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width]
    return total / 2
