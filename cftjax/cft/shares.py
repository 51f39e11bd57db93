"""How much of the head that came is kept, by one share for all categories, and the logits on a probability's scale.

The committee has been judged by lanes that have learned from a part of the labels; the head that came was picked with a
look at these very images. Both speak for the head more than they should, by as much as a standard error seems little to
allow. The head's share is the probability that it is better all the same: near 0 where validation is clear, near 1
where nothing speaks for a change, and in between a mean of both, where a choice would be a coin's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import stats

from cftjax import decisions, metrics
from cftjax.cft import committee, members, rules
from cftjax.cft.committee import Committee
from cftjax.config import Metric
from cftjax.data import sparse
from cftjax.data.sparse import SparseLabels
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
    given, old = sparse.of(judging.given), _Came(came, whole, judging)
    fitted_on = None if fitted_on is None else Embeddings.of(fitted_on.z, sparse.of(fitted_on.given))
    scores = {
        "backbone": _scores(metric, old.ready, given),
        "mean": _scores(metric, lambda some: whole.out_of_fold[:, some], given),
    }
    part, gain, error = 0.0, float("nan"), float("nan")
    if compared:
        gain = float(metrics.mean_defined(scores["mean"])) - float(metrics.mean_defined(scores["backbone"]))
        pairs = (np.stack([old.ready(some), whole.out_of_fold[:, some]]) for some in members.blocks_of(given, 2))
        error = committee.gain_error(pairs, given, judging.groups, metric)
        part = head_share(gain, error)
    changed = np.array([c not in whole.untuned and part < 1 for c in range(len(came.bias))])
    mixed = Heads(
        (1 - part) * np.asarray(whole.heads.kernel) + part * np.asarray(came.kernel) / old.deviation[:, None],
        (1 - part) * np.asarray(whole.heads.bias) + part * (np.asarray(came.bias) - whole.base_mean) / old.deviation,
    )
    out_of_fold = np.empty_like(whole.out_of_fold)
    lines = np.ones(len(changed)), np.zeros(len(changed))
    for some in members.blocks_of(given, 2):
        logits = (1 - part) * whole.out_of_fold[:, some] + part * old.ready(some)
        for c in np.flatnonzero(changed[some]):
            place = some.start + int(c)
            line = _line(mixed, place, logits[:, c], given, fitted_on)
            lines[0][place], lines[1][place] = line
        scale, shift = (values[some] for values in lines)
        out_of_fold[:, some] = np.where(changed[some], logits * scale + shift, old.logits(some))
    heads = Heads(
        np.where(changed[:, None], mixed.kernel * lines[0][:, None], came.kernel).astype(np.float32),
        np.where(changed, mixed.bias * lines[0] + lines[1], came.bias).astype(np.float32),
    )
    scores["final"] = _scores(metric, lambda some: out_of_fold[:, some], given)
    if not compared:
        del scores["backbone"]
    unjudged = [int(c) for c in np.flatnonzero(changed & np.isnan(scores["final"]))]
    return Shared(heads, out_of_fold, part, gain, error, scores, unjudged)


@dataclasses.dataclass(frozen=True)
class _Came:
    """The heads that came, on the judging images, for some categories at a time."""

    heads: Heads
    whole: Committee
    judging: Embeddings

    @functools.cached_property
    def deviation(self) -> Float[np.ndarray, " c"]:
        """Of their logits over all images; 1 where they do not vary."""
        return np.where(self.whole.base_deviation > 0, self.whole.base_deviation, 1.0)

    def logits(self, some: slice) -> Float[np.ndarray, "v _"]:
        """As they are."""
        z = self.judging.z if self.judging.z.ndim == 2 else self.judging.z[:, some]
        return np.asarray(Heads(np.asarray(self.heads.kernel)[some], np.asarray(self.heads.bias)[some])(z))

    def ready(self, some: slice) -> Float[np.ndarray, "v _"]:
        """On the scale of the committee's."""
        return (self.logits(some) - self.whole.base_mean[some]) / self.deviation[some]


def _scores(
    metric: Metric, logits: Callable[[slice], Float[np.ndarray, "v _"]], given: SparseLabels
) -> Float[np.ndarray, " c"]:
    """Of logits that are read some categories at a time."""
    each = [
        rules.score(metric, logits(some)[None], given.labels[:, some], given.known[:, some])[0]
        for some in members.blocks_of(given, 2)
    ]
    return np.concatenate(each)


def _line(
    mixed: Heads,
    category: int,
    logits: Float[np.ndarray, " v"],
    given: SparseLabels,
    fitted_on: Embeddings | None,
) -> tuple[float, float]:
    """Scale and bias of a category, by logistic regression on the logits; 1 and 0 where there is nothing to fit."""
    rows, values = (given if fitted_on is None else sparse.of(fitted_on.given)).of_category(category)
    rows, targets = rows[values >= 0], values[values >= 0] == 1
    if not targets.any() or targets.all():
        return 1.0, 0.0
    if fitted_on is None:
        scores = logits[rows]
    else:
        z = np.asarray((fitted_on.z if fitted_on.z.ndim == 2 else fitted_on.z[:, category])[rows], np.float32)
        scores = z @ np.asarray(mixed.kernel)[category] + np.asarray(mixed.bias)[category]
    return decisions.sigmoid_fit(scores.astype(np.float64), targets, with_offset=True)
