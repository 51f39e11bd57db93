"""Embeddings small enough to search in a second, with something to find."""

import numpy as np

from cftjax.types import Embeddings, Heads

CATEGORIES, DIM = 3, 5


def embeddings(n=96, seed=0, known=0.7, per_category=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, CATEGORIES, DIM) if per_category else (n, DIM)).astype(np.float32)
    truth = np.random.default_rng(99).normal(size=(CATEGORIES, DIM)).astype(np.float32)
    logits = np.einsum("ncd,cd->nc", z, truth) if per_category else z @ truth.T
    labels = logits + rng.normal(size=logits.shape) > 0.8
    return Embeddings(z, labels, rng.random(labels.shape) < known)


def heads(seed=7, noise=1.5):
    truth = np.random.default_rng(99).normal(size=(CATEGORIES, DIM))
    kernel = truth + noise * np.random.default_rng(seed).normal(size=truth.shape)
    return Heads(kernel.astype(np.float32), np.zeros(CATEGORIES, np.float32))


def permuted(split, order):
    z = split.z[:, order] if split.z.ndim == 3 else split.z
    return Embeddings(z, split.labels[:, order], split.known[:, order])
