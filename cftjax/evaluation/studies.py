"""Studies of several images: which rows belong together, and what labels and predictions become of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from cftjax.scores.logits import category_groups
from cftjax.scores.predictions import Block, Predictions, Truth
from cftjax.text import shown

Aggregate = Literal["max", "mean"]


def studies(
    names: Sequence[str] | None, pattern: re.Pattern[str], source: str
) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    """Which study each row belongs to: what the pattern finds in its name, or its first group.

    Returns:
        Studies in the order in which they first occur, and [n] the place among them of each row.

    Raises:
        ValueError: where rows have no names, or the pattern finds nothing in one.
    """
    if names is None:
        raise ValueError(
            f"{source} does not say which image is which, since its embeddings were made before names were kept with "
            "them: delete its folder embeddings and run the training command again"
        )
    found: dict[str, int] = {}
    index = np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        match = pattern.search(name)
        if match is None:
            raise ValueError(
                f"{source}: row {row + 1} is {shown(name)}, in which {pattern.pattern!r} finds nothing; give --study a "
                "pattern of the names, '.+' for the whole name"
            )
        index[row] = found.setdefault(match.group(1 if pattern.groups else 0), len(found))
    return tuple(found), index


def aggregated(
    values: Float[np.ndarray, "n g"], index: Int[np.ndarray, " n"], num: int, how: Aggregate
) -> Float[np.ndarray, "u g"]:
    """Maximum or mean over the rows of each unit; NaN where a unit has none, or one of them is NaN."""
    order = np.argsort(index, kind="stable")
    order = order[index[order] >= 0]
    present, starts, counts = np.unique(index[order], return_index=True, return_counts=True)
    out = np.full((num, values.shape[1]), np.nan, np.float64)
    if len(present):
        reduce = np.maximum if how == "max" else np.add
        out[present] = reduce.reduceat(values[order].astype(np.float64), starts, axis=0)
        if how == "mean":
            out[present] /= counts[:, None]
    return out


def truth_of_studies(truth: Truth, names: Sequence[str], index: Int[np.ndarray, " n"]) -> Truth:
    """Labels per study: positive where any of its images is known to be, else negative where any is known to be.

    A finding that one view shows is there in the study. How many labels disagree is noted.
    """
    shape = (len(names), len(truth.categories))
    labels, known = np.zeros(shape, bool), np.zeros(shape, bool)
    disagreements, first = 0, ""
    for some in category_groups(len(truth), shape[1], 1):
        value, told = truth.block(some)
        negative = np.zeros((shape[0], value.shape[1]), bool)
        np.logical_or.at(labels[:, some], index, value)
        np.logical_or.at(negative, index, told & ~value)
        both = labels[:, some] & negative
        if both.any() and not first:
            row, column = np.argwhere(both)[0]
            first = f"{truth.categories[some.start + column]} of {names[row]}"
        disagreements += int(both.sum())
        known[:, some] = labels[:, some] | negative
    notes = truth.notes
    if disagreements:
        notes += (
            f"Images of one study disagree in {disagreements:,} labels, first in {first}; it counts as positive.",
        )
    groups = truth.groups
    if groups is not None:
        groups = groups[np.unique(index, return_index=True)[1]]
    return dataclasses.replace(
        truth, labels=labels, known=known, names=tuple(names), groups=groups, unit="studies", notes=notes
    )


def predictions_of_studies(
    predictions: Predictions, index: Int[np.ndarray, " n"], num: int, how: Aggregate
) -> Predictions:
    """A model's predictions per study; thresholds stay those of images."""

    def block(some: slice) -> Block:
        scores, probs = predictions.block(some)
        merged = aggregated(probs, index, num, how)
        # The study of the highest logit is that of the highest probability; a mean is one of probabilities.
        return Block(aggregated(scores, index, num, how) if how == "max" else merged, merged)

    return dataclasses.replace(predictions, block=block)
