"""How much of the head that came is kept, by one share for all categories, and the logits on a probability's scale.

The committee has been judged by lanes that have learned from a part of the labels; the head that came was picked with a
look at these very images. Both speak for the head more than they should, by as much as a standard error seems little to
allow. The head's share is the probability that it is better all the same: near 0 where validation is clear, near 1
where nothing speaks for a change, and in between a mean of both, where a choice would be a coin's.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from cftjax import decisions, metrics
from cftjax.cft import committee, rules
from cftjax.cft.committee import Committee
from cftjax.config import Metric
from cftjax.types import Embeddings, Heads

# In standard errors: what the head that came is forgiven less.
ALLOWANCE = 1.0
# Shares nearer than this to 0 or 1 are taken for it.
CERTAIN = 0.05


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all categories keep.

    Attributes:
        heads: [c d], on the scale of logits.
        out_of_fold: [v c] their logits of the judging images, each by a head that has not learned from its fold.
        share: of the head that came, in [0, 1].
        gain: of the committee over it in the mean score, out of fold; NaN where it was not compared.
        error: standard error of the gain.
        scores: `backbone` and `final` -> [c], of the same logits.
        unjudged: categories without a known positive or negative among the judging labels; they follow the others.
    """

    heads: Heads
    out_of_fold: Float[np.ndarray, "v c"]
    share: float
    gain: float
    error: float
    scores: dict[str, Float[np.ndarray, " c"]]
    unjudged: list[int]


def head_share(gain: float, error: float) -> float:
    """The probability that the head that came is better, rounded where it is next to certain."""
    if not np.isfinite(error) or np.isnan(gain):
        return 1.0
    share = float(stats.norm.cdf(-gain / max(error, 1e-9) - ALLOWANCE))
    return 0.0 if share < CERTAIN else 1.0 if share > 1 - CERTAIN else share


def share(
    whole: Committee,
    came: Heads,
    judging: Embeddings,
    *,
    metric: Metric,
    fitted_on: Embeddings | None,
    compared: bool,
) -> Shared:
    """Mix the committee with the heads that came, and fit scale and bias of every category.

    Args:
        whole: the committee.
        came: the heads that came.
        judging: embeddings and labels that judge.
        metric: of the mean score.
        fitted_on: labels that scale and bias are fitted to; None for the judging ones, out of fold.
        compared: whether the head that came may be compared: not where it has learned from the judging labels.
    """
    labels, known = np.asarray(judging.labels, bool), np.asarray(judging.known, bool)
    base = np.asarray(came(judging.z))
    deviation = np.where(whole.base_deviation > 0, whole.base_deviation, 1.0)
    ready = (base - whole.base_mean) / deviation
    scores = {
        name: rules.score(metric, logits[None], labels, known)[0]
        for name, logits in (("backbone", ready), ("mean", whole.out_of_fold))
    }
    part, gain, error = 0.0, float("nan"), float("nan")
    if compared:
        gain = float(metrics.mean_defined(scores["mean"])) - float(metrics.mean_defined(scores["backbone"]))
        error = committee.gain_error(ready, whole.out_of_fold, labels, known, judging.groups, metric)
        part = head_share(gain, error)
    changed = np.array([c not in whole.untuned and part < 1 for c in range(len(came.bias))])
    mixed = Heads(
        (1 - part) * np.asarray(whole.heads.kernel) + part * np.asarray(came.kernel) / deviation[:, None],
        (1 - part) * np.asarray(whole.heads.bias) + part * (np.asarray(came.bias) - whole.base_mean) / deviation,
    )
    logits = (1 - part) * whole.out_of_fold + part * ready
    lines = _lines(mixed, logits, labels, known, fitted_on, changed)
    heads = Heads(
        np.where(changed[:, None], mixed.kernel * lines[0][:, None], came.kernel).astype(np.float32),
        np.where(changed, mixed.bias * lines[0] + lines[1], came.bias).astype(np.float32),
    )
    out_of_fold = np.where(changed, logits * lines[0] + lines[1], base).astype(np.float32)
    scores["final"] = rules.score(metric, out_of_fold[None], labels, known)[0]
    if not compared:
        del scores["backbone"]
    unjudged = [int(c) for c in np.flatnonzero(changed & np.isnan(scores["final"]))]
    return Shared(heads, out_of_fold, part, gain, error, scores, unjudged)


def _lines(
    mixed: Heads,
    logits: Float[np.ndarray, "v c"],
    labels: Bool[np.ndarray, "v c"],
    known: Bool[np.ndarray, "v c"],
    fitted_on: Embeddings | None,
    changed: Bool[np.ndarray, " c"],
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Scale and bias of each category, by logistic regression on the logits; 1 and 0 where there is nothing to fit."""
    if fitted_on is not None:
        labels, known = np.asarray(fitted_on.labels, bool), np.asarray(fitted_on.known, bool)
    scale, bias = np.ones(len(changed)), np.zeros(len(changed))
    for c in np.flatnonzero(changed):
        rows = known[:, c]
        targets = labels[rows, c]
        if not targets.any() or targets.all():
            continue
        if fitted_on is None:
            values = logits[rows, c]
        else:
            z = np.asarray((fitted_on.z if fitted_on.z.ndim == 2 else fitted_on.z[:, c])[rows], np.float32)
            values = z @ np.asarray(mixed.kernel)[c] + np.asarray(mixed.bias)[c]
        scale[c], bias[c] = decisions.sigmoid_fit(values.astype(np.float64), targets, with_offset=True)
    return scale, bias
