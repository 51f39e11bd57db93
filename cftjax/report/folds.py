"""What the folds of a cross-validation say together: means over folds and their intervals, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy import stats

from cftjax.metrics import MEAN
from cftjax.report import printing
from cftjax.runtime import storage

KINDS = ("before", "final", "change")
NOTE = (
    "Intervals: Student's t over folds, which share training images. The report of each fold has bootstrap intervals."
)


class Interval(NamedTuple):
    """A mean over folds.

    Attributes:
        mean: over the folds in which it is defined; NaN where in none.
        low: of the 95 % interval of Student's t; NaN with fewer than two folds.
        high: of it.
        folds: in which it is defined.
    """

    mean: float
    low: float
    high: float
    folds: int


def interval(values: Sequence[float | None]) -> Interval:
    """The mean of a score over folds and its 95 % interval.

    Folds share most of their training images, so that the interval is too narrow rather than too wide.
    """
    defined = np.array([value for value in values if value is not None and not np.isnan(value)], float)
    if len(defined) < 2:
        return Interval(float(defined.mean()) if len(defined) else np.nan, np.nan, np.nan, len(defined))
    half = stats.t.ppf(0.975, len(defined) - 1) * defined.std(ddof=1) / np.sqrt(len(defined))
    return Interval(float(defined.mean()), float(defined.mean() - half), float(defined.mean() + half), len(defined))


def summarise(folds: Sequence[dict[str, Any]]) -> dict[str, dict[str, Interval]]:
    """By category, and by the mean over categories: before, final and their difference.

    Args:
        folds: the metrics.json of each fold.
    """
    metric, categories = folds[0]["metric"], folds[0]["categories"]
    scores = {name: [fold["test"][name][metric] for fold in folds] for name in ("backbone", "final")}
    rows = {}
    for c, category in enumerate(categories):
        rows[category] = of_row(*([split[c] for split in scores[name]] for name in ("backbone", "final")))
    for mean in dict.fromkeys((MEAN[metric], *MEAN.values())):
        rows[mean] = of_row(*([fold["test"][name][mean] for fold in folds] for name in ("backbone", "final")))
    return rows


def of_row(before: Sequence[float | None], final: Sequence[float | None]) -> dict[str, Interval]:
    """A row of the table from the scores of every fold."""
    change = [None if a is None or b is None else b - a for a, b in zip(before, final, strict=True)]
    return {"before": interval(before), "final": interval(final), "change": interval(change)}


def write(folder: Path, folds: Sequence[dict[str, Any]]) -> None:
    """Print the table, and write folds.txt, folds.csv and folds.json.

    Args:
        folder: where to.
        folds: the metrics.json of each fold.
    """
    rows, images = summarise(folds), sum(fold["images"]["test"] for fold in folds)
    metric, count = folds[0]["metric"], len(folds)
    title = f"{metric} in % over {count} folds, {images:,} images tested once each; mean [95 % interval]"
    text = printing.printed(lambda width: [table(title, rows)], [NOTE])
    storage.write_bytes(folder / "folds.txt", text.encode())
    storage.write_bytes(folder / "folds.csv", to_csv(rows).encode())
    content = {
        name: {kind: printing.defined(value._asdict()) for kind, value in row.items()} for name, row in rows.items()
    }
    storage.write_json(folder / "folds.json", content)


def table(title: str, rows: dict[str, dict[str, Interval]]) -> Table:
    """A row per category, and one per mean over categories."""
    out = printing.begun(title)
    out.add_column("category", no_wrap=True, max_width=32, overflow="ellipsis")
    for name in ("backbone", "final", "change"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("folds", justify="right")
    for name, row in rows.items():
        cells = [shown(row["before"]), shown(row["final"]), shown(row["change"], "+")]
        out.add_row(Text(name), *cells, str(row["final"].folds))
    return out


def shown(value: Interval, sign: Literal["", "+"] = "") -> str:
    """A mean in percent and its interval; of a change, with its sign."""
    if np.isnan(value.mean):
        return printing.UNDEFINED
    mean = f"{100 * value.mean:{sign}.2f}"
    return mean if np.isnan(value.low) else f"{mean} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"


def to_csv(rows: dict[str, dict[str, Interval]]) -> str:
    """A row per category, all of it."""
    out = io.StringIO()
    writer = csv.writer(out)
    columns = [f"{kind} {part}" for kind in KINDS for part in ("mean", "low", "high")]
    writer.writerow(["category", *columns, "folds"])
    for category, row in rows.items():
        writer.writerow([category, *(value for kind in KINDS for value in row[kind][:3]), row["final"].folds])
    return out.getvalue()
