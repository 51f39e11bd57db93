"""Every score of multi-label predictions, over known labels only; what is undefined is NaN and never 0.

Names of the means are the literature's: mAP, mAUC, and CP, CR, CF1 over categories, OP, OR, OF1 over all labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num

from cftjax import metrics
from cftjax.report.tables import MEAN
from cftjax.scores import bootstrap, reliability
from cftjax.scores.bootstrap import Interval, Resampled
from cftjax.scores.predictions import Predictions, Truth, category_groups
from cftjax.scores.reliability import Bins

PER_CATEGORY = ("AP", "AUROC", "precision", "recall", "F1", "ECE")
OVERALL = ("mAP", "mAUC", "micro_AP", "CP", "CR", "CF1", "OP", "OR", "OF1", "mF1", "ECE")
# Points of a curve that are kept for a picture.
CURVE_POINTS = 400


class Counts(NamedTuple):
    """Decisions on known labels, [c] each: true and false positives, false negatives."""

    tp: Int[np.ndarray, " c"]
    fp: Int[np.ndarray, " c"]
    fn: Int[np.ndarray, " c"]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One category's curves, at some of its thresholds: [k] each, in [0, 1]."""

    recall: Float[np.ndarray, " k"]
    precision: Float[np.ndarray, " k"]
    false_positive_rate: Float[np.ndarray, " k"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """One model, measured.

    Attributes:
        name: of the model.
        each: score -> [c], of those in `PER_CATEGORY`.
        overall: score -> number, of those in `OVERALL`.
        thresholds: [c]; NaN where the model has none.
        bins: of all categories, for the reliability diagram.
        curves: category's place -> its curves, of those asked for.
    """

    name: str
    each: dict[str, Float64[np.ndarray, " c"]]
    overall: dict[str, float]
    thresholds: Float[np.ndarray, " c"]
    bins: Bins
    curves: dict[int, Curve]


@dataclasses.dataclass(frozen=True)
class Measured:
    """All models, measured on the same images.

    Attributes:
        scores: of m models.
        positive: [c] known positives.
        negative: [c] known negatives.
        resampled: AP and AUROC of all models under the same resamples; [m 0 c] where none were asked for.
    """

    scores: list[Scores]
    positive: Int[np.ndarray, " c"]
    negative: Int[np.ndarray, " c"]
    resampled: Resampled


def ratio(part: Num[np.ndarray, "*c"], whole: Num[np.ndarray, "*c"]) -> Float64[np.ndarray, "*c"]:
    """Part / whole; NaN where whole is 0."""
    return np.asarray(part, np.float64) / np.where(whole == 0, np.nan, whole)


def mean_of_defined(values: Float[np.ndarray, " c"]) -> float:
    """Mean without NaN; NaN where nothing is defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


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
    found = np.where(tp + fn > 0, each["precision"], np.nan)
    overall = {"CP": mean_of_defined(found), "CR": mean_of_defined(each["recall"]), "mF1": mean_of_defined(each["F1"])}
    overall["CF1"] = harmonic(overall["CP"], overall["CR"])
    true, false, missed = (x.sum(keepdims=True) for x in counts)
    pooled = {"OP": ratio(true, true + false), "OR": ratio(true, true + missed)}
    pooled["OF1"] = np.where(true + missed > 0, ratio(2 * true, 2 * true + false + missed), np.nan)
    overall |= {name: float(value[0]) for name, value in pooled.items()}
    return each, overall


class Pooled:
    """Micro average precision: AP of all categories' known labels as one ranking, exact, ties included.

    Only the positives are held: their distinct probabilities cut the negatives into bins that are counted, in a second
    pass over the categories.
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
        """NaN without a positive."""
        if not len(self.distinct):
            return float("nan")
        above = np.cumsum(self.negatives[::-1])[:-1]  # negatives at or above each distinct positive, best first
        tied = self.tied[::-1]
        true = np.cumsum(tied)
        return float((tied * (true / (true + above))).sum() / true[-1])


def curve(scores: Float[np.ndarray, " k"], labels: Bool[np.ndarray, " k"]) -> Curve:
    """Recall, precision and false positive rate at distinct scores of known labels, highest first."""
    distinct, place = np.unique(-scores, return_inverse=True)
    tp = np.cumsum(np.bincount(place[labels], minlength=len(distinct)))
    fp = np.cumsum(np.bincount(place[~labels], minlength=len(distinct)))
    kept = np.unique(np.linspace(0, len(distinct) - 1, min(CURVE_POINTS, len(distinct))).astype(int))
    tp, fp, positive, negative = tp[kept], fp[kept], tp[-1], fp[-1]
    return Curve(ratio(tp, np.full(len(tp), positive)), ratio(tp, tp + fp), ratio(fp, np.full(len(fp), negative)))


def known_counts(truth: Truth) -> Int[np.ndarray, "2 c"]:
    """Known positives and known negatives of every category."""
    found = np.zeros((2, len(truth.categories)), np.int64)
    for some in category_groups(len(truth), found.shape[1], 1):
        labels, known = truth.block(some)
        found[:, some] = labels.sum(0), (known & ~labels).sum(0)
    return found


def measure(
    truth: Truth,
    models: Sequence[Predictions],
    *,
    resamples: int = 1000,
    seed: int = 0,
    drawn: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure models on the same images, a group of categories at a time.

    Args:
        truth: the labels.
        models: m of them.
        resamples: of the bootstrap; 0 leaves it out.
        seed: of the bootstrap.
        drawn: places of the categories whose curves are kept.
        progress: told the categories done and all of them.
    """
    m, c, n = len(models), len(truth.categories), len(truth)
    groups = list(category_groups(n, c, 2 * m))
    empty = reliability.bins(*(np.zeros((0, 1), dtype) for dtype in (np.float32, bool, bool)))
    each = [{name: np.full(c, np.nan) for name in PER_CATEGORY} for _ in models]
    counts = [Counts(*(np.zeros(c, np.int64) for _ in range(3))) for _ in models]
    bins, curves = [empty] * m, [{} for _ in models]
    positives: list[list[np.ndarray]] = [[] for _ in models]
    positive, negative = known_counts(truth)
    resampled = Resampled(*(np.full((m, resamples, c), np.nan, np.float32) for _ in range(2)))
    for some in groups:
        labels, known = truth.block(some)
        blocks = [model.block(some) for model in models]
        for i, (model, block) in enumerate(zip(models, blocks, strict=True)):
            for metric in MEAN:
                each[i][metric][some] = metrics.score(metric, block.scores, labels, known)
            given = known & model.given[None, some]
            positives[i].append(block.probs[labels & given].astype(np.float64))
            for j in np.flatnonzero(model.given[some]).tolist():
                if model.calibrated:
                    own = reliability.bins(block.probs[:, j : j + 1], labels[:, j : j + 1], known[:, j : j + 1])
                    bins[i] += own
                    each[i]["ECE"][some.start + j] = own.calibration_error
                told = known[:, j]
                if some.start + j in drawn and told.any():
                    curves[i][some.start + j] = curve(block.scores[told, j], labels[told, j])
            decided = count(block.probs, model.thresholds[some], labels, given)
            for total, part in zip(counts[i], decided, strict=True):
                total[some] = part
        if resamples and n:
            wide = np.stack([block.scores for block in blocks])
            found = bootstrap.resample(wide, labels, known, groups=truth.groups, resamples=resamples, seed=seed)
            resampled.AP[..., some], resampled.AUROC[..., some] = found.AP, found.AUROC
        if progress is not None:
            progress(some.stop, c)
    pooled = [Pooled(parts) for parts in positives]
    for some in groups:
        labels, known = truth.block(some)
        for model, one in zip(models, pooled, strict=True):
            one.add(model.block(some).probs[known & ~labels & model.given[None, some]])
    scores = []
    for i, model in enumerate(models):
        overall = {MEAN[metric]: mean_of_defined(each[i][metric]) for metric in MEAN}
        overall |= {"micro_AP": pooled[i].average_precision(), "ECE": bins[i].calibration_error}
        # A model without a threshold decides nothing, which is neither right nor wrong.
        decides = ~np.isnan(model.thresholds) & model.given
        own, over = at_thresholds(Counts(*(np.where(decides, part, 0) for part in counts[i])))
        overall |= over
        for name, values in own.items():
            each[i][name] = values
        ordered = {name: overall[name] for name in OVERALL}
        scores.append(Scores(model.name, each[i], ordered, model.thresholds, bins[i], curves[i]))
    return Measured(scores, positive, negative, resampled)


def interval_of(measured: Measured, place: int, metric: str, category: int | None = None) -> Interval:
    """AP or AUROC of one model, of one category or of their mean where none is named, with its interval."""
    samples, value = getattr(measured.resampled, metric)[place], measured.scores[place].each[metric]
    if category is not None:
        return bootstrap.interval(float(value[category]), samples[:, category])
    return bootstrap.interval(mean_of_defined(value), _means(samples))


class Difference(NamedTuple):
    """How much one model exceeds another: the interval of the paired difference, and its two-sided p value."""

    interval: Interval
    p: float


def difference(measured: Measured, first: int, second: int, metric: str, category: int | None = None) -> Difference:
    """First less second, in AP or AUROC; a mean is over the categories that both give."""
    values = [measured.scores[i].each[metric] for i in (first, second)]
    value, samples = values[0] - values[1], getattr(measured.resampled, metric)
    samples = samples[first] - samples[second]
    if category is None:
        point, drawn = mean_of_defined(value), _means(samples)
    else:
        point, drawn = float(value[category]), samples[:, category]
    return Difference(bootstrap.interval(point, drawn), float("nan") if np.isnan(point) else bootstrap.p_value(drawn))


def _means(samples: Float[np.ndarray, "r c"]) -> Float64[np.ndarray, " r"]:
    return np.asarray(metrics.mean_defined(samples), np.float64) if len(samples) else np.empty(0)
