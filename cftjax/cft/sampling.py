"""Fewer rows to score candidates on, where a category has many: a sample drawn once for the whole search.

A search in a few directions has little to fit: its winner ranks all rows as well by a sample of them (docs/scaling.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from cftjax.cft.extents import Counts
from cftjax.cft.spaces import Seen
from cftjax.config import GAConfig
from cftjax.runtime.settings import plain

# The rarer label keeps at least this share of the sample, or all that it has: so few would say little by themselves.
LEAST_SHARE = 1 / 16


def sampled(seen: Seen, most: int | None, seed: Sequence[int]) -> Seen:
    """The same split with at most so many known rows of each category.

    Positives and negatives keep their shares, but for `LEAST_SHARE`. Rows are drawn in one order for all categories, so
    that those of a category depend neither on its place nor on which others there are.

    Args:
        seen: the split.
        most: known rows of a category; None for all.
        seed: of the order.
    """
    crowded = [] if most is None else np.flatnonzero(Counts.of(seen).known > most).tolist()
    if most is None or not crowded:
        return seen
    given, turn = seen.given, np.random.default_rng(seed).permutation(seen.given.shape[0])
    kept, rows_of = np.ones(len(given.values), bool), given.rows()
    for c in crowded:
        rows, positive = given.known_of(c)
        order = np.argsort(turn[rows])
        entries = np.flatnonzero(given.categories == c)
        kept[entries] = np.isin(rows_of[entries], _first_of_both(rows[order], positive[order], most))
    fewer = given.keep(kept)
    return dataclasses.replace(seen, labels=fewer.labels, known=fewer.known)


def _first_of_both(
    rows: Int[np.ndarray, " k"], positive: Bool[np.ndarray, " k"], most: int
) -> Int[np.ndarray, " most"]:
    """So many rows, the first of the positives and the first of the negatives."""
    kinds = rows[positive], rows[~positive]
    least = [min(len(kind), int(most * LEAST_SHARE)) for kind in kinds]
    positives = min(max(round(most * positive.mean()), least[0]), most - least[1])
    return np.concatenate([kinds[0][:positives], kinds[1][: most - positives]])


def recorded(config: GAConfig, num_rows: int) -> dict[str, Any]:
    """The settings that the key of a search is made from: without the sample's size where there is no sample.

    What an older version has searched is kept then.

    Args:
        config: of the search.
        num_rows: of train; no category has more known ones.
    """
    settings = plain(config)
    if config.most_rows is None or num_rows <= config.most_rows:
        del settings["most_rows"]
    return settings
