"""Picking one of several heads per category by validation, which is small and has been looked at often.

Gains over the first head are what is compared, on the same images. A gain carries the luck of those images: plain
`best` takes it at its word, `one_se` wants it to exceed its standard error, and `shrunken` moves it towards what the
same candidate gains on the other categories, the more so the less certain it is (the random-effects estimate of
DerSimonian & Laird 1986), before it takes the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from cftjax import bootstrap
from cftjax.config import Metric, PickRule

RESAMPLES = 100


def standard_errors(
    logits: Sequence[Float[np.ndarray, "n c"]],
    labels: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    metric: Metric,
    groups: np.ndarray | None,
) -> Float[np.ndarray, "k c"]:
    """Of each candidate's gain over the first, by paired bootstrap; NaN where no two resamples are defined."""
    found = bootstrap.resample(np.stack(logits), labels, known, groups=groups, resamples=RESAMPLES)
    samples = found.AP if metric == "AP" else found.AUROC
    gains = samples - samples[:1]
    defined = ~np.isnan(gains)
    count = defined.sum(1)
    mean = np.where(defined, gains, 0.0).sum(1) / np.maximum(count, 1)
    squares = np.where(defined, (gains - mean[:, None]) ** 2, 0.0).sum(1)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


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


def pick(
    rule: PickRule, scores: Float[np.ndarray, "k c"], errors: Float[np.ndarray, "k c"] | None
) -> Int[np.ndarray, " c"]:
    """The candidate that each category keeps; the first where no other is expected to be better.

    Args:
        rule: see the module.
        scores: validation AP or AUROC of k candidates; NaN where undefined.
        errors: standard errors of their gains over the first; not read by `best`.
    """
    gains = scores - scores[:1]
    if rule != "best":
        if errors is None:
            raise ValueError(f"rule {rule!r} needs standard errors")
        if rule == "shrunken":
            gains = np.stack([shrink(gain, error) for gain, error in zip(gains, errors, strict=True)])
        else:
            gains = np.where(gains > np.nan_to_num(errors, nan=np.inf), gains, 0.0)
    return np.argmax(np.where(np.isnan(gains), -np.inf, gains), axis=0)
