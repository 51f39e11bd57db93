"""Every score of multi-label predictions, over known labels only; what is undefined is NaN and never 0.

A run's report, `evaluate` and `sweep` measure here. Names of the means are the literature's: mAP, mAUC, and CP, CR, CF1
over categories, OP, OR, OF1 over all labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from cftjax import metrics
from cftjax.metrics import MEAN, METRICS, Metric
from cftjax.scores import bootstrap, curves, decided, reliability
from cftjax.scores.bootstrap import Interval, Resampled
from cftjax.scores.curves import Curve, Pooled
from cftjax.scores.decided import Counts
from cftjax.scores.logits import category_groups
from cftjax.scores.predictions import Block, Predictions, Truth
from cftjax.scores.reliability import Bins

PER_CATEGORY = (*METRICS, "precision", "recall", "F1", "ECE")
OVERALL = (*MEAN.values(), "micro_AP", "CP", "CR", "CF1", "OP", "OR", "OF1", "mF1", "ECE")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is measured beside every metric of every category.

    Attributes:
        resamples: of the bootstrap; 0 leaves it out.
        seed: of the bootstrap.
        resampled: places of the models that are resampled; None for all.
        decisions: whether decisions are measured, and the micro average, for which everything is read a second time.
        drawn: places of the categories whose curves are kept.
    """

    resamples: int = 1000
    seed: int = 0
    resampled: Sequence[int] | None = None
    decisions: bool = True
    drawn: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class ModelScores:
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
        resampled: metric -> a model's place -> [r c], all under the same resamples; [0 c] where none were asked for.
        drawn: what a resample draws, such as "images" or "groups".
    """

    scores: list[ModelScores]
    positive: Int[np.ndarray, " c"]
    negative: Int[np.ndarray, " c"]
    resampled: dict[Metric, dict[int, Float[np.ndarray, "r c"]]]
    drawn: str


def known_counts(truth: Truth) -> Int[np.ndarray, "2 c"]:
    """Known positives and known negatives of every category."""
    counts = np.zeros((2, len(truth.categories)), np.int64)
    for some in category_groups(len(truth), counts.shape[1]):
        labels, known = truth.block(some)
        counts[:, some] = labels.sum(0), (known & ~labels).sum(0)
    return counts


def measure(
    truth: Truth,
    models: Sequence[Predictions],
    asked: Asked | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure models on the same images, a group of categories at a time.

    Args:
        truth: the labels.
        models: m of them.
        asked: what is measured; None for everything.
        progress: told the categories done and all of them.
    """
    asked, c = asked or Asked(), len(truth.categories)
    tallies = [_Tally(model, asked, c) for model in models]
    drawn = range(len(models)) if asked.resampled is None else asked.resampled
    resampled: Resampled = {metric: np.full((len(drawn), asked.resamples, c), np.nan, np.float32) for metric in METRICS}
    for some, labels, known, blocks in _groups(truth, models):
        for tally, block in zip(tallies, blocks, strict=True):
            tally.add(some, block, labels, known)
        if asked.resamples and len(truth):
            wide = np.stack([blocks[i].scores for i in drawn])
            options = {"groups": truth.groups, "resamples": asked.resamples, "seed": asked.seed}
            for metric, scores in bootstrap.resample(wide, labels, known, **options).items():
                resampled[metric][..., some] = scores
        if progress is not None:
            progress(some.stop, c)
    if asked.decisions:
        pooled = [Pooled(tally.positives) for tally in tallies]
        for some, labels, known, blocks in _groups(truth, models):
            for model, pool, block in zip(models, pooled, blocks, strict=True):
                # Scores of one category are not on the scale of another's.
                if model.only_ranks:
                    continue
                pool.add(block.probs[known & ~labels & model.given[None, some]])
        for tally, pool in zip(tallies, pooled, strict=True):
            tally.micro_average = pool.average_precision()
    by_place: dict[Metric, dict[int, Float[np.ndarray, "r c"]]] = {}
    for metric, values in resampled.items():
        by_place[metric] = dict(zip(drawn, values, strict=True))
    unit = truth.unit if truth.groups is None else "groups"
    positive, negative = known_counts(truth)
    return Measured([tally.scores() for tally in tallies], positive, negative, by_place, unit)


Group = tuple[slice, Bool[np.ndarray, "n g"], Bool[np.ndarray, "n g"], list[Block]]


