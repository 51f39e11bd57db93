"""Which categories the splits of a run cannot judge, told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cftjax import types
from cftjax.data import sparse
from cftjax.text import few

WAYS_OUT = {
    "validation": "they keep the head that training gives them. A larger --split.validation-share may have some, or "
    "a validation split of your own",
    "test": "they have no score. A larger --split.test-share or --split.folds may have some, or a test split of your "
    "own",
}


def notes(dataset: types.Dataset) -> Iterator[str]:
    """A sentence for every kind of label that validation or test has none of, with the categories and the way out.

    Args:
        dataset: the splits of the run.
    """
    for split, way_out in WAYS_OUT.items():
        if split not in dataset.splits:
            continue
        counts = sparse.of(dataset.splits[split].labels).counts()
        for count, kind in ((counts.positive, "positive"), (counts.negative, "negative")):
            absent = [dataset.categories[c] for c in np.flatnonzero(count == 0).tolist()]
            if absent:
                yield f"{split} has no known {kind} of {few(absent)}, so that {way_out}."
