"""Choosing: per category the candidate head that validation speaks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from cftjax import metrics
from cftjax.cft import picking, problems
from cftjax.config import ChooseConfig
from cftjax.types import Embeddings, Heads


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The heads kept.

    Attributes:
        heads: [c d].
        names: [c] which candidate each category keeps.
        scores: candidate -> [c] validation score, NaN where undefined.
        untuned: category -> why it keeps the first candidate.
    """

    heads: Heads
    names: list[str]
    scores: dict[str, Float[np.ndarray, " c"]]
    untuned: dict[int, str]


def choose(
    candidates: Mapping[str, Heads], train: Embeddings, validation: Embeddings, *, config: ChooseConfig | None = None
) -> Chosen:
    """Keep per category the candidate that validation speaks for (by rule `best`, "greedy" in the authors' code).

    Args:
        candidates: name -> heads, the original first: it stays where no other is expected to be better, and where a
            category cannot be judged.
        train: the training embeddings; a category without a known positive and negative there was never tuned.
        validation: the embeddings that judge.
        config: metric and rule; None for the default.

    Returns:
        Chosen: heads, names, scores and the categories left alone, with the reason.
    """
    config = config or ChooseConfig()
    labels, known = np.asarray(validation.labels, bool), np.asarray(validation.known, bool)
    scores = {
        name: np.asarray(metrics.score(config.metric, np.asarray(heads(validation.z)), labels, known))
        for name, heads in candidates.items()
    }
    untuned = problems.untunable(train, validation)
    order = list(candidates)
    table = np.stack([scores[name] for name in order])
    errors = None
    if config.rule != "best":
        logits = [np.asarray(candidates[name](validation.z)) for name in order]
        errors = picking.standard_errors(logits, labels, known, config.metric, validation.groups)
    picked = picking.pick(config.rule, table, errors)
    picked[list(untuned)] = 0
    kernel, bias = (
        np.stack([np.asarray(getattr(candidates[order[i]], field))[c] for c, i in enumerate(picked)])
        for field in ("kernel", "bias")
    )
    return Chosen(Heads(kernel, bias), [order[i] for i in picked], scores, untuned)
