"""Reliability: do categories given 30 % turn out present in 30 % of the images?"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

NUM_BINS = 15


@dataclasses.dataclass(frozen=True)
class Bins:
    """Known labels sorted into bins of predicted probability, each 1 / b wide; two of them add up.

    Attributes:
        count: [b] known labels whose probability falls in the bin.
        positive: [b] how many of them are positive.
        probability: [b] the sum of their probabilities.
    """

    count: Int[np.ndarray, " b"]
    positive: Int[np.ndarray, " b"]
    probability: Float[np.ndarray, " b"]

    def __add__(self, other: Bins) -> Bins:
        """The bins of both sets of labels together."""
        return Bins(self.count + other.count, self.positive + other.positive, self.probability + other.probability)

    @property
    def predicted(self) -> Float[np.ndarray, " b"]:
        """Mean probability of each bin; NaN where it is empty."""
        return self.probability / np.where(self.count == 0, np.nan, self.count)

    @property
    def observed(self) -> Float[np.ndarray, " b"]:
        """Share of positives of each bin; NaN where it is empty."""
        return self.positive / np.where(self.count == 0, np.nan, self.count)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in [0, 1], the mean of |observed - predicted| over labels; NaN without any.

        Naeini et al. 2015, with bins of equal width over all categories' labels.
        """
        total = self.count.sum()
        return float(np.abs(self.positive - self.probability).sum() / total) if total else float("nan")


def probabilities(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Sigmoid, written so that no logit overflows."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def bins(probs: Float[np.ndarray, "n c"], labels: Bool[np.ndarray, "n c"], known: Bool[np.ndarray, "n c"]) -> Bins:
    """Sort all known labels by their predicted probability; a NaN among them has no bin and is left out."""
    counted = known & ~np.isnan(probs)
    p, positive = probs[counted].astype(np.float64), labels[counted]
    index = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    return Bins(
        np.bincount(index, minlength=NUM_BINS),
        np.bincount(index[positive], minlength=NUM_BINS),
        np.bincount(index, weights=p, minlength=NUM_BINS).astype(np.float64),  # of nothing, it is integer
    )
