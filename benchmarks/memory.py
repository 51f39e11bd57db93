"""How much memory a long run holds: resident memory of a training, sampled every second, stage by stage.

    python benchmarks/memory.py --folder FOLDER [options of cftjax.train]

Writes `memory.csv` (seconds, stage, epochs done, MB) and `memory.png` into the folder, the run beside them, and prints
for every stage the median of each quarter of its time. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import matplotlib.figure
import numpy as np

from cftjax.runtime import storage

QUARTERS = 4


def resident(pid: int) -> float:
    """MB that a process holds in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def under_way(workdir: Path) -> str:
    """The stage begun last; the run's name for it."""
    # Not everywhere: folders of checkpoints disappear while one looks.
    records = [*workdir.glob("*/stage.json"), *workdir.glob("*/*/stage.json")]
    records.sort(key=lambda path: path.stat().st_mtime)
    return records[-1].parent.relative_to(workdir).as_posix() if records else "starting"


def watch(workdir: Path, options: list[str], table: TextIO) -> list[tuple[float, str, int, float]]:
    """Run the training command; (seconds, stage, epochs done, MB) every second, also as lines of a table."""
    command = [sys.executable, "-m", "cftjax.train", "--workdir", str(workdir), *options]
    process, began, samples = subprocess.Popen(command), time.monotonic(), []
    while process.poll() is None:
        try:
            held = resident(process.pid)
        except FileNotFoundError:
            break
        history = workdir / "backbone" / "history.json"
        epochs = len(storage.read_json(history)["loss"]) if history.is_file() else 0
        if held:
            samples.append((time.monotonic() - began, under_way(workdir), epochs, held))
            print(*samples[-1], sep=",", file=table, flush=True)
        time.sleep(1.0)
    if process.wait():
        sys.exit("the run failed")
    return samples


def main() -> None:
    """Watch, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    given, options = parser.parse_known_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with (given.folder / "memory.csv").open("w") as file:
        print("seconds,stage,epochs,MB", file=file)
        samples = watch(given.folder / "run", options, file)
    print(
        f"{'stage':<24}{'seconds':>8}" + "".join(f"{f'quarter {i + 1}':>12}" for i in range(QUARTERS)) + f"{'most':>8}"
    )
    figure = matplotlib.figure.Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for stage in dict.fromkeys(stage for _, stage, _, _ in samples):
        times = np.array([s for s, name, _, _ in samples if name == stage])
        held = np.array([mb for _, name, _, mb in samples if name == stage])
        axes.plot(times, held, label=stage)
        parts = [f"{np.median(part):,.0f}" if len(part) else "" for part in np.array_split(held, QUARTERS)]
        print(f"{stage:<24}{np.ptp(times):>8,.0f}" + "".join(f"{part:>12}" for part in parts) + f"{held.max():>8,.0f}")
    axes.set(xlabel="seconds", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend(fontsize="x-small")
    figure.savefig(given.folder / "memory.png", dpi=150)


if __name__ == "__main__":
    main()
