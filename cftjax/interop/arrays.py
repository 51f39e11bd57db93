"""What the adapters of other libraries share: arrays of a model in, its new last layer and decisions out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from cftjax import decisions
from cftjax.cft import tuning
from cftjax.cft.choose import Chosen
from cftjax.config import TuningConfig
from cftjax.decisions import Decisions
from cftjax.types import Embeddings, Heads


class Tuned(NamedTuple):
    """What became of a model.

    Attributes:
        chosen: the new last layer in `heads`, which candidate each category keeps, and those left alone.
        decisions: its calibration and thresholds: `decisions.probabilities(logits)`, `decisions.decide(probabilities)`.
    """

    chosen: Chosen
    decisions: Decisions


def embeddings(z: Num[np.ndarray, "n ..."], labels: Num[np.ndarray, "n ..."], split: str) -> Embeddings:
    """A split as its model gave it.

    Args:
        z: what the last layer is given, [n d].
        labels: [n c], 1, 0, and NaN where unknown.
        split: what messages call it.

    Raises:
        ValueError: for other shapes or labels.
    """
    if z.ndim != 2:
        raise ValueError(f"{split}: the layer is given {z.shape}, and not one embedding an image: name the last layer")
    if labels.ndim != 2 or len(labels) != len(z):
        raise ValueError(f"{split}: labels are {labels.shape} for {len(z)} images: use [images, categories]")
    labels = labels.astype(np.float32)
    known = ~np.isnan(labels)
    if not np.isin(labels[known], (0, 1)).all():
        other = labels[known][~np.isin(labels[known], (0, 1))][0]
        raise ValueError(f"{split}: a label is {other:g}: use 1, 0, and NaN where it is unknown or uncertain")
    return Embeddings(z.astype(np.float32), known & (labels == 1), known)


def tune(
    train: Embeddings,
    validation: Embeddings | None,
    kernel: Float[np.ndarray, "c d"],
    bias: Float[np.ndarray, " c"],
    config: TuningConfig | None,
) -> Tuned:
    """The last layer fine-tuned, with calibration and thresholds fitted on the labels that judged.

    Args:
        train: the labels to learn from.
        validation: those that judge; None cross-validates.
        kernel: the last layer's.
        bias: the last layer's.
        config: search, polish, choice and decisions; None for the defaults.

    Raises:
        ValueError: where labels and layer differ in the number of categories.
    """
    c = train.labels.shape[1]
    if c != len(kernel):
        raise ValueError(f"labels have {c} categories, and the layer {len(kernel)} outputs: name another layer")
    config = config or TuningConfig()
    chosen = tuning.fine_tune(train, validation, Heads(kernel, bias), config=config)
    judged, split = (train, "train") if validation is None else (validation, "validation")
    logits = np.asarray(chosen.heads(judged.z))
    names = [str(i) for i in range(c)]
    fitted = decisions.fit(logits, judged.labels, judged.known, config.decide, categories=names, split=split)
    return Tuned(chosen, fitted)