def _groups(truth: Truth, models: Sequence[Predictions]) -> Iterator[Group]:
    """Categories, so many at a time that all models' predictions stay in memory, with labels and what is known."""
    for some in category_groups(len(truth), len(truth.categories), 2 * len(models)):
        yield some, *truth.block(some), [model.block(some) for model in models]


class _Tally:
    """What has been measured of one model so far, a group of categories after another."""

    def __init__(self, model: Predictions, asked: Asked, c: int) -> None:
        self.model, self.asked = model, asked
        self.each = {name: np.full(c, np.nan) for name in PER_CATEGORY}
        self.counts = Counts(*(np.zeros(c, np.int64) for _ in range(3)))
        self.bins = reliability.bins(*(np.zeros((0, 1), dtype) for dtype in (np.float32, bool, bool)))
        self.curves: dict[int, Curve] = {}
        # Probabilities of the known positives, for the micro average.
        self.positives: list[Float64[np.ndarray, " _"]] = []
        self.micro_average = float("nan")

    def add(self, some: slice, block: Block, labels: Bool[np.ndarray, "n g"], known: Bool[np.ndarray, "n g"]) -> None:
        """Measure some categories."""
        for metric in METRICS:
            self.each[metric][some] = metrics.score(metric, block.scores, labels, known)
        if self.model.calibrated:
            self._add_reliability(some, block, labels, known)
        for c in range(some.start, some.stop):
            if c in self.asked.drawn and self.model.given[c]:
                told = known[:, c - some.start]
                curve = curves.curve(block.scores[told, c - some.start], labels[told, c - some.start])
                self.curves |= {} if curve is None else {c: curve}
        if self.asked.decisions:
            self._add_decisions(some, block, labels, known & self.model.given[None, some])

    def _add_reliability(self, some: slice, block: Block, labels: np.ndarray, known: np.ndarray) -> None:
        for j in np.flatnonzero(self.model.given[some]).tolist():
            own = reliability.bins(block.probs[:, j : j + 1], labels[:, j : j + 1], known[:, j : j + 1])
            self.bins += own
            self.each["ECE"][some.start + j] = own.calibration_error

    def _add_decisions(self, some: slice, block: Block, labels: np.ndarray, given: np.ndarray) -> None:
        if self.model.only_ranks:
            return
        self.positives.append(block.probs[labels & given].astype(np.float64))
        counts = decided.count(block.probs, self.model.thresholds[some], labels, given)
        for total, part in zip(self.counts, counts, strict=True):
            total[some] = part

    def scores(self) -> ModelScores:
        """What there is once all categories are in."""
        model = self.model
        overall = {MEAN[metric]: metrics.mean_of(self.each[metric]) for metric in METRICS}
        overall |= {"micro_AP": self.micro_average, "ECE": self.bins.calibration_error}
        # A model without a threshold decides nothing, which is neither right nor wrong.
        decides = ~np.isnan(model.thresholds) & model.given
        each, over = decided.at_thresholds(Counts(*(np.where(decides, part, 0) for part in self.counts)))
        ordered = {name: (overall | over)[name] for name in OVERALL}
        return ModelScores(model.name, self.each | each, ordered, model.thresholds, self.bins, self.curves)


def interval_of(measured: Measured, place: int, metric: Metric, category: int | None = None) -> Interval:
    """A metric of one model, of one category or of their mean where none is named, with its interval."""
    samples, value = measured.resampled[metric][place], measured.scores[place].each[metric]
    if category is not None:
        return bootstrap.score_interval(float(value[category]), samples[:, category])
    return bootstrap.score_interval(metrics.mean_of(value), means(samples))


class Difference(NamedTuple):
    """How much one model exceeds another: the interval of the paired difference, and its two-sided p value."""

    interval: Interval
    p: float


def difference(measured: Measured, first: int, second: int, metric: Metric, category: int | None = None) -> Difference:
    """First less second, in one metric; a mean is over the categories that both give."""
    value = measured.scores[first].each[metric] - measured.scores[second].each[metric]
    samples = measured.resampled[metric][first] - measured.resampled[metric][second]
    point = metrics.mean_of(value) if category is None else float(value[category])
    drawn = means(samples) if category is None else samples[:, category]
    return Difference(bootstrap.interval(point, drawn), float("nan") if np.isnan(point) else bootstrap.p_value(drawn))


def means(samples: Float[np.ndarray, "r c"]) -> Float64[np.ndarray, " r"]:
    """The mean over categories of each resample."""
    return np.asarray(metrics.mean_defined(samples), np.float64) if len(samples) else np.empty(0)
