"""How long, and in how much memory, the labels of a set of the size of Open Images V3 are read.

    python benchmarks/openimages_csv.py                          # 9 million rows, 1.7 million images, 5,000 categories
    python benchmarks/openimages_csv.py --rows 100000 --images 20000

Writes a table of random labels into a temporary folder, then reads it in a fresh process, whose peak memory is printed
beside what the imports alone take. One core does the work.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import tyro

from cftjax.data import sparse
from cftjax.data.openimages import ANNOTATIONS, OpenImagesData

# Rows written at a time.
BLOCK_ROWS = 500_000


@dataclasses.dataclass(frozen=True)
class Options:
    """Size of the table."""

    rows: int = 9_000_000
    """Labels."""
    images: int = 1_700_000
    """Images; each has about rows / images labels, next to each other in the table as in the release."""
    categories: int = 5_000
    """Trainable categories; a tenth as many others occur as well, which the reader leaves out."""
    seed: int = 0
    """Of the random labels."""
    folder: str | None = None
    """Read this folder instead of writing one; the fresh process uses it."""


def write(root: Path, options: Options) -> None:
    """The list of categories and the table of the training split."""
    rng = np.random.default_rng(options.seed)
    names = np.array([f"/m/{number:05x}" for number in range(options.categories * 11 // 10)])
    (root / "classes-trainable.txt").write_text("\n".join(names[: options.categories]) + "\n")
    (root / "train").mkdir()
    # Ids look as those of the release do: sixteen hexadecimal digits, ascending.
    ids = np.sort(rng.integers(2**63, size=options.images))
    owner = np.sort(rng.integers(options.images, size=options.rows))
    schema = pa.schema([(name, pa.string()) for name in ("ImageID", "Source", "LabelName", "Confidence")])
    style = pyarrow.csv.WriteOptions(quoting_style="none")
    with pyarrow.csv.CSVWriter(root / "train" / ANNOTATIONS, schema, write_options=style) as writer:
        for start in range(0, options.rows, BLOCK_ROWS):
            rows = owner[start : start + BLOCK_ROWS]
            columns = [
                pa.array([f"{image:016x}" for image in ids[rows].tolist()]),
                pa.array(np.where(rng.random(len(rows)) < 0.5, "verification", "crowdsource-verification")),
                pa.array(names[rng.integers(len(names), size=len(rows))]),
                pa.array(np.where(rng.random(len(rows)) < 0.5, "1", "0")),
            ]
            writer.write(pa.table(columns, schema=schema))


def peak_megabytes() -> float:
    """The most memory that this process has held so far."""
    # Not getrusage: its figure lives on from the process that started this one.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def read(root: Path) -> dict[str, float]:
    """Read the table once, then take labels as training and search do."""
    report = {"memory of the imports, MB": peak_megabytes()}
    start = time.perf_counter()
    dataset = OpenImagesData(str(root), check_files=False).load()
    report["read, seconds"] = time.perf_counter() - start
    report["peak memory, MB"] = peak_megabytes()
    labels = dataset.splits["train"].labels
    if not isinstance(labels, sparse.SparseLabels):
        raise TypeError(f"labels came as {type(labels).__name__}: they must stay sparse.")
    report["images"], report["categories"] = labels.shape
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(100):
        labels[rng.integers(labels.shape[0], size=128)]
    report["a batch of 128 rows, ms"] = (time.perf_counter() - start) * 10
    group = np.arange(min(64, labels.shape[1]))
    start = time.perf_counter()
    labels.columns(group)
    report["the first 64 categories of all rows, seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    labels.columns(group)
    report["64 categories again, seconds"] = time.perf_counter() - start
    report["peak memory with these, MB"] = peak_megabytes()
    return report


def main(options: Options) -> None:
    """Write, read in a fresh process, print."""
    if options.folder is not None:
        print(json.dumps(read(Path(options.folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write(Path(folder), options)
        size = (Path(folder) / "train" / ANNOTATIONS).stat().st_size / 2**20
        print(f"wrote {options.rows:,} rows, {size:,.0f} MB, in {time.perf_counter() - start:.1f} s")
        command = [sys.executable, __file__, "--folder", folder]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name, value in json.loads(answer).items():
        print(f"{name:>46}: {value:12,.2f}" if value % 1 else f"{name:>46}: {value:12,.0f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
