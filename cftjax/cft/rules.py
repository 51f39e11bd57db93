"""Picking one of several heads per category by validation, which is small and has been looked at often.

Gains over the first head are what is compared, on the same images. A gain carries the luck of those images. Plain
`best` takes it at its word. `one_se` wants it to exceed its standard error. `cross_validated` wants the picking itself
to gain: on images that had no part in it, averaged over folds. `shrunken` moves each gain towards what the same
candidate gains on the other categories, the more so the less certain it is (the random-effects estimate of DerSimonian
& Laird 1986), before it takes the largest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from cftjax import metrics
from cftjax.config import Metric, PickRule
from cftjax.data import sparse
from cftjax.data.sparse import SparseLabels
from cftjax.scores import bootstrap
from cftjax.types import together

RESAMPLES = 100
FOLDS = 5


def folds(given: SparseLabels, groups: np.ndarray | None, seed: int = 0) -> Int[np.ndarray, " m"]:
    """Which of FOLDS holds each entry: positives and negatives of a category spread alike, or whole groups."""
    rng = np.random.default_rng(seed)
    n, c = given.shape
    rows = given.rows()
    if groups is not None:
        member = np.unique(groups, return_inverse=True)[1]
        return (rng.permutation(int(member.max()) + 1)[member] % FOLDS)[rows]
    fold, by_category = np.zeros(len(rows), int), np.argsort(given.categories, kind="stable")
    ends = np.cumsum(np.bincount(given.categories, minlength=c))
    for entries in np.split(by_category, ends[:-1]):
        place = np.empty(n, np.int64)
        place[rng.permutation(n)] = np.arange(n)
        place = place[rows[entries]]
        for value in (1, 0):
            mine = entries[given.values[entries] == value]
            order = np.argsort(place[given.values[entries] == value])
            fold[mine[order]] = np.arange(len(mine)) % FOLDS
    return fold


def score(
    metric: Metric, logits: Float[np.ndarray, "k n c"], labels: Bool[np.ndarray, "n c"], where: Bool[np.ndarray, "n c"]
) -> Float[np.ndarray, "k c"]:
    """AP or AUROC of each candidate on the labels `where` they are known; NaN where undefined."""
    k, n, c = logits.shape
    wide = (np.tile(x, (1, k)) for x in (labels, where))
    return np.asarray(metrics.score(metric, logits.transpose(1, 0, 2).reshape(n, k * c), *wide)).reshape(k, c)


def standard_errors(
    metric: Metric,
    logits: Float[np.ndarray, "k n c"],
    labels: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    groups: np.ndarray | None,
) -> Float[np.ndarray, "k c"]:
    """Of each candidate's gain over the first, by paired bootstrap; NaN where no two resamples are defined."""
    samples = bootstrap.resample(logits, labels, known, groups=groups, resamples=RESAMPLES)[metric]
    gains = samples - samples[:1]
    defined = ~np.isnan(gains)
    count = defined.sum(1)
    mean = np.where(defined, gains, 0.0).sum(1) / np.maximum(count, 1)
    squares = np.where(defined, (gains - mean[:, None]) ** 2, 0.0).sum(1)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def held_out_gains(
    metric: Metric,
    logits: Float[np.ndarray, "k n c"],
    labels: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    groups: np.ndarray | None,
) -> Float[np.ndarray, " c"]:
    """What picking the best gains over the first on a fold that it has not seen, mean over folds; NaN if undefined."""
    given = sparse.of(together(labels, known, None))
    fold, gains = folds(given, groups), []
    for i in range(FOLDS):
        sides = (given.keep(kept)[:].known for kept in (fold != i, fold == i))
        seen, unseen = (score(metric, logits, labels, side) for side in sides)
        picked = _best(seen - seen[:1])
        gains.append(np.take_along_axis(unseen - unseen[:1], picked[None], axis=0)[0])
    return np.asarray(metrics.mean_defined(np.stack(gains, axis=-1)))


def shrink(gains: Float[np.ndarray, " c"], errors: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """One candidate's gains moved towards their mean over the categories, by how much of their spread is error.

    Args:
        gains: NaN where undefined, and left so.
        errors: standard errors of the gains; where undefined or 0 a gain stays as it is.

    Returns:
        [c] expected gains.
    """
    usable = ~np.isnan(gains) & (errors > 0)
    if usable.sum() < 2:
        return gains
    gain, weight = gains[usable], 1 / errors[usable] ** 2
    fixed = np.average(gain, weights=weight)
    excess = (weight * (gain - fixed) ** 2).sum() - (len(gain) - 1)
    between = max(0.0, excess / (weight.sum() - (weight**2).sum() / weight.sum()))
    mean = np.average(gain, weights=1 / (between + errors[usable] ** 2))
    shrunken = gains.copy()
    shrunken[usable] = mean + (gain - mean) * between / (between + errors[usable] ** 2)
    return shrunken


@dataclasses.dataclass(frozen=True)
class Judged:
    """What validation says of k candidates for some categories.

    Attributes:
        scores: AP or AUROC, NaN where undefined.
        errors: standard errors of the gains over the first, where the rule reads them.
        held_out: what picking gains on images it has not seen, where the rule reads it.
    """

    scores: Float[np.ndarray, "k c"]
    errors: Float[np.ndarray, "k c"] | None = None
    held_out: Float[np.ndarray, " c"] | None = None


def judge(
    rule: PickRule,
    metric: Metric,
    logits: Float[np.ndarray, "k n c"],
    labels: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    groups: np.ndarray | None = None,
) -> Judged:
    """Measure what a rule reads of k candidates for some categories.

    Args:
        rule: see the module.
        metric: "AP" or "AUROC".
        logits: of the candidates on validation.
        labels: read only where known.
        known: what is judged by.
        groups: [n], whose images are resampled or held out together; None where every image stands alone.
    """
    scores = score(metric, logits, labels, known)
    if rule == "cross_validated":
        return Judged(scores, held_out=held_out_gains(metric, logits, labels, known, groups))
    errors = None if rule == "best" else standard_errors(metric, logits, labels, known, groups)
    return Judged(scores, errors)


def joined(judged: Sequence[Judged]) -> Judged:
    """Blocks of categories as one."""

    def together(name: str) -> np.ndarray | None:
        blocks = [getattr(block, name) for block in judged]
        return None if blocks[0] is None else np.concatenate(blocks, axis=-1)

    scores = np.concatenate([block.scores for block in judged], axis=1)
    return Judged(scores, together("errors"), together("held_out"))


def _best(gains: Float[np.ndarray, "k c"]) -> Int[np.ndarray, " c"]:
    return np.argmax(np.where(np.isnan(gains), -np.inf, gains), axis=0)


def pick(rule: PickRule, judged: Judged) -> Int[np.ndarray, " c"]:
    """The candidate that each category keeps; the first where no other is expected to be better.

    Args:
        rule: see the module.
        judged: all categories, for `shrunken` looks at them together; what the rule reads must be there.
    """
    gains = judged.scores - judged.scores[:1]
    if rule == "cross_validated" and judged.held_out is not None:
        gains = np.where(judged.held_out[None] > 0, gains, 0.0)
    elif rule != "best" and judged.errors is not None:
        if rule == "shrunken":
            gains = np.stack([shrink(gain, error) for gain, error in zip(gains, judged.errors, strict=True)])
        else:
            gains = np.where(gains > np.nan_to_num(judged.errors, nan=np.inf), gains, 0.0)
    elif rule != "best":
        raise ValueError(f"what rule {rule!r} reads was not judged")
    return _best(gains)
