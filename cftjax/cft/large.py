"""Arrays with a row per image: kept where they are small, else made of the embeddings whenever they are read.

Search and polish read a category's labelled rows, a few thousand of millions. What is not kept costs the product of
those rows alone, and no host's memory grows with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cftjax.runtime import memory
from cftjax.types import Array, Heads

# Numbers of an array that is kept: 512 MB of float32.
KEPT = 2**27
ROWS_AT_ONCE = 16384


class Stacked:
    """Embeddings of several splits, one after the other, read by rows as float32; memory maps stay on disk."""

    def __init__(self, parts: Sequence[Array]) -> None:
        """Put arrays [n d] or [n c d] one after the other."""
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.shape = (int(self.ends[-1]), *self.parts[0].shape[1:])

    def blocks(self) -> Iterator[tuple[slice, Float[np.ndarray, "m ..."]]]:
        """All rows, some at a time, of one split each."""
        for part, end in zip(self.parts, self.ends, strict=True):
            for start in range(0, len(part), ROWS_AT_ONCE):
                block = np.asarray(part[start : start + ROWS_AT_ONCE], np.float32)
                first = int(end) - len(part) + start
                yield slice(first, first + len(block)), block
                memory.release(part)

    def __getitem__(self, rows: Any) -> Float[np.ndarray, "m ..."]:
        """Some rows, by a slice, indices or a mask."""
        if len(self.parts) == 1:
            return np.asarray(self.parts[0][rows], np.float32)
        index = np.arange(self.shape[0])[rows]
        out = np.empty((len(index), *self.shape[1:]), np.float32)
        which = np.searchsorted(self.ends, index, side="right")
        for i, part in enumerate(self.parts):
            mine = which == i
            if mine.any():
                out[mine] = part[index[mine] - (self.ends[i] - len(part))]
        return out


class Made:
    """An array [n k] of which rows, or of rows some columns, are made when they are asked for."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(
        self,
        embeddings: Stacked,
        factor: Float[np.ndarray, "d k"],
        *,
        centre: Float[np.ndarray, " d"],
        shift: Float[np.ndarray, " k"],
    ) -> None:
        """Stand for `(embeddings - centre) @ factor + shift`."""
        self.embeddings, self.factor, self.centre, self.shift = embeddings, factor, centre, shift

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return self.embeddings.shape[0], self.factor.shape[1]

    def __len__(self) -> int:
        """The number of images."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> Float[np.ndarray, ...]:
        """All columns of some rows; or of some rows one column, or several."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        return (self.embeddings[rows] - self.centre) @ self.factor[:, columns] + self.shift[columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it; for few rows."""
        whole = np.concatenate([self[rows] for rows, _ in self.embeddings.blocks()])
        return whole if dtype is None else whole.astype(dtype)


def coordinates(
    embeddings: Stacked, directions: Float[np.ndarray, "... d r"], mean: Float[np.ndarray, "... d"]
) -> np.ndarray | Made:
    """Embeddings in the coordinates of a space: [n r], or [n c r] of embeddings per category.

    Args:
        embeddings: [n d] or [n c d].
        directions: [d r] or [c d r].
        mean: [d] or [c d], which has the coordinates 0.
    """
    shape = (*embeddings.shape[:-1], directions.shape[-1])
    shared = directions.ndim == 2
    if shared and np.prod(shape) > KEPT:
        return Made(embeddings, directions, centre=mean, shift=np.zeros(shape[1], np.float32))
    out = np.empty(shape, np.float32)
    for rows, block in embeddings.blocks():
        centred = block - mean
        out[rows] = centred @ directions if shared else np.einsum("ncd,cdr->ncr", centred, directions)
    return out


def logits(embeddings: Stacked, heads: Heads) -> np.ndarray | Made:
    """Logits [n c] of all images under heads."""
    kernel, bias = np.asarray(heads.kernel, np.float32), np.asarray(heads.bias, np.float32)
    n, shared = embeddings.shape[0], len(embeddings.shape) == 2
    if shared and n * len(bias) > KEPT:
        return Made(embeddings, kernel.T, centre=np.zeros(kernel.shape[1], np.float32), shift=bias)
    out = np.empty((n, len(bias)), np.float32)
    for rows, block in embeddings.blocks():
        out[rows] = (block @ kernel.T if shared else np.einsum("ncd,cd->nc", block, kernel)) + bias
    return out
