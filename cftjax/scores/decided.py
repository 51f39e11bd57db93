"""What decisions are worth on known labels: precision, recall and F1, of each category and over all of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num

from cftjax import metrics


class Counts(NamedTuple):
    """Decisions on known labels, [c] each: true and false positives, false negatives."""

    tp: Int[np.ndarray, " c"]
    fp: Int[np.ndarray, " c"]
    fn: Int[np.ndarray, " c"]


def ratio(part: Num[np.ndarray, "*c"], whole: Num[np.ndarray, "*c"]) -> Float64[np.ndarray, "*c"]:
    """Part / whole; NaN where whole is 0."""
    return np.asarray(part, np.float64) / np.where(whole == 0, np.nan, whole)


def harmonic(a: float, b: float) -> float:
    """2 a b / (a + b); 0 where both are."""
    return 2 * a * b / (a + b) if a + b else a + b


def count(
    probs: Float[np.ndarray, "n c"],
    thresholds: Float[np.ndarray, " c"],
    labels: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
) -> Counts:
    """Decisions at and above the thresholds against the known labels."""
    decided = (probs >= thresholds[None, :]) & known
    return Counts((decided & labels).sum(0), (decided & ~labels).sum(0), (~decided & labels & known).sum(0))


def at_thresholds(counts: Counts) -> tuple[dict[str, Float64[np.ndarray, " c"]], dict[str, float]]:
    """Precision, recall and F1 of each category, and CP, CR, CF1, OP, OR, OF1 and mF1 over them.

    Recall and F1 need a known positive, precision a positive decision. CP and CR are means over the categories where
    they are defined, CF1 is the harmonic mean of CP and CR, mF1 the mean of the categories' F1.
    """
    tp, fp, fn = counts
    each = {"precision": ratio(tp, tp + fp), "recall": ratio(tp, tp + fn)}
    # Without a known positive, 0 would be the F1 of any decision at all, whatever it was worth.
    each["F1"] = np.where(tp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), np.nan)
    # What precision is of decisions where nothing could be found is not the model's to answer for.
    answerable = np.where(tp + fn > 0, each["precision"], np.nan)
    means = {"CP": answerable, "CR": each["recall"], "mF1": each["F1"]}
    overall = {name: metrics.mean_of(values) for name, values in means.items()}
    overall["CF1"] = harmonic(overall["CP"], overall["CR"])
    true, false, missed = (x.sum(keepdims=True) for x in counts)
    pooled = {"OP": ratio(true, true + false), "OR": ratio(true, true + missed)}
    pooled["OF1"] = np.where(true + missed > 0, ratio(2 * true, 2 * true + false + missed), np.nan)
    return each, overall | {name: float(value[0]) for name, value in pooled.items()}
