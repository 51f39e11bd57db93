"""Whether anything that the same labels allow is ahead of Negative mode with CFT on the default digits.

    python benchmarks/digits_modes.py OUT [--seeds 0 1 2]

Trains the default digits under every mode of unknown labels with binary cross-entropy, and in Negative and Ignore mode
with the other losses, a run each of `cftjax train` in OUT; what is done is kept. Then scores all on test before and
after CFT, with paired bootstrap intervals of what Negative with CFT is ahead by. `--only` trains nothing and says what
the runs that are there come to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cftjax
from cftjax.report import sweep_scores
from cftjax.report.sweep_scores import RunScores
from cftjax.scores import bootstrap
from cftjax.unknowns import MODES

RESAMPLES = 1000
OTHER_LOSSES = ("focal", "asymmetric")
RUNS = [(mode, "bce") for mode in MODES] + [
    (mode, loss) for loss in OTHER_LOSSES for mode in ("assume_negative", "ignore")
]
OURS = ("assume_negative", "bce")


def main() -> None:
    """Train what is not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", action="store_true", help="train nothing")
    asked = parser.parse_args()
    if not asked.only:
        for seed in asked.seeds:
            for run in RUNS:
                train(asked.out, *run, seed)
    scored = {
        run: [measured(asked.out, *run, seed) for seed in asked.seeds]
        for run in RUNS
        if complete(asked.out, run, asked.seeds)
    }
    print(f"mAP in % on test, mean of seeds {', '.join(map(str, asked.seeds))}\n")
    print("| mode | loss | before CFT | with CFT | CFT gains | Negative with CFT is ahead of it | of it with CFT |")
    print("|---|---|---:|---:|---:|---:|---:|")
    ours = scored[OURS]
    for (mode, loss), runs in scored.items():
        cells = [f"{100 * mean(runs, stage):.2f}" for stage in ("backbone", "final")]
        cells += [ahead(runs, "final", runs, "backbone"), ahead(ours, "final", runs, "backbone")]
        cells.append("" if runs is ours else ahead(ours, "final", runs, "final"))
        print(f"| {MODES[mode].title} | {loss} | {' | '.join(cells)} |")


def folder_of(out: Path, mode: str, loss: str, seed: int) -> Path:
    """Where a run lies."""
    return out / f"{mode}-{loss}-{seed}"


def complete(out: Path, run: tuple[str, str], seeds: Sequence[int]) -> bool:
    """Whether all seeds are done; else the row is left out, with a line that says so."""
    missing = [seed for seed in seeds if not (folder_of(out, *run, seed) / "report" / "metrics.json").is_file()]
    if missing:
        print(f"Left out, for seeds {missing} are not done: {' '.join(run)}")
    return not missing


def train(out: Path, mode: str, loss: str, seed: int) -> None:
    """One run; CSL with the threshold that docs/training.md advises for frequent categories."""
    words = ["--labels.unknown", mode, "--training.loss", loss, "--seed", str(seed), "--labels.prior-threshold", "0.5"]
    folder = folder_of(out, mode, loss, seed)
    subprocess.run([sys.executable, "-m", "cftjax", "train", *words, "--workdir", str(folder)], check=True)


def measured(out: Path, mode: str, loss: str, seed: int) -> RunScores:
    """What a run scores before and after CFT, under the same resamples as every other."""
    run = cftjax.open_run(folder_of(out, mode, loss, seed))
    return sweep_scores.of_run(run, "test", "AP", ["backbone", "final"], RESAMPLES)


def mean(runs: Sequence[RunScores], stage: str) -> float:
    """Over seeds."""
    return float(np.mean([run.scores[stage] for run in runs]))


def ahead(runs: Sequence[RunScores], stage: str, others: Sequence[RunScores], other: str) -> str:
    """In points, with the 95 % interval of the mean over seeds."""
    samples = [np.mean([run.samples[name] for run in of], axis=0) for of, name in ((runs, stage), (others, other))]
    found = bootstrap.interval(mean(runs, stage) - mean(others, other), samples[0] - samples[1])
    return f"{100 * found.value:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


if __name__ == "__main__":
    main()
