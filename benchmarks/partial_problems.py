"""Problems for the benchmarks: real embeddings with part of the labels hidden, and the last layer of Negative mode.

The backbone is frozen; the last layer is a logistic regression per category on all training labels, the unknown ones
called negative, its L2 picked on validation: the linear probe that Negative mode gives.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cftjax.cft.polish import polish
from cftjax.config import LabelsConfig, PolishConfig
from cftjax.data import hiding
from cftjax.data.splits import stratify
from cftjax.runtime import storage
from cftjax.types import Embeddings, Heads, Labels

VALIDATION_SHARE = 0.2
PROBE = PolishConfig(pull_towards=("zero",), rule="best", refit_bias=False)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Embeddings with partial labels, and the heads to be tuned.

    Attributes:
        name: how labels were hidden.
        train: with hidden labels.
        validation: carved from train, complete.
        test: complete.
        heads: of Negative mode.
    """

    name: str
    train: Embeddings
    validation: Embeddings
    test: Embeddings
    heads: Heads


def make(file: Path, hide: str, known_proportion: float, seed: int) -> Problem:
    """One problem from the file that coco_embeddings.py writes.

    Args:
        file: of embeddings and complete labels.
        hide: `uniform`, every label alike; `uneven`, more in some categories than in others.
        known_proportion: the share of training labels that stay known.
        seed: of hiding and carving.
    """
    arrays = storage.read_arrays(file)
    splits = {}
    for split in ("train", "test"):
        positive = arrays[f"{split}_labels"]
        splits[split] = Labels(positive, np.ones_like(positive), np.zeros_like(positive))
    config = LabelsConfig(hide=hide, known_proportion=known_proportion, hide_seed=seed)  # pyright: ignore[reportArgumentType]
    hidden = hiding.hide(splits["train"], config)
    judging = stratify(splits["train"].labels, VALIDATION_SHARE, seed)
    learning = np.setdiff1d(np.arange(len(hidden.labels)), judging)
    train = Embeddings(arrays["train_z"][learning], hidden.labels[learning], hidden.known[learning])
    complete = splits["train"]
    validation = Embeddings(arrays["train_z"][judging], complete.labels[judging], complete.known[judging])
    test = Embeddings(arrays["test_z"], splits["test"].labels, splits["test"].known)
    negative = dataclasses.replace(train, labels=train.labels & train.known, known=np.ones_like(train.known))
    c, d = negative.labels.shape[1], negative.z.shape[1]
    zero = Heads(np.zeros((c, d), np.float32), np.zeros(c, np.float32))
    heads = polish(zero, negative, validation, config=PROBE).heads
    return Problem(f"{hide} {known_proportion:.0%}", train, validation, test, heads)
