"""CFT here and by mlcpl, the library of the method's authors, on the same arrays in one run.

    python -m venv mlcpl && mlcpl/bin/pip install torch torchvision mlcpl==0.1.7
    python benchmarks/coco_embeddings.py COCO coco.npz
    python benchmarks/search_vs_mlcpl.py coco.npz --mlcpl mlcpl/bin/python

1. Time of a generation and category at the published operators, on three generated shapes: ours (a whole call of
   `search`, compiled before), mlcpl's, and the floor: one matrix product and one sort of the size. Medians over
   alternating rounds.
2. Real embeddings, 10 % of the labels known: what mlcpl reaches on validation in 1,000 generations, and how long the
   default recipe takes for all it does, compilation apart.
3. The same arrays: test mAP of the default recipe against mlcpl's best of GA, BCE and ASL (5,000 steps, stopped after
   300 without improvement, the best of all per category by validation).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generated
import jax
import jax.numpy as jnp
import numpy as np
import partial_problems

from cftjax import cli, metrics
from cftjax.cft import host_ranking
from cftjax.cft.choose import choose
from cftjax.cft.search import search
from cftjax.cft.tuning import fine_tune
from cftjax.config import ChooseConfig, TuningConfig, with_recipe
from cftjax.types import Embeddings, Heads

SHAPES = ((2000, 256, 10, 0.5), (8000, 1024, 14, 0.5), (8000, 2048, 20, 0.1))
ROUNDS = 3
GENERATIONS, THEIR_GENERATIONS, THEIR_CATEGORIES = 100, 15, 2
POPULATION = 50


@dataclasses.dataclass(frozen=True)
class Theirs:
    """mlcpl in its own environment.

    Attributes:
        python: of that environment.
        folder: for arrays on their way.
        threads: of torch.
    """

    python: Path
    folder: Path
    threads: int

    def run(
        self, train: Embeddings, validation: Embeddings, heads: Heads, method: str, steps: int, *options: str
    ) -> dict[str, np.ndarray]:
        """What mlcpl_side.py writes: kernel, bias, and per category seconds, steps and history."""
        arrays, results = self.folder / "arrays.npz", self.folder / "results.npz"
        given: dict[str, Any] = {"kernel": heads.kernel, "bias": heads.bias}
        for name, split in (("train", train), ("validation", validation)):
            given[f"{name}_z"] = split.z
            given[f"{name}_labels"] = np.where(split.known, split.labels, np.nan).astype(np.float32)
        np.savez(arrays, allow_pickle=False, **{name: np.asarray(value) for name, value in given.items()})
        side = Path(__file__).with_name("mlcpl_side.py")
        words = [self.python, side, arrays, results, "--method", method, "--steps", steps, *options]
        subprocess.run(list(map(str, words)), check=True, env={**os.environ, "OMP_NUM_THREADS": str(self.threads)})
        with np.load(results, allow_pickle=False) as file:
            return dict(file)


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    jax.block_until_ready(run())  # search and fine_tune return NumPy arrays, complete
    return time.perf_counter() - begun


def mean_ap(heads: Heads, split: Embeddings) -> float:
    """In percent, over the categories that are defined."""
    ap = metrics.average_precision(np.asarray(heads(split.z)), split.labels, split.known)
    return 100 * float(metrics.mean_defined(ap))


def floor(k: int, d: int) -> Callable[[], Any]:
    """Generations of nothing but a product [50 d] x [k d] and a sort of [50 k], the quicker of XLA's and ours."""
    population, z = jnp.ones((POPULATION, d)), jnp.ones((k, d))

    def program(sort: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
        def generation(i: jax.Array, genes: jax.Array, z: jax.Array) -> jax.Array:
            scores = jnp.einsum("kd,pd->kp", z, genes + i, precision=jax.lax.Precision.HIGHEST)
            # Scrambled, as scores are: some sorts are quick on what is sorted already.
            keys = jax.lax.bitcast_convert_type(scores, jnp.int32) * jnp.arange(1, 2 * k, 2)[:, None]
            return genes + 1e-20 * sort(keys)[0, :, None]

        return jax.jit(lambda genes, z: jax.lax.fori_loop(0, GENERATIONS, lambda i, g: generation(i, g, z), genes))

    sorts = (
        lambda keys: host_ranking.places(keys.T).start.T,
        lambda keys: jax.lax.sort(keys, dimension=0, is_stable=False),
    )
    programs = [program(sort) for sort in sorts]
    for compiled in programs:
        jax.block_until_ready(compiled(population, z))
    quickest = min(programs, key=lambda compiled: seconds(lambda: compiled(population, z)))
    return lambda: quickest(population, z)


def per_generation(theirs: Theirs) -> None:
    """Print the table of the first part."""
    print("| train rows | d | categories | known | mlcpl, ms | cftjax, ms | times less | floor, ms | cftjax / floor |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    paper = with_recipe(TuningConfig(), "paper").ga
    paper = dataclasses.replace(paper, num_generations=GENERATIONS, patience=GENERATIONS)
    for n, d, c, known in SHAPES:
        rng = np.random.default_rng(0)
        z, labels = generated.features(n + n // 4, d, c, rng)
        train, validation = (
            generated.split(z[rows], labels[rows], share, rng)
            for rows, share in ((slice(n), known), (slice(n, None), 1.0))
        )
        heads = generated.negative_heads(train)
        few = slice(THEIR_CATEGORIES)
        fewer, fewer_judging = (Embeddings(x.z, x.labels[:, few], x.known[:, few]) for x in (train, validation))
        ours = functools.partial(search, heads, train, validation, key=jax.random.key(0), config=paper)
        least = floor(int(train.known.sum(0).mean()), d)
        ours()
        taken: dict[str, list[float]] = {"mlcpl": [], "ours": [], "floor": []}
        for _ in range(ROUNDS):
            few_heads = Heads(heads.kernel[few], heads.bias[few])
            found = theirs.run(fewer, fewer_judging, few_heads, "ga", THEIR_GENERATIONS)
            taken["mlcpl"].append(1e3 * found["seconds"].sum() / found["steps"].sum())
            taken["ours"].append(1e3 * seconds(ours) / (GENERATIONS * c))
            taken["floor"].append(1e3 * seconds(least) / GENERATIONS)
        them, us, bare = (statistics.median(taken[name]) for name in ("mlcpl", "ours", "floor"))
        cells = [f"{n:,}", f"{d:,}", str(c), f"{known:.0%}", f"{them:.1f}", f"{us:.2f}", f"{them / us:.1f}"]
        print(f"| {' | '.join([*cells, f'{bare:.2f}', f'{us / bare:.2f}'])} |", flush=True)


def time_to_their_score(theirs: Theirs, p: partial_problems.Problem) -> None:
    """Print the second part."""
    first = seconds(lambda: fine_tune(p.train, p.validation, p.heads).heads)
    taken = [seconds(lambda: fine_tune(p.train, p.validation, p.heads).heads) for _ in range(ROUNDS)]
    again = statistics.median(taken)
    ours = fine_tune(p.train, p.validation, p.heads)
    found = 100 * float(np.nanmean(ours.scores["ga"]))
    thousand = theirs.run(p.train, p.validation, p.heads, "ga", 1000)
    reached = 100 * float(np.nanmean(thousand["history"][-1]))
    spent = float(thousand["seconds"].sum())
    print(f"mlcpl, 1,000 generations: validation mAP {reached:.2f} in {spent:.0f} s.", flush=True)
    print(
        f"cftjax, default recipe, everything: validation mAP {found:.2f} found by its search, in {again:.2f} s, "
        f"{spent / again:.0f} times less; {first - again:.1f} s more the first time (compilation, cached afterwards)."
    )
    before, after = (mean_ap(heads, p.test) for heads in (Heads(thousand["kernel"], thousand["bias"]), ours.heads))
    print(f"Test mAP: mlcpl's heads {before:.2f}, the heads that the default recipe chooses {after:.2f}.")


def final_scores(theirs: Theirs, p: partial_problems.Problem) -> None:
    """Print the third part."""
    candidates = {"backbone": p.heads}
    for method in ("ga", "bce", "asl"):
        found = theirs.run(p.train, p.validation, p.heads, method, 5000, "--patience", "300")
        heads = candidates[f"mlcpl {method}"] = Heads(found["kernel"], found["bias"])
        print(
            f"mlcpl {method}: test mAP {mean_ap(heads, p.test):.2f}, {found['seconds'].sum():.0f} s, "
            f"{found['steps'].sum():,} steps.",
            flush=True,
        )
    best = choose(candidates, p.train, p.validation, config=ChooseConfig(rule="best")).heads
    print(f"mlcpl, best of them per category by validation: test mAP {mean_ap(best, p.test):.2f}.")
    ours = fine_tune(p.train, p.validation, p.heads).heads
    print(f"cftjax, default recipe: test mAP {mean_ap(ours, p.test):.2f}.")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help="that coco_embeddings.py wrote")
    parser.add_argument("--mlcpl", type=Path, required=True, help="the Python of mlcpl's environment")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3], choices=(1, 2, 3))
    parser.add_argument("--known-proportion", type=float, default=0.1, help="of the labels, in parts 2 and 3")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(given.mlcpl, Path(folder), given.threads)
        if 1 in given.parts:
            per_generation(theirs)
        if given.parts == [1]:
            return
        p = partial_problems.make(given.embeddings, "uniform", given.known_proportion, 526)
        c, d = p.heads.kernel.shape
        print(f"\n{p.name} known, {c} categories, {len(p.train):,} training rows, {d} dimensions.")
        before, after = (mean_ap(p.heads, split) for split in (p.validation, p.test))
        print(f"Negative mode: mAP {before:.2f} on validation, {after:.2f} on test.")
        if 2 in given.parts:
            time_to_their_score(theirs, p)
        if 3 in given.parts:
            final_scores(theirs, p)


if __name__ == "__main__":
    cli.run(main)
