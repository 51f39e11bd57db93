"""The committee: the mean of three heads that learn from all known labels, its settings shared by all categories.

A closed-form discriminant, a regression pulled to zero, and one pulled to the search's winners. Judging images are
scored by lanes that have not learned from them, so that the labels that judge can be learned from as well. Settings are
picked for all categories together, since a category alone would believe its own luck; and a mean is taken where one of
the three could be chosen, for the same reason (docs/search.md).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from cftjax import metrics
from cftjax.cft import discriminant, members, regressions
from cftjax.cft.members import Member, Spread
from cftjax.cft.pool import LEARNING, Pool
from cftjax.cft.regressions import Recipe, Task
from cftjax.cft.work import Progress, Store
from cftjax.config import Metric, PolishConfig
from cftjax.scores import bootstrap
from cftjax.types import Heads, Labels

RESAMPLES = 50
# What each weighs in the mean: the regression from the search's winners knows the head that came, which was picked with
# a look at the judging images.
WEIGHTS = {"discriminant": 0.4, "polish": 0.4, "start": 0.2}


@dataclasses.dataclass(frozen=True)
class Committee:
    """The mean, and what it is the mean of.

    Attributes:
        heads: [c d], of logits that have mean 0 and vary by one over all images; untuned categories as they came.
        out_of_fold: [v c] the same logits of the judging images, by heads that have not learned from their folds.
        polish_out_of_fold: [v c] those of the part that is called the polish.
        parts: the last lane of each of the three, standardised alike.
        refit: the best of the plain regressions on the known labels, of all images and pulled to zero, for comparison.
        recipes: of each of the three, how it was learned.
        scores: by part, `refit`, `ga` and `mean` -> [c] score of the out-of-fold logits; NaN where undefined.
        untuned: category -> why nothing could be learned.
        base_mean: [c] of the logits of the head that came, over all images.
        base_deviation: [c] of them.
    """

    heads: Heads
    out_of_fold: Float[np.ndarray, "v c"]
    polish_out_of_fold: Float[np.ndarray, "v c"]
    parts: dict[str, Heads]
    refit: Heads
    recipes: dict[str, str]
    scores: dict[str, Float[np.ndarray, " c"]]
    untuned: dict[int, str]
    base_mean: Float[np.ndarray, " c"]
    base_deviation: Float[np.ndarray, " c"]

    @property
    def polished(self) -> str:
        """The part that is called the polish: that of the search's winners where there are any."""
        return _polished(self.parts)


def _polished(parts: Mapping[str, Any]) -> str:
    return "start" if "start" in parts else "polish"


