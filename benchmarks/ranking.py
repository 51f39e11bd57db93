"""AP and AUROC of a population: counting against sorting, and against the floor of one sort alone.

    python benchmarks/ranking.py

Every line is one category: 50 candidates ranking n known rows of which so many are positive. Times are medians of
alternating repeats in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cftjax.cft import ranking
from cftjax.config import Metric

POPULATION = 50


def milliseconds(programs: dict[str, Callable[..., Any]], *arguments: Any, repeats: int = 11) -> dict[str, float]:
    """Median time of each program, taken in turn."""
    for program in programs.values():
        jax.block_until_ready(program(*arguments))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}


def programs(metric: Metric, slots: int) -> dict[str, Callable[..., Any]]:
    """The two ways to a score, and a bare sort of as many integers by XLA."""

    def counting(scores: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
        return ranking.by_counting(metric, scores, labels, where, slots, platform="cpu")

    def sorting(scores: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
        return ranking.by_sorting(metric, scores, labels, where, platform="cpu")

    def sort_alone(scores: jax.Array, *_: jax.Array) -> jax.Array:
        return jax.lax.sort(jax.lax.bitcast_convert_type(scores, jnp.int32), is_stable=False)

    return {"counting": jax.jit(counting), "sorting": jax.jit(sorting), "one sort": jax.jit(sort_alone)}


def main() -> None:
    """Print the table."""
    print("| metric | known rows | positives | counting, ms | sorting, ms | one sort alone, ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for metric in ("AP", "AUROC"):
        for n in (512, 1024, 4096, 10240):
            for positives in (16, 64, 128, 256, 512, 1024):
                if 2 * positives > n:
                    continue
                scores = jax.random.normal(jax.random.key(0), (POPULATION, n))
                labels = jnp.arange(n) < positives
                taken = milliseconds(programs(metric, positives), scores, labels, jnp.ones(n, bool))
                row = [metric, f"{n:,}", f"{positives:,}", *(f"{ms:.2f}" for ms in taken.values())]
                print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
