"""Every known label counts: search, then learn in every lane of the folds, take the mean, and keep a share of the old.

Images that judge are dealt into folds. Each is scored by heads that have learned from the training labels and from the
other folds; the heads that are handed back have learned from everything.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from cftjax.cft import committee, folds, shares, spaces
from cftjax.cft.choose import Chosen
from cftjax.cft.committee import Committee
from cftjax.cft.pool import Pool, gather
from cftjax.cft.search import Found, search
from cftjax.cft.spaces import Leading
from cftjax.cft.work import Progress, Store
from cftjax.config import TuningConfig
from cftjax.types import Embeddings, Heads


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be tuned.

    Attributes:
        train: the labels to learn from.
        validation: those that judge, and are learned from as well; None lets the training labels judge, in folds.
        heads: that came with the backbone.
        config: ga, polish, choose and seed are read.
    """

    train: Embeddings
    validation: Embeddings | None
    heads: Heads
    config: TuningConfig

    @functools.cached_property
    def leading(self) -> Leading | None:
        """Principal directions of the training embeddings, found once; where each category has embeddings, None."""
        return spaces.leading_directions(self.train.z, self.train.z.shape[-1]) if self.train.z.ndim == 2 else None

    @property
    def judging(self) -> Embeddings:
        """The split that judges."""
        return self.train if self.validation is None else self.validation

    @property
    def refit(self) -> bool:
        """Whether judging labels are learned from."""
        return self.config.choose.refit == "all" or self.validation is None

    @property
    def folds(self) -> Int[np.ndarray, " v"] | None:
        """Of the judging images; None where nothing learns from them."""
        if not self.refit:
            return None
        split = self.judging
        return folds.of_images(split.given, split.groups, self.config.polish.folds, self.config.seed)


def find(
    problem: Problem,
    key: jax.Array,
    *,
    store: Store | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Found:
    """Search from the heads that came; one run keeps the best without each fold.

    Args:
        problem: with a validation split, without which a search would start from nothing.
        key: randomness.
        store: as in `search`.
        progress: as in `search`.
        mesh: as in `search`.
    """
    if problem.validation is None:
        raise ValueError("without a validation split there is nothing to search from")
    return search(
        problem.heads,
        problem.train,
        problem.validation,
        key=key,
        config=problem.config.ga,
        folds=problem.folds,
        leading=None if problem.config.ga.dimensions is None else problem.leading,
        store=store,
        progress=progress,
        mesh=mesh,
    )


def learn(
    problem: Problem,
    lanes: list[Heads],
    *,
    store: Store | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Committee:
    """Learn the committee, from the search's winners where there are any.

    Args:
        problem: what is to be tuned.
        lanes: the search's winners without each fold and, last, their mean; empty where nothing was searched.
        store: as in `regressions.learn`.
        progress: as in `regressions.learn`.
        mesh: as in `regressions.learn`.
    """
    settings = problem.config.polish
    pool = gather(
        problem.train,
        problem.validation,
        problem.heads,
        dimensions=settings.dimensions,
        num_folds=settings.folds,
        refit=problem.refit,
        seed=problem.config.seed,
        leading=problem.leading,
    )
    winners = None if problem.validation is None else _steps(pool, problem.heads, lanes)
    return committee.learn(
        pool,
        problem.heads,
        winners,
        settings,
        seed=problem.config.seed,
        store=store,
        progress=progress,
        mesh=mesh,
    )


def _steps(pool: Pool, came: Heads, lanes: list[Heads]) -> Float[np.ndarray, "l c r"]:
    """What the winners add to the heads that came, in the pool's coordinates; nothing where nothing was searched."""
    extent = (pool.num_lanes, pool.num_categories, pool.z.shape[-1])
    if len(lanes) != pool.num_lanes:
        return np.zeros(extent, np.float32)
    unit = np.ones(extent[1], np.float32)
    return np.swapaxes(spaces.as_genes([came, *lanes], pool.space, unit)[:, 1:], 0, 1)


def lanes_of(found: Found) -> list[Heads]:
    """The heads that each lane starts from."""
    return [*found.elites, found.heads] if found.elites else []


def share(problem: Problem, whole: Committee) -> Chosen:
    """Keep as much of the heads that came as validation speaks for; one share for all categories."""
    found = shares.share(
        whole,
        problem.heads,
        problem.judging,
        metric=problem.config.choose.metric,
        fitted_on=None if problem.refit else problem.train,
        compared=problem.validation is not None,
    )
    word = "backbone" if found.share == 1 else f"mean + {found.share:.0%} backbone" if found.share else "mean"
    names = ["backbone" if c in whole.untuned else word for c in range(len(problem.heads.bias))]
    return Chosen(
        found.heads,
        names,
        whole.scores | found.scores,
        whole.untuned,
        out_of_fold=found.out_of_fold,
        share=found.share,
        unjudged=found.unjudged,
    )


def fine_tune(problem: Problem, key: jax.Array) -> Chosen:
    """All of it, in memory."""
    lanes = [] if problem.validation is None else lanes_of(find(problem, key))
    return share(problem, learn(problem, lanes))