def learn(
    pool: Pool,
    came: Heads,
    winners: Float[np.ndarray, "l c r"] | None,
    config: PolishConfig,
    *,
    seed: int,
    store: Store | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Committee:
    """Learn all three in every lane under every setting, pick the settings, and take the mean.

    Args:
        pool: the images.
        came: the heads that came.
        winners: what the search adds to them in every lane; None where there is no head to start from.
        config: the settings to pick from.
        seed: of the unknown rows that stand in for all.
        store: as in `regressions.learn`.
        progress: as in `regressions.learn`.
        mesh: as in `regressions.learn`.
    """
    untuned = pool.untunable()
    tuned = [c for c in range(len(came.bias)) if c not in untuned]
    base = members.spread(pool)
    closed, weights, closed_name = _closed_form(pool, base, config)
    start = np.zeros_like(closed.genes) if winners is None else winners
    recipes = _recipes(config, weights, from_start=winners is not None)
    learned = regressions.learn(
        Task(pool, recipes, start, config.num_steps, seed), tuned, store=store, progress=progress, mesh=mesh
    )
    pulled, plain = _best_of_each_pull(learned, recipes, pool, base, config.metric)
    picked = {"discriminant": closed} | pulled
    names = {"discriminant": closed_name} | {
        name: member.name for name, member in picked.items() if name != "discriminant"
    }
    shares = np.array([WEIGHTS[name] for name in picked])
    whole = members.mean("mean", list(picked.values()), shares / shares.sum())
    whole = members.standardised(whole, pool, base)
    judged = {**picked, "refit": plain, "mean": whole}
    if winners is not None:
        judged["ga"] = Member("ga", np.ones(winners.shape[:2], np.float32), winners)
    scores = members.scores(list(judged.values()), pool, base, config.metric)
    able = np.isin(np.arange(len(came.bias)), tuned)
    return Committee(
        _centred(whole, pool, base, came, able),
        members.out_of_fold(whole, pool, base),
        members.out_of_fold(picked[_polished(picked)], pool, base),
        {name: _centred(member, pool, base, came, able) for name, member in picked.items()},
        _centred(plain, pool, base, came, able),
        names,
        dict(zip(judged, scores, strict=True)),
        untuned,
        base.mean,
        np.sqrt(base.variance),
    )


def _centred(member: Member, pool: Pool, base: Spread, came: Heads, able: Bool[np.ndarray, " c"]) -> Heads:
    """The last lane, with logits of mean 0 over all images."""
    heads = members.heads(member, pool, came, able)
    shift = np.where(able, member.start[-1] * base.mean, 0.0).astype(np.float32)
    return Heads(heads.kernel, heads.bias - shift)


def _mean_score(scores: Float[np.ndarray, "m c"]) -> Float[np.ndarray, " m"]:
    """Over the categories that can be judged; nothing at all counts as the least."""
    return np.nan_to_num(np.asarray(metrics.mean_defined(scores)), nan=-1.0)


def _closed_form(pool: Pool, base: Spread, config: PolishConfig) -> tuple[Member, tuple[float, float], str]:
    """The best discriminant, with the weights of unknown labels and of judging images that it was found with.

    It is cheap enough to try everything, so that it picks the weights for the regressions as well. Unknown labels weigh
    nothing, and judging images as much as learning ones, unless other weights are better by more than the standard
    error of their gain.
    """
    given, learns = discriminant.sums(pool), bool((pool.fold == LEARNING).any())
    unknown = config.unknown_weights if learns else (0.0,)
    judging = config.judging_weights if learns and pool.refit else (1.0,)
    best: dict[tuple[float, float], tuple[float, Member, float]] = {}
    for weights in itertools.product(unknown, judging):
        means = discriminant.difference(pool, given, *weights)
        candidates = _discriminants(pool, base, means, config.strengths)
        scores = _mean_score(members.scores(candidates, pool, base, config.metric))
        i = int(np.argmax(scores))
        best[weights] = float(scores[i]), candidates[i], config.strengths[i]
    weights, plain = max(best, key=lambda each: best[each][0]), min(best, key=lambda each: (each[0], abs(each[1] - 1)))
    if weights != plain:
        old, new = (best[each][1] for each in (plain, weights))
        if best[weights][0] - best[plain][0] <= standard_error(old, new, pool, base, config.metric):
            weights = plain
    _, member, strength = best[weights]
    return member, weights, Recipe(0.0, 0.0, strength, *weights).name.replace("zero", "closed")


def _discriminants(
    pool: Pool, base: Spread, means: Float[np.ndarray, "l c r"], strengths: Sequence[float]
) -> list[Member]:
    nothing = np.zeros(means.shape[:2], np.float32)
    genes = discriminant.directions(pool, means, strengths)
    return [
        members.standardised(Member(f"closed {s:g}", nothing, g), pool, base)
        for s, g in zip(strengths, genes, strict=True)
    ]


def _recipes(config: PolishConfig, weights: tuple[float, float], *, from_start: bool) -> list[Recipe]:
    """Every strength with every spread pulled to zero, and with the last spread to the start, at the weights picked.

    Known labels alone, with nothing but a pull to zero, are there always: to be compared with.
    """
    recipes = [Recipe(0.0, spread, l2, *weights) for spread, l2 in itertools.product(config.spreads, config.l2)]
    recipes += [recipe for l2 in config.l2 if (recipe := Recipe(0.0, 0.0, l2)) not in recipes]
    if from_start and "start" in config.pull_towards:
        recipes += [Recipe(1.0, config.spreads[-1], l2, *weights) for l2 in config.l2]
    return recipes


def _best_of_each_pull(
    learned: Sequence[Member], recipes: Sequence[Recipe], pool: Pool, base: Spread, metric: Metric
) -> tuple[dict[str, Member], Member]:
    """`polish` of those pulled to zero, `start` of those pulled to where they began; and the plainest of them."""
    ready = [members.standardised(member, pool, base) for member in learned]
    means = _mean_score(members.scores(ready, pool, base, metric))

    def best(mine: Sequence[int]) -> Member:
        return ready[max(mine, key=lambda i: means[i])]

    weights = recipes[0][3:]
    named = {}
    for name, towards in (("polish", 0.0), ("start", 1.0)):
        mine = [i for i, recipe in enumerate(recipes) if recipe.towards == towards and recipe[3:] == weights]
        if mine:
            named[name] = best(mine)
    return named, best([i for i, recipe in enumerate(recipes) if recipe[:2] == (0, 0) and recipe[3:] == (0, 1)])


def standard_error(old: Member, new: Member, pool: Pool, base: Spread, metric: Metric) -> float:
    """Of the gain in the mean over categories, by paired bootstrap over the judging images."""
    pairs = (
        np.stack([members.out_of_fold(member, pool, base, some) for member in (old, new)])
        for some in members.blocks_of(pool.judged, 2)
    )
    return gain_error(pairs, pool.judged, pool.groups, metric)


def gain_error(
    pairs: Iterable[Float[np.ndarray, "2 v _"]], judged: Labels, groups: np.ndarray | None, metric: Metric
) -> float:
    """Standard error of what a mean score gains, by paired bootstrap over images or groups; infinite if undefined.

    Args:
        pairs: old and new logits of the categories of each of `members.blocks_of(judged, 2)`.
        judged: labels.
        groups: of the images, or None.
        metric: of the mean score.
    """
    each = []
    for some, pair in zip(members.blocks_of(judged, 2), pairs, strict=True):
        labels, known = judged.labels[:, some], judged.known[:, some]
        samples = bootstrap.resample(pair, labels, known, groups=groups, resamples=RESAMPLES)[metric]
        each.append(samples[1] - samples[0])
    means = np.asarray(metrics.mean_defined(np.concatenate(each, axis=-1)))
    means = means[~np.isnan(means)]
    return float(np.std(means, ddof=1)) if len(means) > 1 else float("inf")
