"""Raw logits of heads for some of the categories, and how many of them at a time stay within memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from cftjax.types import Embeddings, Heads

ROWS_AT_ONCE = 8192
# Scores and probabilities of all models for one group of categories, in bytes.
BLOCK_BYTES = 512 * 2**20


def logits(
    heads: Mapping[str, Heads], embeddings: Embeddings, some: slice | list[int]
) -> dict[str, Float[np.ndarray, "n g"]]:
    """Raw logits of each stage for some categories, reading the embeddings once, a block of rows at a time."""
    picked = {stage: Heads(np.asarray(head.kernel)[some], np.asarray(head.bias)[some]) for stage, head in heads.items()}
    out = {stage: np.empty((len(embeddings), len(head.bias)), np.float32) for stage, head in picked.items()}
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        z = embeddings.z[rows] if embeddings.z.ndim == 2 else embeddings.z[rows, some]
        for stage, head in picked.items():
            out[stage][rows] = head(z)
    return out


def category_groups(n: int, c: int, num_models: int = 1) -> Iterator[slice]:
    """Groups of c categories whose scores and probabilities of n images by all models fit into `BLOCK_BYTES`."""
    size = max(1, BLOCK_BYTES // (16 * max(n, 1) * max(num_models, 1)))
    return (slice(start, min(start + size, c)) for start in range(0, c, size))
