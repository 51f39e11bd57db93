"""The default fine-tuning at the size of Open Images V3: 1.7 million images, 5,000 categories, 9 million labels.

    python benchmarks/openimages_size.py                                             # all of it
    python benchmarks/openimages_size.py --tuned 100                                 # all images, 100 of the categories
    python benchmarks/openimages_size.py --rows 170000 --validation 4162 --test 12543 --categories 500 --labels 900000

Generates embeddings and sparse labels into a folder of .npy, as `cftjax finetune` takes them, and calls that in a fresh
process: time by stages, the most memory (its own, and with the pages of mapped files, which the system may take back),
and what lies on disk.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import tyro
from scipy.sparse import csr_array

from cftjax import runs
from cftjax.runtime import storage

FACTORS = 64
ROWS_AT_ONCE = 16384
# Of a category's labels.
POSITIVE = 0.3


@dataclasses.dataclass(frozen=True)
class Options:
    """Sizes."""

    rows: int = 1_700_000
    """Images to learn from."""
    validation: int = 41_620
    """Images to judge by."""
    test: int = 125_436
    """Images to report on."""
    categories: int = 5_000
    """Of which few are frequent: the k-th has labels in proportion to 1 / (k + 10)^0.7."""
    tuned: int | None = None
    """Hand over so many of the categories alone, evenly spread from the frequent to the rare, with all their labels."""
    dims: int = 256
    """Numbers of an embedding."""
    labels: int = 9_000_000
    """Labels to learn from; validation and test have four times as many an image."""
    folder: Path = Path("openimages_size")
    """Where the bundle and the run are written; what is there is kept, and a run goes on."""
    keep: bool = False
    """Keep the folder."""
    words: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further option of `cftjax finetune`, such as --words=--ga.num-generations=1; as often as wanted."""


@dataclasses.dataclass(frozen=True)
class World:
    """What embeddings and labels have in common."""

    mixing: np.ndarray
    teacher: np.ndarray
    share: np.ndarray
    threshold: np.ndarray

    @classmethod
    def drawn(cls, options: Options, rng: np.random.Generator) -> World:
        """By the seed."""
        mixing = rng.normal(size=(FACTORS, options.dims)).astype(np.float32) / np.sqrt(FACTORS)
        strength = np.arange(1, FACTORS + 1, dtype=np.float32) ** -0.5
        teacher = rng.normal(size=(options.categories, FACTORS)).astype(np.float32) * strength
        share = (np.arange(options.categories) + 10.0) ** -0.7
        spread = np.sqrt(2) * np.linalg.norm(teacher, axis=1)  # the noise is as strong as what can be told
        return cls(strength[:, None] * mixing, teacher, share / share.sum(), 0.5244 * spread)


def write_split(name: str, n: int, m: int, options: Options, world: World, rng: np.random.Generator) -> None:
    """One split: embeddings by blocks of rows; labels of random pairs of image and category."""
    kept = chosen(options)
    place = np.full(options.categories, -1)
    place[kept] = np.arange(len(kept))
    z = np.lib.format.open_memmap(options.folder / f"{name}_z.npy", "w+", np.float32, (n, options.dims))
    parts = []
    for start in range(0, n, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, n - start)
        factors = rng.standard_normal((size, FACTORS), np.float32)
        noise = rng.standard_normal((size, options.dims), np.float32)
        z[start : start + size] = np.maximum(factors @ world.mixing + 0.1 * noise, 0)
        number = round(m * (start + size) / n) - round(m * start / n)
        rows, columns = rng.integers(size, size=number), rng.choice(options.categories, number, p=world.share)
        _, first = np.unique(rows * options.categories + columns, return_index=True)
        rows, columns = rows[first], columns[first]
        told = np.einsum("kf,kf->k", factors[rows], world.teacher[columns])
        told += np.linalg.norm(world.teacher[columns], axis=1) * rng.standard_normal(len(rows), np.float32)
        here = place[columns] >= 0
        positive = told > world.threshold[columns]
        parts.append((rows[here] + start, place[columns[here]], positive[here]))
    z.flush()
    for part, arrays, dtype in zip(("rows", "columns", "values"), zip(*parts, strict=True), "iib", strict=True):
        np.save(options.folder / f"{name}_label_{part}.npy", np.concatenate(arrays).astype(dtype))


