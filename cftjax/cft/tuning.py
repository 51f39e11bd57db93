"""CFT on arrays, and the way of rules that choose per category: search and polish in either order, then the choice.

The default learns from every known label instead: `crossfit`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cftjax import metrics
from cftjax.cft import crossfit, packing, rules, spaces
from cftjax.cft.choose import Chosen, choose
from cftjax.cft.polish import Polished, polish
from cftjax.cft.search import Found, search
from cftjax.config import ORDERS, TuningConfig
from cftjax.data import sparse
from cftjax.types import Embeddings, Heads


@dataclasses.dataclass(frozen=True)
class Part:
    """What is learned from and what judges: the two splits, or one fold of the training labels and the rest.

    Attributes:
        train: the labels to learn from.
        validation: the labels that judge.
        start: the heads to begin with.
        judged: whether `start` may be compared with what comes out: not where it was trained on the labels that judge.
    """

    train: Embeddings
    validation: Embeddings
    start: Heads
    judged: bool

    @functools.cached_property
    def leading(self) -> spaces.Leading | None:
        """Principal directions of the training embeddings, found once; where each category has embeddings, None."""
        return spaces.leading_directions(self.train.z, self.train.z.shape[-1]) if self.train.z.ndim == 2 else None


def parts(train: Embeddings, validation: Embeddings | None, heads: Heads, config: TuningConfig) -> list[Part]:
    """One part where there is a validation split; else one for each fold of the known training labels.

    The backbone and its heads have seen the training labels, so that on a fold of them they look better than they are.
    Folds therefore start from heads of zero, and pull towards zero alone (`for_parts`).

    Args:
        train: the training split.
        validation: the split that judges, or None.
        heads: as they came with the backbone.
        config: its order and seed are read.

    Raises:
        ValueError: for order `search_polish` without a validation split: its search would start from nothing.
    """
    if validation is not None:
        return [Part(train, validation, heads, judged=True)]
    if config.order != "polish_search":
        raise ValueError(
            "without a validation split the heads start from zero, where a search finds nothing: carve a validation "
            "split (--split.validation-share 0.1), or use --order polish_search, or --choose.rule shared"
        )
    zero = Heads(np.zeros_like(heads.kernel), np.zeros_like(heads.bias))
    given = sparse.of(train.given)
    fold = rules.folds(given, train.groups, config.seed)

    def some(kept: np.ndarray) -> Embeddings:
        return Embeddings.of(train.z, given.keep(kept), train.groups, train.unopened)

    return [Part(some(fold != i), some(fold == i), zero, judged=False) for i in range(rules.FOLDS)]


def for_parts(config: TuningConfig, found: Sequence[Part]) -> TuningConfig:
    """The settings that fit the parts: where the start is zero, pulling towards it is pulling towards zero."""
    if all(part.judged for part in found):
        return config
    return dataclasses.replace(config, polish=dataclasses.replace(config.polish, pull_towards=("zero",)))


def run_stage(
    stage: str, part: Part, heads: Heads, config: TuningConfig, key: jax.Array, **options: Any
) -> Found | Polished:
    """`ga` or `polish` on one part, from heads; the search sees the start as well."""
    settings = config.polish if stage == "polish" else config.ga
    options["leading"] = None if settings.dimensions is None else part.leading
    if stage == "polish":
        return polish(heads, part.train, part.validation, config=config.polish, **options)
    seeds = [part.start] if part.judged and heads is not part.start else []
    return search(heads, part.train, part.validation, key=key, config=config.ga, seeds=seeds, **options)


def choose_of(
    part: Part, candidates: dict[str, Heads], config: TuningConfig, fair_scores: Mapping[str, np.ndarray]
) -> Chosen:
    """The choice on one part; a start that may not be compared is no candidate."""
    if not part.judged:
        candidates = {name: heads for name, heads in candidates.items() if name != "backbone"}
    return choose(candidates, part.train, part.validation, config=config.choose, fair_scores=fair_scores)


def combine(chosen: Sequence[Chosen], train: Embeddings, heads: Heads) -> Chosen:
    """The choices of all parts as one: the mean head of the folds that could judge a category.

    Args:
        chosen: one per part.
        train: all training labels, to which the bias is fitted.
        heads: what a category keeps that no fold could judge.
    """
    if len(chosen) == 1:
        return chosen[0]
    tuned = [[c for c in range(len(heads.bias)) if c not in one.untuned] for one in chosen]
    mean = mean_heads([one.heads for one in chosen], tuned, heads)
    names, untuned = [], {}
    for c in range(len(heads.bias)):
        votes = Counter(one.names[c] for one, able in zip(chosen, tuned, strict=True) if c in able)
        names.append(votes.most_common(1)[0][0] if votes else "backbone")
        if not votes:
            untuned[c] = "too few known positives or negatives in train to cross-validate"
    scores = {
        name: np.asarray(metrics.mean_defined(np.stack([one.scores[name] for one in chosen], axis=-1)))
        for name in chosen[0].scores
    }
    bias = packing.refit_bias(mean, train, [c for c in range(len(names)) if c not in untuned])
    return Chosen(Heads(mean.kernel, bias), names, scores, untuned)


def mean_heads(heads: Sequence[Heads], tuned: Sequence[Sequence[int]], otherwise: Heads) -> Heads:
    """Per category the mean over those in which it was tuned; where it was in none, its head of `otherwise`."""
    kernel, bias = np.array(otherwise.kernel, np.float32), np.array(otherwise.bias, np.float32)
    for c in range(len(bias)):
        able = [one for one, categories in zip(heads, tuned, strict=True) if c in categories]
        if able:
            kernel[c] = np.mean([one.kernel[c] for one in able], axis=0)
            bias[c] = np.mean([one.bias[c] for one in able])
    return Heads(kernel, bias)


def fine_tune(
    train: Embeddings,
    validation: Embeddings | None,
    heads: Heads,
    *,
    config: TuningConfig | None = None,
    key: jax.Array | None = None,
) -> Chosen:
    """Fine-tune each category's head on its known labels, and keep what validation speaks for.

    By default heads learn from the known labels of both splits, and each validation image is judged by heads that have
    not learned from it; with `choose.refit` none, or a rule that chooses per category, from those of train alone.

    Args:
        train: z [n d] or [n c d], labels [n c], known [n c].
        validation: the same for the split that judges. None cross-validates on the known training labels: the new head
            is the mean of those that five folds find; it is not compared with the old one, which has seen them all.
        heads: the last layer as trained, kernel [c d] and bias [c].
        config: search, polish and choice; None for the defaults, `with_recipe(TuningConfig(), "paper")` as published.
        key: randomness of the search; None for `jax.random.key(config.seed)`.

    Returns:
        Chosen: the new last layer in `heads`, which candidate each category keeps, and those left alone with the
            reason.
    """
    config = config or TuningConfig()
    key = jax.random.key(config.seed) if key is None else key
    if config.choose.rule == "shared":
        return crossfit.fine_tune(crossfit.Problem(train, validation, heads, config), key)
    split = parts(train, validation, heads, config)
    config = for_parts(config, split)
    chosen = []
    for part in split:
        candidates, fair_scores = {"backbone": part.start}, {}
        current = part.start
        for stage in ORDERS[config.order]:
            found = run_stage(stage, part, current, config, key)
            current = candidates[stage] = found.heads
            if isinstance(found, Found):
                fair_scores[stage] = found.fair_scores
        chosen.append(choose_of(part, candidates, config, fair_scores))
    return combine(chosen, train, heads)
