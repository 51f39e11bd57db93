"""The whole of CFT on arrays: search, polish, choose."""

from __future__ import annotations

import jax

from cftjax.cft.choose import Chosen, choose
from cftjax.cft.polish import polish
from cftjax.cft.search import search
from cftjax.config import TuningConfig
from cftjax.types import Embeddings, Heads


def fine_tune(
    train: Embeddings,
    validation: Embeddings,
    heads: Heads,
    *,
    config: TuningConfig | None = None,
    key: jax.Array | None = None,
) -> Chosen:
    """Fine-tune each category's head on its known training labels, and keep what validation likes best.

    Args:
        train: z [n d] or [n c d], labels [n c], known [n c].
        validation: the same for the split that judges.
        heads: the last layer as trained, kernel [c d] and bias [c].
        config: search, polish and choice; None for the defaults, `with_recipe(TuningConfig(), "paper")` as published.
        key: randomness of the search; None for `jax.random.key(config.seed)`.

    Returns:
        Chosen: the new last layer in `heads`, which candidate each category keeps, and those left alone with the
            reason.
    """
    config = config or TuningConfig()
    key = jax.random.key(config.seed) if key is None else key
    found = search(heads, train, validation, key=key, config=config.ga)
    polished = polish(found.heads, train, validation, config=config.polish)
    candidates = {"backbone": heads, "ga": found.heads, "polish": polished.heads}
    return choose(candidates, train, validation, config=config.choose)
