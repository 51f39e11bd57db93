"""What models say about the same images, and what is true of them; read a group of categories at a time.

A model is whatever gives probabilities: a run, a file that another program wrote, an ensemble of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from cftjax.decisions import Decisions
from cftjax.runs import Run
from cftjax.scores import reliability
from cftjax.scores.logits import category_groups, logits
from cftjax.text import few
from cftjax.types import Embeddings, Heads, Matrix


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
        labels: [n c], read where known; may be a memory map, or of labels that are stored sparse.
        known: [n c].
        source: what to call the images: a split, or a file.
        names: of the rows: paths or studies; None where nothing says.
        groups: [n] what the bootstrap draws together, such as patients; None where every row stands alone.
        unit: "images" or "studies".
        notes: what a reader must know besides.
    """

    categories: tuple[str, ...]
    labels: Matrix
    known: Matrix
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
        only_ranks: whether it gives scores that rank, and no probabilities: those of its blocks are NaN.
        note: what a reader must know of it; mostly empty.
    """

    name: str
    given: Bool[np.ndarray, " c"]
    block: Callable[[slice], Block]
    thresholds: Float[np.ndarray, " c"]
    calibrated: bool = True
    only_ranks: bool = False
    note: str = ""


def of_run(run: Run, split: str, name: str) -> tuple[Truth, Predictions]:
    """A run's labels of a split, and what its final heads say: probabilities calibrated as the run's decisions are."""
    embeddings, decisions = run.embeddings(split), run.decisions()
    truth = of_embeddings(embeddings, run.categories, split, run.names(split))
    judged = run.out_of_fold() if split == "validation" else None
    unseen = {} if judged is None else {name: judged["final"]}
    (final,) = of_heads(embeddings, {name: run.heads("final")}, {name: decisions}, unseen)
    return truth, final


def of_embeddings(
    embeddings: Embeddings, categories: Sequence[str], split: str, names: Sequence[str] | None = None
) -> Truth:
    """The labels that embeddings come with."""
    return Truth(tuple(categories), embeddings.labels, embeddings.known, split, names, embeddings.groups, "images")


def of_heads(
    embeddings: Embeddings,
    heads: Mapping[str, Heads],
    decisions: Mapping[str, Decisions] | None = None,
    out_of_fold: Mapping[str, Float[np.ndarray, "n c"]] | None = None,
) -> list[Predictions]:
    """What heads say of the same embeddings, which are read once for all of them.

    Args:
        embeddings: of n images.
        heads: name -> heads.
        decisions: name -> calibration and thresholds; without them probabilities are sigmoids of the logits.
        out_of_fold: name -> logits that stand in for those of heads that have learned from these images.
    """
    shared, decisions, out_of_fold = _SharedLogits(embeddings, heads), decisions or {}, out_of_fold or {}

    def block_of(name: str) -> Callable[[slice], Block]:
        def block(some: slice) -> Block:
            raw = out_of_fold[name][:, some] if name in out_of_fold else shared.of(some)[name]
            if name not in decisions:
                return Block(raw, reliability.probabilities(raw))
            return Block(raw, columns(decisions[name], some).probabilities(raw))

        return block

    models = []
    for name, head in heads.items():
        c = len(head.bias)
        thresholds = decisions[name].thresholds if name in decisions else np.full(c, np.nan)
        models.append(Predictions(name, np.ones(c, bool), block_of(name), thresholds))
    return models


class _SharedLogits:
    """Logits of several heads: of the group of categories that was asked for last they are kept, for all heads.

    Models are asked for the same group in turn. Reading embeddings takes longer than multiplying them.
    """

    def __init__(self, embeddings: Embeddings, heads: Mapping[str, Heads]) -> None:
        self.embeddings, self.heads = embeddings, heads
        self.last: tuple[slice, dict[str, Float[np.ndarray, "n g"]]] | None = None

    def of(self, some: slice) -> dict[str, Float[np.ndarray, "n g"]]:
        """Name -> logits of some categories."""
        if self.last is None or self.last[0] != some:
            self.last = None  # before the next are made, for both may not fit
            self.last = some, logits(self.heads, self.embeddings, some)
        return self.last[1]


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
