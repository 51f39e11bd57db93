"""Curves of one category, and the ranking of all categories' labels as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import roc_curve

from cftjax.scores.decided import ratio

# Points of a curve that are kept for a picture.
CURVE_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Curve:
    """One category's curves, at some of its thresholds: [k] each, in [0, 1]."""

    recall: Float[np.ndarray, " k"]
    precision: Float[np.ndarray, " k"]
    false_positive_rate: Float[np.ndarray, " k"]


def curve(scores: Float[np.ndarray, " k"], labels: Bool[np.ndarray, " k"]) -> Curve | None:
    """Recall, precision and false positive rate at distinct scores of known labels, highest first.

    None without a positive or without a negative: there is no such curve.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    false, true, _ = (x[1:] for x in roc_curve(labels, scores, drop_intermediate=False))
    kept = np.unique(np.linspace(0, len(true) - 1, min(CURVE_POINTS, len(true))).astype(int))
    false, true = false[kept], true[kept]
    return Curve(true, ratio(positives * true, positives * true + negatives * false), false)


class Pooled:
    """Micro average precision: AP of all categories' known labels as one ranking, exact, ties included.

    Only the positives are held: their distinct probabilities cut the negatives into bins that are counted, in a second
    pass over the categories. scikit-learn would hold every label of every category at once.
    """

    def __init__(self, positives: Sequence[Float[np.ndarray, " _"]]) -> None:
        """Take the probabilities of all known positives, in any number of parts."""
        everything = np.concatenate([*positives, np.empty(0)])
        self.distinct, self.tied = np.unique(everything, return_counts=True)
        self.negatives = np.zeros(len(self.distinct) + 1, np.int64)

    def add(self, negatives: Float[np.ndarray, " _"]) -> None:
        """Count known negatives by how many of the distinct positives they reach."""
        reached = np.searchsorted(self.distinct, negatives, side="right")
        self.negatives += np.bincount(reached, minlength=len(self.negatives))

    def average_precision(self) -> float:
        """NaN without a positive or without a negative."""
        if not len(self.distinct) or not self.negatives.any():
            return float("nan")
        above = np.cumsum(self.negatives[::-1])[:-1]  # negatives at or above each distinct positive, best first
        tied = self.tied[::-1]
        true = np.cumsum(tied)
        return float((tied * (true / (true + above))).sum() / true[-1])
