"""What each part of CFT is worth on real embeddings: search, polish, their order, and the choice.

    python benchmarks/coco_embeddings.py COCO coco.npz
    python benchmarks/search_ablation.py coco.npz --results ablation.jsonl

Each problem hides labels of the training photographs (10, 30 or 50 % stay; every label alike, or unevenly over
categories and images), carves a complete validation split from them, and begins with the heads of Negative mode
(partial_problems.py). Every variant is run on every problem; the tables give, on the complete test split, the change of
mAP in points, its standard error over the problems, and how many categories got worse (by more than one point).
Finished rows are kept in the results file, so that an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import partial_problems
from partial_problems import Problem

from cftjax import cli, metrics
from cftjax.cft.choose import choose
from cftjax.cft.polish import polish
from cftjax.cft.search import search
from cftjax.config import ChooseConfig, GAConfig, PolishConfig, TuningConfig, with_recipe
from cftjax.types import Embeddings, Heads

HIDING = [*itertools.product(("uniform", "uneven"), (0.1, 0.3, 0.5))]
PAPER = with_recipe(TuningConfig(), "paper")
OURS = GAConfig(dimensions=64)
WHOLE = dataclasses.replace(OURS, dimensions=None)
# A polish and a search from its heads are the candidates of every rule of choice.
RULES: dict[str, ChooseConfig] = {
    "plain best": ChooseConfig(rule="best"),
    "one standard error": ChooseConfig(rule="one_se"),
    "cross-validated": ChooseConfig(rule="cross_validated"),
    "shrunken": ChooseConfig(rule="shrunken"),
    "plain best, half-way heads as well": ChooseConfig(rule="best", mixes=(0.5,)),
    "shrunken, half-way heads as well": ChooseConfig(rule="shrunken", mixes=(0.5,)),
    "shrunken, quarters as well": ChooseConfig(rule="shrunken", mixes=(0.25, 0.5, 0.75)),
}

Variant = Callable[[Problem, int], Heads]


def searched(**changes: Any) -> Variant:
    """A search from the heads of Negative mode; `base` is what the changes are made to."""
    config = dataclasses.replace(changes.pop("base", OURS), **changes)
    return lambda p, seed: search(p.heads, p.train, p.validation, key=jax.random.key(seed), config=config).heads


def polished(**changes: Any) -> Variant:
    """A polish of the heads of Negative mode."""
    config = dataclasses.replace(changes.pop("base", PolishConfig()), **changes)
    return lambda p, seed: polish(p.heads, p.train, p.validation, config=config).heads


def polished_then_searched(**changes: Any) -> Variant:
    """The search begins with the polished heads, and sees those of Negative mode."""
    config = dataclasses.replace(OURS, **changes)

    def run(p: Problem, seed: int) -> Heads:
        start = polish(p.heads, p.train, p.validation).heads
        key = jax.random.key(seed)
        return search(start, p.train, p.validation, key=key, config=config, seeds=[p.heads]).heads

    return run


def searched_then_polished(ga: GAConfig) -> Variant:
    """The polish pulls towards the search's winner, or zero."""

    def run(p: Problem, seed: int) -> Heads:
        start = search(p.heads, p.train, p.validation, key=jax.random.key(seed), config=ga).heads
        return polish(start, p.train, p.validation).heads

    return run


def chosen(rule: str, source: str) -> Variant:
    """One rule of choice over Negative mode, polish, and a search from Negative mode or from the polish."""

    def run(p: Problem, seed: int) -> Heads:
        better = polish(p.heads, p.train, p.validation).heads
        start = better if source == "polish" else p.heads
        found = search(start, p.train, p.validation, key=jax.random.key(seed), config=OURS).heads
        candidates = {"backbone": p.heads, "polish": better, "ga": found}
        return choose(candidates, p.train, p.validation, config=RULES[rule]).heads

    return run


def as_published(p: Problem, seed: int) -> Heads:
    """The whole `paper` recipe: search, polish, plain best."""
    found = search(p.heads, p.train, p.validation, key=jax.random.key(seed), config=PAPER.ga).heads
    better = polish(found, p.train, p.validation, config=PAPER.polish).heads
    candidates = {"backbone": p.heads, "ga": found, "polish": better}
    return choose(candidates, p.train, p.validation, config=PAPER.choose).heads


