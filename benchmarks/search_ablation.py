"""What each part of CFT is worth on real embeddings: search, polish, their order, and the choice.

    python benchmarks/coco_embeddings.py COCO coco.npz
    python benchmarks/search_ablation.py coco.npz --results ablation.jsonl

Each problem hides labels of the training photographs (10, 30 or 50 % stay; every label alike, or unevenly over
categories and images), carves a complete validation split from them, and begins with the heads of Negative mode
(partial_problems.py). Every variant is run on every problem; the tables give, on the complete test split, the change of
mAP in points, its standard error over the problems, and how many categories got worse (by more than one point). A last
table compares what searches claim on validation with what they gain on its held-out halves and on test.
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
from cftjax.cft.search import Found, search
from cftjax.config import ChooseConfig, GAConfig, PolishConfig, TuningConfig, with_recipe
from cftjax.types import Embeddings, Heads

HIDING = [*itertools.product(("uniform", "uneven"), (0.1, 0.3, 0.5))]
PAPER = with_recipe(TuningConfig(), "paper")
# The former default, and the same without restarts.
FORMER = GAConfig(dimensions=64, num_generations=400, restarts=30)
OURS = dataclasses.replace(FORMER, patience=60, restarts=0)
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


@dataclasses.dataclass(frozen=True)
class Bench:
    """One problem; what several variants share is computed once."""

    problem: Problem
    seed: int
    done: dict[str, Any] = dataclasses.field(default_factory=dict)

    def find(self, config: GAConfig, start: Heads | None = None) -> Found:
        """From the heads of Negative mode, or from others, which then see those as a seed."""
        p, seeds = self.problem, [] if start is None else [self.problem.heads]
        name, key = f"{config} {id(start)}", jax.random.key(self.seed)
        if name not in self.done:
            self.done[name] = search(start or p.heads, p.train, p.validation, key=key, config=config, seeds=seeds)
        return self.done[name]

    def search(self, config: GAConfig, start: Heads | None = None) -> Heads:
        """The heads found."""
        return self.find(config, start).heads

    def polish(self, config: PolishConfig, start: Heads | None = None) -> Heads:
        """From the heads of Negative mode, or from others."""
        p, name = self.problem, f"{config} {id(start)}"
        if name not in self.done:
            self.done[name] = polish(start or p.heads, p.train, p.validation, config=config).heads
        return self.done[name]

    def choose(self, config: ChooseConfig, fair_scores: dict[str, np.ndarray] | None = None, **others: Heads) -> Heads:
        """Between Negative mode and others."""
        p, candidates = self.problem, {"backbone": self.problem.heads, **others}
        return choose(candidates, p.train, p.validation, config=config, fair_scores=fair_scores).heads


# Slow, or compiled for long: the first seed is enough to see where these stand, and even hiding for the others.
ONCE = (
    "as published",
    "paper recipe",
    "1000 generations",
    "bfloat16",
    "SNES",
    "CMA",
    "Open_ES",
    "PGPE",
    "Differential",
)
EVENLY = ("16 ", "32 ", "128 ", "256 ", "1280 ", "after 15", "seeded", "half of the rows", *ONCE[2:])

# A search may be given back whole: the table of claims then has a row of it.
Variant = Callable[[Bench], Heads | Found]


def searched(**changes: Any) -> Variant:
    """A search from the heads of Negative mode; `base` is what the changes are made to."""
    config = dataclasses.replace(changes.pop("base", OURS), **changes)
    return lambda bench: bench.search(config)


def polished(**changes: Any) -> Variant:
    """A polish of the heads of Negative mode; `base` is what the changes are made to."""
    config = dataclasses.replace(changes.pop("base", PolishConfig()), **changes)
    return lambda bench: bench.polish(config)


def polished_then_searched(**changes: Any) -> Variant:
    """The search begins with the polished heads."""
    config = dataclasses.replace(changes.pop("base", OURS), **changes)
    return lambda bench: bench.find(config, bench.polish(PolishConfig()))


def chosen(rule: str, fair: bool) -> Variant:
    """One rule of choice over Negative mode, polish, and a search from the polish, as in the default recipe."""

    def run(bench: Bench) -> Heads:
        better = bench.polish(PolishConfig())
        found = bench.find(FORMER, better)
        scores = {"ga": found.fair_scores} if fair else None
        return bench.choose(RULES[rule], scores, polish=better, ga=found.heads)

    return run


def as_published(bench: Bench) -> Heads:
    """The whole `paper` recipe: search, polish, plain best."""
    found = bench.search(PAPER.ga)
    return bench.choose(PAPER.choose, ga=found, polish=bench.polish(PAPER.polish, found))


# Table -> name -> variant.
TABLES: dict[str, dict[str, Variant]] = {
    "Search from the heads of Negative mode": {
        "as published (roulette, uniform 0.001, 5000 generations)": searched(base=PAPER.ga),
        "truncation, uniform 0.01, kernel and bias": searched(base=WHOLE, mutation="uniform", mutation_scale=0.01),
        "truncation, adaptive from 0.01, kernel and bias": searched(base=WHOLE, mutation_scale=0.01),
        **{f"{d} directions": searched(dimensions=d) for d in (16, 32, 64, 128)},
        "64 directions, 1000 generations, patience 200": searched(num_generations=1000, patience=200),
        "64 directions, half of the rows": searched(row_share=0.5),
        "64 directions, 30 restarts after 15 generations each": searched(base=FORMER),
        "64 directions, seeded by shrunken heads and a gradient step": searched(seeds=("shrunken", "gradient")),
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
        "Pulled towards the start": polished(pull_towards=("start",)),
        "Pulled towards zero": polished(pull_towards=("zero",)),
        **{f"Both pulls, {d} directions": polished(dimensions=d) for d in (64, 128, 256, 1280)},
        "Both pulls, 512 directions": polished(),
        "Both pulls, picked by plain best": polished(rule="best"),
        "Both pulls, picked by one standard error": polished(rule="one_se"),
        "Both pulls, picked by cross-validation": polished(rule="cross_validated"),
    },
    "Order": {
        "polish alone": polished(),
        "search, then polish": lambda bench: bench.polish(PolishConfig(), bench.search(OURS)),
        "polish, then search": polished_then_searched(),
        "polish, then search in 16 directions": polished_then_searched(dimensions=16),
        "polish, then search with 30 restarts": polished_then_searched(base=FORMER),
        "polish, then search on half of the rows": polished_then_searched(row_share=0.5),
        "polish, then search, SNES": polished_then_searched(algorithm="SNES"),
        "the paper recipe, whole": as_published,
    },
    "Choice, the search's validation score taken at its word": {rule: chosen(rule, fair=False) for rule in RULES},
    "Choice, the search's gain measured on held-out halves of validation": {
        rule: chosen(rule, fair=True) for rule in RULES if "best" not in rule
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
    for seed, (hide, known) in itertools.product(range(seeds), HIDING):
        problem = partial_problems.make(file, hide, known, seed)
        before, bench = ap(problem.heads, problem.test), Bench(problem, seed)
        jax.clear_caches()  # so many programs at once exhaust what a process may map of memory
        for table, variants in TABLES.items():
            for name, variant in variants.items():
                key = (f"{table}: {name}", problem.name, seed)
                left_out = (ONCE if seed else ()) + (EVENLY if hide == "uneven" else ())
                wanted = only in key[0] and not any(word in name for word in left_out)
                if key not in done and wanted:
                    begun = time.monotonic()
                    made = variant(bench)
                    heads = made.heads if isinstance(made, Found) else made
                    seconds = time.monotonic() - begun
                    row = dict(zip(("variant", "problem", "seed"), key, strict=True), before=before, seconds=seconds)
                    row |= {"after": ap(heads, problem.test), "validation": ap(heads, problem.validation)}
                    if isinstance(made, Found):
                        claim, held_out = (
                            100 * float(np.nanmean(x)) for x in (made.after - made.before, made.held_out)
                        )
                        row |= {"claim": claim, "held_out": held_out}
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


def print_claims(found: list[dict[str, Any]]) -> None:
    """What searches from the polish say they gained, against the truth."""
    polish = {(row["problem"], row["seed"]): row["after"] for row in found if row["variant"] == "Order: polish alone"}
    print("\n**What a search from the polished heads claims**\n")
    print("| | gain on validation | on held-out halves | on test |\n|---|---:|---:|---:|")
    for name in dict.fromkeys(row["variant"] for row in found if "claim" in row):
        mine = [row for row in found if row["variant"] == name]
        gains = [np.nanmean(np.subtract(row["after"], polish[row["problem"], row["seed"]])) for row in mine]
        cells = [f"{np.mean([row[kind] for row in mine]):+.2f}" for kind in ("claim", "held_out")]
        print(f"| {name.removeprefix('Order: ')} | {' | '.join(cells)} | {np.mean(gains):+.2f} |")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="that coco_embeddings.py wrote")
    parser.add_argument("--results", type=Path, default=Path("ablation.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="a word of the variants to run")
    given = parser.parse_args()
    found = list(rows(given.file, given.results, given.seeds, given.only))
    print_tables(found)
    print_claims(found)


if __name__ == "__main__":
    cli.run(main)
