"""The default recipe at MS-COCO's size: time and memory of one run, and how the cost grows.

    python benchmarks/search_at_coco_size.py                       # 82,783 x 2048, 80 categories, 10 % known
    python benchmarks/search_at_coco_size.py --curve cost.png      # smaller runs, one size varied at a time

The embeddings are generated, with prevalences from 0.15 to 55 % as MS-COCO's hair driers and persons have, written to a
temporary folder, and read from there as memory maps, as a run's are. Peak memory is the resident size of the process,
pages of the maps included.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import generated
import jax
import numpy as np
from matplotlib.figure import Figure
from search_vs_mlcpl import mean_ap

from cftjax import cli
from cftjax.cft import crossfit
from cftjax.config import TuningConfig
from cftjax.types import Embeddings, Heads

T = TypeVar("T")
VALIDATION_SHARE = 0.1
PREVALENCES = (0.0015, 0.55)


@dataclasses.dataclass(frozen=True)
class Size:
    """Of one run.

    Attributes:
        rows: of train.
        dimensions: of the embeddings.
        categories: tuned one by one.
        known: share of the training labels; validation is complete.
    """

    rows: int = 82_783
    dimensions: int = 2048
    categories: int = 80
    known: float = 0.1


BASE = Size(10_000, 512, 10)
CURVES: dict[str, list[Size]] = {
    "rows": [dataclasses.replace(BASE, rows=n) for n in (5_000, 10_000, 20_000, 40_000)],
    "categories": [dataclasses.replace(BASE, categories=c) for c in (5, 10, 20, 40)],
    "dimensions": [dataclasses.replace(BASE, dimensions=d) for d in (256, 512, 1024, 2048)],
}


def make(size: Size, folder: Path) -> tuple[Embeddings, Embeddings, Heads]:
    """Train and validation with memory-mapped embeddings, and heads to begin with."""
    rng = np.random.default_rng(0)
    n = size.rows
    num = n + round(VALIDATION_SHARE * n)
    z, labels = generated.features(num, size.dimensions, size.categories, rng, PREVALENCES)
    heads = generated.negative_heads(generated.split(z[:n], labels[:n], size.known, rng))
    splits = []
    for name, rows, known in (("train", slice(n), size.known), ("validation", slice(n, None), 1.0)):
        np.save(folder / f"{name}.npy", z[rows])
        splits.append(generated.split(np.load(folder / f"{name}.npy", mmap_mode="r"), labels[rows], known, rng))
    return splits[0], splits[1], heads


def tune(train: Embeddings, validation: Embeddings, heads: Heads) -> tuple[dict[str, float], Heads]:
    """Seconds of each stage of the default recipe, and the heads chosen."""
    problem, seconds = crossfit.Problem(train, validation, heads, TuningConfig()), {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        begun = time.perf_counter(), time.process_time()
        result = work()
        seconds[stage] = time.perf_counter() - begun[0]
        print(f"{stage}: {seconds[stage]:.0f} s, {time.process_time() - begun[1]:.0f} s of processors", flush=True)
        return result

    winners = timed("search", lambda: crossfit.find(problem, jax.random.key(0)))
    whole = timed("polish", lambda: crossfit.learn(problem, crossfit.lanes_of(winners)))
    return seconds, timed("choice", lambda: crossfit.share(problem, whole)).heads


def peak_gigabytes() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def one_run(size: Size, folder: Path) -> None:
    """Print a run's figures; the data are made by another process, whose memory does not count."""
    train, validation, heads = load(folder)
    gigabytes = size.rows * size.dimensions * 4 / 1e9
    print(f"{size}: {gigabytes:.2f} GB of training embeddings", flush=True)
    before = peak_gigabytes()
    seconds, found = tune(train, validation, heads)
    words = ", ".join(f"{stage} {taken:.0f}" for stage, taken in seconds.items())
    print(f"{sum(seconds.values()):.0f} s, what had to be compiled included ({words})", flush=True)
    print(f"validation mAP {mean_ap(heads, validation):.2f} -> {mean_ap(found, validation):.2f}")
    print(f"peak resident memory {peak_gigabytes():.2f} GiB, of which {before:.2f} GiB before it began")


def save(size: Size, folder: Path) -> None:
    """Write what `load` reads."""
    train, validation, heads = make(size, folder)
    for name, split in (("train", train), ("validation", validation)):
        np.savez(folder / f"{name}.npz", labels=split.labels, known=split.known)
    np.savez(folder / "heads.npz", kernel=heads.kernel, bias=heads.bias)


def load(folder: Path) -> tuple[Embeddings, Embeddings, Heads]:
    """What `save` wrote, embeddings as memory maps."""
    found: list[Any] = []
    for name in ("train", "validation"):
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            found.append(Embeddings(np.load(folder / f"{name}.npy", mmap_mode="r"), file["labels"], file["known"]))
    with np.load(folder / "heads.npz", allow_pickle=False) as file:
        return found[0], found[1], Heads(file["kernel"], file["bias"])


def curve(picture: Path, folder: Path) -> None:
    """Draw the seconds of each stage as one size grows, the others fixed; compiled before."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    print("| rows | dimensions | categories | search, s | polish, s | choice, s |\n|---:|---:|---:|---:|---:|---:|")
    for axes, (name, sizes) in zip(figure.subplots(1, len(CURVES), sharey=True), CURVES.items(), strict=True):
        taken = []
        for size in sizes:
            problem = make(size, folder)
            tune(*problem)
            taken.append(tune(*problem)[0])
            cells = [f"{size.rows:,}", f"{size.dimensions:,}", str(size.categories)]
            cells += [f"{taken[-1][stage]:.1f}" for stage in ("search", "polish", "choice")]
            print(f"| {' | '.join(cells)} |", flush=True)
        x = [getattr(size, name) for size in sizes]
        for stage, title in (("search", "search"), ("polish", "polish"), ("choice", "choice")):
            axes.plot(x, [seconds[stage] for seconds in taken], marker="o", label=title)
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.set_xticks(x, [f"{value:,}" for value in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if name == "rows":
            axes.set_ylabel("seconds, compiled before")
            axes.legend(frameon=False)
    figure.suptitle(f"From {BASE.rows:,} rows, {BASE.categories} categories, {BASE.dimensions} dimensions, 10 % known")
    figure.savefig(picture, dpi=120)


def main() -> None:
    """One run at full size, or the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", type=Path, metavar="PNG")
    parser.add_argument("--rows", type=int, default=Size.rows)
    given = parser.parse_args()
    size = Size(rows=given.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.curve is not None:
            curve(given.curve, folder)
            return
        # In a child, so that the peak of this process is the run's.
        child = get_context("spawn").Process(target=save, args=(size, folder))
        child.start()
        child.join()
        if child.exitcode:
            raise ValueError("the data could not be generated")
        one_run(size, folder)


if __name__ == "__main__":
    cli.run(main)
