"""Whether the card computes the same: metrics beside scikit-learn, rankings and heads beside the CPU."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from card.notes import SMALL, note
from cftjax.metrics import Metric


def metrics() -> None:
    """AP and AUROC beside scikit-learn; rankings of a population beside the CPU's; heads beside float64."""
    rng = np.random.default_rng(0)
    beside_scikit_learn(rng)
    beside_the_cpu(rng)
    heads(rng)


def beside_scikit_learn(rng: np.random.Generator) -> None:
    """The largest differences, with many and few ties."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from cftjax import metrics as ours

    theirs: dict[Metric, Any] = {"AP": average_precision_score, "AUROC": roc_auc_score}
    worst = dict.fromkeys(theirs, 0.0)
    for n, rounding in ((1000, 1), (4000, 2), (4000, 7)):
        scores = np.round(rng.normal(size=(n, 8)), rounding).astype(np.float32)
        labels = rng.random((n, 8)) < np.geomspace(0.01, 0.5, 8)
        known = rng.random((n, 8)) < 0.7
        for name, oracle in theirs.items():
            found = np.asarray(ours.score(name, scores, labels, known))
            for c in range(8):
                truth = oracle(labels[known[:, c], c], scores[known[:, c], c])
                worst[name] = max(worst[name], abs(float(found[c]) - truth))
    for name, error in worst.items():
        note(f"{name}: largest difference from scikit-learn", error)


def beside_the_cpu(rng: np.random.Generator) -> None:
    """Rankings of one population, ties among them, on both."""
    import jax

    from cftjax.cft import packing

    cpu = jax.devices("cpu")[0]
    shape = (2, 10, 512) if SMALL else (4, 20, 4096)
    scores = np.round(rng.normal(size=shape), 3).astype(np.float32)
    labels = np.tile(np.arange(shape[2]) < 60, (shape[0], 1))
    where = np.tile(np.arange(shape[2]) < shape[2] * 7 // 8, (shape[0], 1))
    for slots in (0, 64):
        for metric in ("AP", "AUROC"):
            way = functools.partial(packing.ranking_scores, metric, slots=slots)
            here = np.asarray(jax.jit(way)(scores, labels, where))
            with jax.default_device(cpu):
                there = np.asarray(jax.jit(way)(*(jax.device_put(x, cpu) for x in (scores, labels, where))))
            name = f"{metric} of a population, {'counted' if slots else 'sorted'}"
            note(f"{name}: largest difference from the CPU", float(np.abs(here - there).max()))
            note(f"{name}: share equal to the bit", float((here == there).mean()))


def heads(rng: np.random.Generator) -> None:
    """A last layer's scores beside float64."""
    from cftjax.types import Heads

    n, d, c = (300, 64, 5) if SMALL else (8000, 2048, 80)
    z = np.maximum(rng.normal(size=(n, d)), 0).astype(np.float32)
    kernel = (0.02 * rng.normal(size=(c, d))).astype(np.float32)
    exact = z.astype(np.float64) @ kernel.T.astype(np.float64)
    found = np.asarray(Heads(kernel, np.zeros(c, np.float32))(z))
    note("heads: relative error", float(np.linalg.norm(found - exact) / np.linalg.norm(exact)))
