"""Generated embeddings for the benchmarks of speed: a backbone's features are many, related, and never negative."""

from __future__ import annotations

import numpy as np

from cftjax.types import Embeddings, Heads

FACTORS = 64
ROWS_AT_ONCE = 8192


def features(
    n: int, d: int, c: int, rng: np.random.Generator, prevalences: tuple[float, float] = (0.01, 0.3)
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [n d] float32 and complete labels [n c], of prevalences evenly spread in logarithm.

    The features are rectified mixtures of a few factors of falling strength and some noise; the labels follow the
    factors.
    """
    mixing = rng.normal(size=(FACTORS, d)).astype(np.float32) / np.sqrt(FACTORS)
    teacher = rng.normal(size=(FACTORS, c)).astype(np.float32)
    strength = (np.arange(1, FACTORS + 1) ** -0.5).astype(np.float32)
    z, logits = np.empty((n, d), np.float32), np.empty((n, c), np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, n))
        factors = rng.standard_normal((rows.stop - start, FACTORS), np.float32) * strength
        noise = rng.standard_normal((rows.stop - start, d), np.float32)
        z[rows] = np.maximum(factors @ mixing + 0.1 * noise, 0)
        logits[rows] = factors @ teacher
    logits += rng.normal(scale=logits.std(), size=logits.shape).astype(np.float32)
    prevalence = np.geomspace(*prevalences, c)
    labels = logits > np.array([np.quantile(logits[:, i], 1 - share) for i, share in enumerate(prevalence)])
    return z, labels


def split(z: np.ndarray, labels: np.ndarray, known_proportion: float, rng: np.random.Generator) -> Embeddings:
    """Embeddings whose labels are known with a probability."""
    return Embeddings(z, labels, rng.random(labels.shape, np.float32) < known_proportion)


def negative_heads(train: Embeddings) -> Heads:
    """Heads that point from the mean of what is not known to be positive to the mean of what is, unscaled.

    A cheap stand-in for the last layer of Negative mode, where only speed is measured.
    """
    positive = (train.labels & train.known).astype(np.float32)
    count = np.maximum(positive.sum(0), 1)
    kernel = (positive.T @ train.z) / count[:, None] - train.z.mean(axis=0)[None]
    kernel /= np.maximum(np.linalg.norm(kernel, axis=1, keepdims=True), 1e-9)
    return Heads(kernel.astype(np.float32), np.zeros(len(kernel), np.float32))
