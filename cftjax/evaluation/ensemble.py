"""One model of several: means of their probabilities or ranks, with weights that validation picks or without.

Weights are those of one category each, non-negative, and sum to 1 over the models that give it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy import stats

from cftjax import metrics
from cftjax.config import Metric
from cftjax.scores.logits import category_groups
from cftjax.scores.predictions import Block, Predictions, Truth

Combine = Literal["mean", "rank", "weighted", "greedy"]
NAME = "ensemble"
# Probabilities below this count as this in a likelihood: a single certain and wrong one is not the end.
LEAST_PROBABILITY = 1e-6
# Nats per known label that the fitted weights may lie below the best ones.
TOLERANCE = 1e-5
MOST_ROUNDS = 2000
# Models that greedy selection picks at most, repeats counted; of all lengths up to it the best one stays.
MOST_PICKS = 20


@dataclasses.dataclass(frozen=True)
class Weights:
    """How much each model counts.

    Attributes:
        values: [m c]; a category's sum to 1, or are all 0 where no model gives it.
        unfitted: category -> why it has equal weights, though weights were to be fitted.
        picks: of greedy selection, [m c] how often each model was picked; None for other ways.
    """

    values: Float64[np.ndarray, "m c"]
    unfitted: dict[str, str]
    picks: Int[np.ndarray, "m c"] | None = None


def equal(given: Bool[np.ndarray, "m c"]) -> Float64[np.ndarray, "m c"]:
    """The same weight for every model that gives the category."""
    return given / np.maximum(given.sum(axis=0), 1)[None, :]


def ranks(probs: Float[np.ndarray, "n g"]) -> Float64[np.ndarray, "n g"]:
    """The share of the rows that each one exceeds, those equal to it by half, so that all lie in (0, 1)."""
    return (stats.rankdata(probs, axis=0, nan_policy="propagate") - 0.5) / max(len(probs), 1)


def combined(models: Sequence[Predictions], weights: Float64[np.ndarray, "m c"], *, of_ranks: bool) -> Predictions:
    """The ensemble: a weighted mean of probabilities, or of ranks among the rows at hand.

    Args:
        models: m of them; those that give only scores need ranks.
        weights: as in `Weights.values`; those of models that do not give a category must be 0.
        of_ranks: whether ranks are averaged, which need not be on one scale and are no probabilities afterwards.
    """
    given = weights.sum(axis=0) > 0

    def block(some: slice) -> Block:
        total = None
        for model, weight in zip(models, weights, strict=True):
            scores, probs = model.block(some)
            probs = (scores if model.only_ranks else probs).astype(np.float64)
            probs = ranks(probs) if of_ranks else probs
            part = np.where(weight[None, some] > 0, weight[None, some] * probs, 0.0)
            total = part if total is None else total + part
        assert total is not None
        mean = np.where(given[None, some], total, np.nan)
        return Block(mean, mean)

    return Predictions(NAME, given, block, np.full(len(given), np.nan), calibrated=not of_ranks)


def fit(models: Sequence[Predictions], truth: Truth, how: Literal["weighted", "greedy"], metric: Metric) -> Weights:
    """Weights of every category, fitted on images that the models were not trained on.

    A category of which no positive or no negative is known keeps equal weights, as does one that a single model gives.

    Args:
        models: predictions of validation.
        truth: its labels.
        how: `weighted` maximises the likelihood of the known labels, `greedy` their AP or AUROC.
        metric: of greedy selection.
    """
    given = np.stack([model.given for model in models])
    values, picks, unfitted = equal(given), np.zeros(given.shape, np.int64), {}
    for some in category_groups(len(truth), given.shape[1], 4 * len(models)):
        labels, known = truth.block(some)
        probs = np.stack([model.block(some).probs for model in models]).astype(np.float64)
        fitted = np.zeros(probs.shape[2], bool)
        for j in range(probs.shape[2]):
            c = some.start + j
            told, members = known[:, j], np.flatnonzero(given[:, c])
            if len(members) < 2:
                continue
            if missing := "positive" if not labels[told, j].any() else "negative" if labels[told, j].all() else "":
                unfitted[truth.categories[c]] = f"no known {missing} in {truth.source}"
                continue
            fitted[j] = True
            if how == "weighted":
                values[members, c] = most_likely(probs[members][:, told, j], labels[told, j])
        if how == "greedy" and fitted.any():
            chosen = np.flatnonzero(fitted)
            columns = some.start + chosen
            picked = greedy(probs[..., chosen], labels[:, chosen], known[:, chosen], given[:, columns], metric)
            picks[:, columns] = picked
            values[:, columns] = picked / picked.sum(axis=0)
    return Weights(values, unfitted, picks if how == "greedy" else None)


def most_likely(probs: Float[np.ndarray, "m k"], labels: Bool[np.ndarray, " k"]) -> Float64[np.ndarray, " m"]:
    """The weights under which the mean of probabilities makes the labels most likely.

    Expectation maximisation for a mixture of fixed parts (Dempster, Laird & Rubin 1977, section 4.3): the problem is
    convex, and the largest of the gradient's entries less 1 bounds what is still to gain.

    Args:
        probs: of m models for k known labels.
        labels: of them.
    """
    likelihood = np.maximum(np.where(labels, probs, 1 - probs), LEAST_PROBABILITY)
    weights = np.full(len(probs), 1 / len(probs))
    for _ in range(MOST_ROUNDS):
        gradient = np.mean(likelihood / (weights @ likelihood), axis=1)
        if gradient.max() - 1 < TOLERANCE:
            break
        weights = weights * gradient
    return weights / weights.sum()


def greedy(
    probs: Float[np.ndarray, "m n g"],
    labels: Bool[np.ndarray, "n g"],
    known: Bool[np.ndarray, "n g"],
    given: Bool[np.ndarray, "m g"],
    metric: Metric,
) -> Int[np.ndarray, "m g"]:
    """How often each model is picked: again and again the one with which the mean scores best.

    Selection with replacement (Caruana et al., "Ensemble selection from libraries of models", ICML 2004); of all
    lengths up to `MOST_PICKS` the first with the best score stays. Equals go to the model that was named first.
    """
    m, n, g = probs.shape
    total, picks = np.zeros((n, g)), np.zeros((m, g), np.int64)
    best, kept = np.full(g, -np.inf), picks.copy()
    each = np.arange(g)
    for _ in range(MOST_PICKS):
        # A sum ranks as its mean does.
        candidates = np.moveaxis(total[None] + probs, 0, 1).reshape(n, m * g)
        wide = (np.tile(x, (1, m)) for x in (labels, known))
        scores = np.asarray(metrics.score(metric, candidates, *wide), np.float64).reshape(m, g)
        scores = np.where(given, scores, -np.inf)
        pick = scores.argmax(axis=0)
        picks[pick, each] += 1
        total += probs[pick, :, each].T
        better = scores[pick, each] > best
        best = np.where(better, scores[pick, each], best)
        kept[:, better] = picks[:, better]
    return kept
