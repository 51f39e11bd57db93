"""What the runs of a cross-validation say of all images together, each by the run that has not learned from it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cftjax.evaluation import files
from cftjax.runs import Run
from cftjax.runtime import storage
from cftjax.scores import predictions
from cftjax.text import for_spreadsheet

PREDICTIONS = "predictions.csv"


def write(folder: Path, folds: Sequence[Path]) -> Path | None:
    """Write a row per image: its name, the fold that tested it, and that fold's calibrated probabilities.

    Args:
        folder: where to.
        folds: the runs, in order.

    Returns:
        The file; None where it would be too large to be made in memory.
    """
    runs = [Run(fold) for fold in folds]
    rows = sum(len(run.embeddings("test")) for run in runs)
    if rows * len(runs[0].categories) > files.MOST_CELLS:
        return None
    path = folder / PREDICTIONS
    with storage.replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "fold", *map(for_spreadsheet, runs[0].categories)])
        for number, run in enumerate(runs):
            truth, model = predictions.of_run(run, "test", str(number))
            probs = model.block(slice(0, len(truth.categories))).probs.astype(np.float32)
            names = truth.names or [str(row) for row in range(len(truth))]
            for name, values in zip(names, probs, strict=True):
                writer.writerow([for_spreadsheet(name), number, *map(str, values)])
    return path
