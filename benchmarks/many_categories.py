"""A fine-tuning of thousands of categories, and its page: seconds of every stage, sizes, and how long a browser takes.

    python benchmarks/many_categories.py [--categories 5000] [--workdir RUN] [options of cftjax finetune]

Writes embeddings [2,000 or 1,000 32] with labels of 5,000 categories drawn from a linear model, of which 30 % are known
in training, and calls `cftjax finetune` on them.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cftjax.runtime import storage

IMAGES = {"train": 2000, "validation": 1000, "test": 1000}
DIMENSIONS, KNOWN = 32, 0.3
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def write_bundle(path: Path, c: int) -> None:
    """Embeddings, labels, and heads that are the true ones with noise."""
    rng = np.random.default_rng(c)
    truth = rng.normal(size=(c, DIMENSIONS)).astype(np.float32)
    kernel = truth + rng.normal(size=truth.shape).astype(np.float32) * 0.8
    bias = -6 - 4 * rng.random(c)
    names = [f"/m/{i:05x} {'Object of the kind number' if i % 7 == 0 else 'thing'} {i}" for i in range(c)]
    arrays = {"kernel": 0.5 * kernel, "bias": (0.5 * bias).astype(np.float32), "categories": np.array(names)}
    for split, n in IMAGES.items():
        z = rng.normal(size=(n, DIMENSIONS)).astype(np.float32)
        chance = 1 / (1 + np.exp(-(1.2 * z @ truth.T + bias)))
        labels = (rng.random(chance.shape) < chance).astype(np.float32)
        if split == "train":
            labels[rng.random(labels.shape) > KNOWN] = np.nan
        arrays |= {f"{split}_z": z, f"{split}_labels": labels}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def opened(page: Path) -> float | None:
    """Seconds from the start of a browser until the page's scripts have run; None without a browser."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        return None
    with tempfile.TemporaryDirectory() as profile:
        call = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
        began = time.monotonic()
        subprocess.run([*call, page.absolute().as_uri()], capture_output=True, timeout=300, check=True)
        return time.monotonic() - began


def main() -> None:
    """Make the run, and say what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--categories", type=int, default=5000)
    parser.add_argument("--workdir", type=Path, default=Path("runs/many-categories"))
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle.npz"
        write_bundle(bundle, given.categories)
        began = time.monotonic()
        call = [sys.executable, "-m", "cftjax", "finetune", str(bundle), "-o", str(given.workdir), *options]
        subprocess.run(call, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - began:.0f} s, of a processor {used.ru_utime:.0f}, {used.ru_maxrss / 1e6:.1f} GB")
    for record in sorted(given.workdir.rglob("stage.json")):
        print(f"{record.parent.relative_to(given.workdir)}: {storage.read_json(record)['seconds']:.1f} s")
    for name in ("index.html", "table.csv", "metrics.json"):
        print(f"{name}: {(given.workdir / 'report' / name).stat().st_size / 1e6:.2f} MB")
    seconds = opened(given.workdir / "report" / "index.html")
    print("no browser to open it" if seconds is None else f"opened in {seconds:.1f} s")


if __name__ == "__main__":
    main()