def chosen(options: Options) -> np.ndarray:
    """The categories that are handed over."""
    return np.unique(np.linspace(0, options.categories - 1, options.tuned or options.categories).astype(int))


def write_head(options: Options) -> None:
    """A last layer that points from the mean of all images to that of the known positives."""
    z = np.load(options.folder / "train_z.npy", mmap_mode="r")
    rows, columns, values = (np.load(options.folder / f"train_label_{x}.npy") for x in ("rows", "columns", "values"))
    c, positive = len(chosen(options)), values == 1
    weights = csr_array((np.ones(positive.sum(), np.float32), (rows[positive], columns[positive])), shape=(len(z), c))
    total, mean = np.zeros((c, options.dims)), np.zeros(options.dims)
    for start in range(0, len(z), ROWS_AT_ONCE):
        block = np.asarray(z[start : start + ROWS_AT_ONCE])
        total += weights[start : start + len(block)].T @ block
        mean += block.sum(0, dtype=np.float64) / len(z)
    kernel = total / np.maximum(weights.sum(0), 1)[:, None] - mean
    np.save(options.folder / "kernel.npy", kernel.astype(np.float32))
    np.save(options.folder / "bias.npy", np.zeros(c, np.float32))
    np.save(options.folder / "categories.npy", np.array([f"/m/{place:05x}" for place in chosen(options)]))


def write(options: Options) -> None:
    """The bundle, unless it is there."""
    if (options.folder / "categories.npy").is_file():
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    world = World.drawn(options, rng)
    each = options.labels / options.rows
    sizes = {"train": (options.rows, each), "validation": (options.validation, 4 * each)}
    for name, (n, labels) in (sizes | {"test": (options.test, 4 * each)}).items():
        write_split(name, n, round(n * labels), options, world, rng)
    write_head(options)


def watch(process: subprocess.Popen[bytes], most: dict[str, float]) -> None:
    """The most memory of a process, in GiB, once a second until it ends."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in ("VmHWM", "RssAnon"):
                most[name] = max(most.get(name, 0.0), int(value.split()[0]) / 2**20)
        time.sleep(1)


def size_of(folder: Path) -> float:
    """GB on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def main(options: Options) -> None:
    """Write, fine-tune, print."""
    began = time.perf_counter()
    write(options)
    print(
        f"{'bundle written':>40}: {time.perf_counter() - began:9,.0f} s, {size_of(options.folder):.2f} GB", flush=True
    )
    workdir, most = options.folder.with_name(options.folder.name + "_run"), {}
    command = [sys.executable, "-m", "cftjax", "finetune", str(options.folder), "--workdir", str(workdir)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *options.words])
    watcher = threading.Thread(target=watch, args=(process, most))
    watcher.start()
    code = process.wait()
    watcher.join()
    seconds = time.perf_counter() - began
    if code:
        raise SystemExit(f"cftjax finetune ended with {code} after {seconds:,.0f} s, at {most} GiB")
    for stage, spent in runs.Run(workdir).seconds().items():
        print(f"{stage:>40}: {spent:9,.0f} s")
    print(f"{'whole command':>40}: {seconds:9,.0f} s")
    print(f"{'memory of its own, at most':>40}: {most['RssAnon']:9.2f} GiB")
    print(f"{'with pages of mapped files':>40}: {most['VmHWM']:9.2f} GiB")
    print(f"{'run on disk':>40}: {size_of(workdir):9.2f} GB")
    page = workdir / "report" / "index.html"
    print(f"{'report/index.html':>40}: {page.stat().st_size / 1e6:9.2f} MB")
    metrics = storage.read_json(workdir / "report" / "metrics.json")["test"]
    before, after = (100 * metrics[stage]["mAP"] for stage in ("backbone", "final"))
    print(f"{'test mAP before and after':>40}: {before:.2f}, {after:.2f}")
    if not options.keep:
        shutil.rmtree(options.folder)
        shutil.rmtree(workdir)


if __name__ == "__main__":
    main(tyro.cli(Options))
