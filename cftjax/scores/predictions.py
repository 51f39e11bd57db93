"""What models say about the same images, and what is true of them; read a group of categories at a time.

A model is whatever gives probabilities: a run, a file that another program wrote, an ensemble of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from cftjax.decisions import Decisions
from cftjax.report import write
from cftjax.runs import Run
from cftjax.text import few, shown
from cftjax.types import Array

Aggregate = Literal["max", "mean"]
# Scores and probabilities of all models for one group of categories, in bytes.
BLOCK_BYTES = 512 * 2**20


class Block(NamedTuple):
    """Some categories' predictions; NaN in the columns of categories that the model does not give.

    Attributes:
        scores: [n g] what ranks: raw logits where there are any, for a sigmoid makes ties.
        probs: [n g] in [0, 1].
    """

    scores: Float[np.ndarray, "n g"]
    probs: Float[np.ndarray, "n g"]


@dataclasses.dataclass(frozen=True)
class Truth:
    """The labels that models are measured by.

    Attributes:
        categories: names, length c.
        labels: [n c], read where known; may be a memory map.
        known: [n c].
        source: what to call the images: a split, or a file.
        names: of the rows: paths or studies; None where nothing says.
        groups: [n] what the bootstrap draws together, such as patients; None where every row stands alone.
        unit: "images" or "studies".
        notes: what a reader must know besides.
    """

    categories: tuple[str, ...]
    labels: Array
    known: Array
    source: str
    names: Sequence[str] | None = None
    groups: Shaped[np.ndarray, " n"] | None = None
    unit: str = "images"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def block(self, some: slice) -> tuple[Bool[np.ndarray, "n g"], Bool[np.ndarray, "n g"]]:
        """Labels and known of some categories, in memory; no label is true that is not known."""
        known = np.asarray(self.known[:, some], bool)
        return np.asarray(self.labels[:, some], bool) & known, known


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One model's predictions for the rows of a `Truth`.

    Attributes:
        name: of the model.
        given: [c] the categories that it gives.
        block: reads some of the categories.
        thresholds: [c] on its probabilities; NaN where it has none.
        calibrated: whether its probabilities are meant as such; mean ranks are not.
    """

    name: str
    given: Bool[np.ndarray, " c"]
    block: Callable[[slice], Block]
    thresholds: Float[np.ndarray, " c"]
    calibrated: bool = True


def category_groups(n: int, c: int, num_models: int) -> Iterator[slice]:
    """Groups of categories whose predictions by all models fit into `BLOCK_BYTES` together."""
    size = max(1, BLOCK_BYTES // (16 * max(n, 1) * max(num_models, 1)))
    return (slice(start, min(start + size, c)) for start in range(0, c, size))


def of_run(run: Run, split: str, name: str) -> tuple[Truth, Predictions]:
    """A run's labels of a split, and what its final heads say: probabilities calibrated as the run's decisions are."""
    embeddings, heads, decisions = run.embeddings(split), run.heads("final"), run.decisions()

    def block(some: slice) -> Block:
        logits = write.logits({"final": heads}, embeddings, some)["final"]
        return Block(logits, columns(decisions, some).probabilities(logits))

    truth = Truth(
        run.categories, embeddings.labels, embeddings.known, split, run.names(split), embeddings.groups, "images"
    )
    return truth, Predictions(name, np.ones(len(run.categories), bool), block, decisions.thresholds)


def columns(decisions: Decisions, some: slice) -> Decisions:
    """Decisions of some of the categories."""
    parts = {name: getattr(decisions, name)[some] for name in ("categories", "thresholds", "scale", "offset", "knots")}
    return dataclasses.replace(decisions, **parts)


def check_same(first: Truth, second: Truth, names: tuple[str, str]) -> None:
    """Refuse runs that were not made on the same images, labels and categories.

    Raises:
        ValueError: which names both runs and the first difference.
    """
    pair = f"{names[0]} and {names[1]}"
    mend = "an ensemble needs runs on the same data"
    if first.categories != second.categories:
        only = [sorted(set(a.categories) - set(b.categories)) for a, b in ((first, second), (second, first))]
        what = "; ".join(f"only {n} has {few(o, 5)}" for n, o in zip(names, only, strict=True) if o)
        raise ValueError(f"{pair} have different categories ({what or 'in another order'}); {mend}")
    if len(first) != len(second):
        raise ValueError(
            f"{pair} have {len(first):,} and {len(second):,} {first.unit} in {first.source}; {mend} and split"
        )
    if first.names is not None and second.names is not None:
        for row, (a, b) in enumerate(zip(first.names, second.names, strict=True)):
            if a != b:
                raise ValueError(f"{pair} have other {first.unit} in {first.source}: row {row} is {a} and {b}; {mend}")
    for some in category_groups(len(first), len(first.categories), 1):
        for what, a, b in zip(("labels", "known labels"), first.block(some), second.block(some), strict=True):
            if (a != b).any():
                row, column = np.argwhere(a != b)[0]
                category = first.categories[some.start + column]
                raise ValueError(f"{pair} have other {what} in {first.source}: first row {row}, {category}; {mend}")


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