# Table -> name -> variant.
TABLES: dict[str, dict[str, Variant]] = {
    "Search from the heads of Negative mode": {
        "as published (roulette, uniform 0.001, 5000 generations)": searched(base=PAPER.ga),
        "truncation, uniform 0.01, kernel and bias": searched(base=WHOLE, mutation="uniform", mutation_scale=0.01),
        "truncation, adaptive from 0.01, kernel and bias": searched(base=WHOLE, mutation_scale=0.01),
        **{f"{d} directions": searched(dimensions=d) for d in (16, 32, 64, 128, 256)},
        "64 directions, 1000 generations, patience 200": searched(num_generations=1000, patience=200),
        "64 directions, population 200": searched(population_size=200),
        "64 directions, half of the rows": searched(row_share=0.5),
        "64 directions, two restarts": searched(restarts=2),
        "64 directions, seeded by shrunken heads": searched(seeds=("shrunken",)),
        "64 directions, seeded by a gradient step": searched(seeds=("gradient",)),
        "64 directions, bfloat16": searched(embeddings_dtype="bfloat16"),
        **{
            f"64 directions, {name}": searched(algorithm=name)
            for name in ("SNES", "Sep_CMA_ES", "Open_ES", "PGPE", "DifferentialEvolution")
        },
    },
    "Polish of the heads of Negative mode": {
        "as published: Adam 1e-4, BCE": polished(base=PAPER.polish),
        "as published: Adam 1e-4, ASL": polished(base=PAPER.polish, loss="asymmetric"),
        "Adam, both pulls": polished(optimizer="adam"),
        "Newton, pulled towards the start": polished(pull_towards=("start",)),
        "Newton, pulled towards zero": polished(pull_towards=("zero",)),
        **{f"Newton, both pulls, {d} directions": polished(dimensions=d) for d in (64, 128, 256, 1280)},
        "Newton, both pulls, 512 directions": polished(),
        "Newton, both pulls, picked by plain best": polished(rule="best"),
        "Newton, both pulls, picked by one standard error": polished(rule="one_se"),
        "Newton, both pulls, picked by cross-validation": polished(rule="cross_validated"),
    },
    "Order": {
        "polish alone": polished(),
        "search, then polish": searched_then_polished(OURS),
        "polish, then search": polished_then_searched(),
        "polish, then search in 16 directions": polished_then_searched(dimensions=16),
        "polish, then search on half of the rows": polished_then_searched(row_share=0.5),
        "polish, then search, SNES": polished_then_searched(algorithm="SNES"),
        "the paper recipe, whole": as_published,
    },
    "Choice among Negative mode, polish, and a search from the polish": {
        rule: chosen(rule, "polish") for rule in RULES
    },
    "Choice among Negative mode, polish, and a search from Negative mode": {
        rule: chosen(rule, "Negative mode") for rule in RULES
    },
}


def ap(heads: Heads, split: Embeddings) -> list[float]:
    """[c] in percent."""
    return (100 * np.asarray(metrics.average_precision(np.asarray(heads(split.z)), split.labels, split.known))).tolist()


def rows(file: Path, results: Path, seeds: int, only: str) -> Iterator[dict[str, Any]]:
    """Run what is not in the results yet, problem by problem, and give every row."""
    done: dict[tuple[str, str, int], dict[str, Any]] = {}
    if results.is_file():
        for line in results.read_text().splitlines():
            row = json.loads(line)
            done[row["variant"], row["problem"], row["seed"]] = row
    for (hide, known), seed in itertools.product(HIDING, range(seeds)):
        problem = partial_problems.make(file, hide, known, seed)
        before = ap(problem.heads, problem.test)
        for table, variants in TABLES.items():
            for name, variant in variants.items():
                key = (f"{table}: {name}", problem.name, seed)
                if key not in done and only in key[0]:
                    begun = time.monotonic()
                    heads = variant(problem, seed)
                    seconds = time.monotonic() - begun
                    row = dict(zip(("variant", "problem", "seed"), key, strict=True), before=before, seconds=seconds)
                    row |= {"after": ap(heads, problem.test), "validation": ap(heads, problem.validation)}
                    done[key] = row
                    with results.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(f"{problem.name}, seed {seed}, {key[0]}: {seconds:.1f} s", flush=True)
                if key in done:
                    yield done[key]


def print_tables(found: list[dict[str, Any]]) -> None:
    """One Markdown table each: changes per way of hiding, the mean with its standard error, and the harm done."""
    names = [f"{hide} {known:.0%}" for hide, known in HIDING]
    for table, variants in TABLES.items():
        print(f"\n**{table}**\n")
        print(f"| | {' | '.join(names)} | mean | validation mAP | worse | by > 1 point |")
        print(f"|---|{'---:|' * (len(names) + 4)}")
        for name in variants:
            mine = [row for row in found if row["variant"] == f"{table}: {name}"]
            if not mine:
                continue
            change = {row["problem"]: [] for row in mine}
            for row in mine:
                change[row["problem"]].append(np.nanmean(np.subtract(row["after"], row["before"])))
            each = np.concatenate([*change.values()])
            error = np.std(each, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
            drop = np.stack([np.subtract(row["after"], row["before"]) for row in mine])
            cells = [f"{np.mean(change[p]):+.2f}" if p in change else "" for p in names]
            cells += [
                f"{np.mean(each):+.2f} ± {error:.2f}",
                f"{np.mean([np.nanmean(r['validation']) for r in mine]):.2f}",
            ]
            cells += [f"{(drop < 0).mean():.0%}", f"{(drop < -1).mean():.0%}"]
            print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="that coco_embeddings.py wrote")
    parser.add_argument("--results", type=Path, default=Path("ablation.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="a word of the variants to run")
    given = parser.parse_args()
    print_tables(list(rows(given.file, given.results, given.seeds, given.only)))


if __name__ == "__main__":
    cli.run(main)
