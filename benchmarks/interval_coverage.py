"""How often a 95 % interval of mean AP holds what it is to hold, by simulation.

    python benchmarks/interval_coverage.py [--quick]

Draws test sets of made scores and labels from one population again and again, and asks how often the interval of each
holds the mean over all sets: what test sets of this size score on average. Two intervals of a score: percentiles of the
bootstrap, and the same moved until the mean of the resamples is the score, which is what `evaluate` prints. And the
percentiles of a paired difference of two models, as they are and moved; as they are is what is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cftjax import metrics
from cftjax.scores import bootstrap
from cftjax.scores.bootstrap import Interval

RESAMPLES = 200


class Population(NamedTuple):
    """Where test sets are drawn from: images, categories, the share of positives, and how many sets are drawn."""

    images: int
    categories: int
    positive: float
    sets: int


POPULATIONS = (
    Population(200, 5, 0.2, 400),
    Population(1000, 18, 0.1, 200),
    Population(1000, 80, 0.036, 100),
    Population(1000, 200, 0.01, 60),
)


class Drawn(NamedTuple):
    """A mean AP, or a difference of two, on one test set, and on resamples of it."""

    value: float
    samples: np.ndarray


def main() -> None:
    """Draw and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the test sets")
    quick = parser.parse_args().quick
    print("| images | categories | positive | resampling adds, points | score: percentiles | moved | ", end="")
    print("difference | resampling adds, points | percentiles | moved |")
    print("|" + "---:|" * 10)
    rng = np.random.default_rng(0)
    for population in POPULATIONS:
        sets = max(5, population.sets // 10) if quick else population.sets
        both = [drawn(population, rng) for _ in range(sets)]
        first, apart = [one for one, _ in both], [other for _, other in both]
        cells = [f"{population.images:,}", str(population.categories), f"{100 * population.positive:g} %"]
        cells += [added(first), held(first, as_it_is), held(first, as_printed)]
        cells += [f"{100 * np.mean([one.value for one in apart]):.1f}"]
        cells += [added(apart), held(apart, as_it_is), held(apart, moved)]
        print(f"| {' | '.join(cells)} |", flush=True)


def drawn(population: Population, rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    """A test set: one model's mean AP on it, and how far a better one is ahead."""
    shape = (population.images, population.categories)
    labels, known = rng.random(shape) < population.positive, np.ones(shape, bool)
    one = rng.normal(size=shape) + 1.5 * labels
    better = one + 0.5 * rng.normal(size=shape) + 0.5 * labels
    scores = np.stack([one, better]).astype(np.float32)
    each = [metrics.mean_of(metrics.score("AP", model, labels, known)) for model in scores]
    resampled = bootstrap.resample(scores, labels, known, resamples=RESAMPLES, seed=int(rng.integers(2**31)))["AP"]
    means = np.asarray(metrics.mean_defined(resampled), np.float64)
    return Drawn(each[0], means[0]), Drawn(each[1] - each[0], means[1] - means[0])


def as_it_is(one: Drawn) -> Interval:
    """Percentiles."""
    return bootstrap.interval(one.value, one.samples)


def as_printed(one: Drawn) -> Interval:
    """Of a score, moved."""
    return bootstrap.score_interval(one.value, one.samples)


def moved(one: Drawn) -> Interval:
    """Of a difference, which may be negative, moved likewise."""
    plain, bias = as_it_is(one), float(np.mean(one.samples)) - one.value
    return dataclasses.replace(plain, low=plain.low - bias, high=plain.high - bias)


def added(all_sets: list[Drawn]) -> str:
    """In points, what the mean of the resamples is above what is measured."""
    return f"{100 * np.mean([one.samples.mean() - one.value for one in all_sets]):+.2f}"


def held(all_sets: list[Drawn], way: Callable[[Drawn], Interval]) -> str:
    """The share of intervals that hold the mean over all test sets."""
    truth = np.mean([one.value for one in all_sets])
    return f"{np.mean([x.low <= truth <= x.high for x in map(way, all_sets)]):.0%}"


if __name__ == "__main__":
    main()
