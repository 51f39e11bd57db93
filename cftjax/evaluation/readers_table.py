"""People beside models, as a part of metrics.json, as tables and as CSV."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cftjax.evaluation.readers import Compared
from cftjax.metrics import mean_of
from cftjax.report import printing
from cftjax.report.printing import FULL_WIDTH, UNDEFINED, begun, defined

# Characters of "100.00 / 100.00", and of "2.60 of 3".
POINT_WIDTH, COUNT_WIDTH = 15, 10
NOTE = (
    "A reader lies below a curve if the model is more sensitive at the reader's own false positive rate; curves are "
    "straight between neighbouring scores, as AUROC takes them."
)


def to_dict(compared: Compared) -> dict[str, Any]:
    """What metrics.json holds of people: each one's scores, and by model who lies below its curve."""
    return {
        "each": [
            {"name": reader.name, **defined(dataclasses.asdict(point))}
            for reader, point in zip(compared.readers, compared.points, strict=True)
        ],
        "below": {
            model: {
                "readers": [defined(row) for row in below],
                "mean": defined(mean_of(counts(below)[0])),
                "share": defined(float(np.nanmean(below)) if np.isfinite(below).any() else float("nan")),
            }
            for model, below in compared.below.items()
        },
    }


def counts(below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[c] how many readers lie below, NaN where there is none to say it of, and of how many."""
    there = np.isfinite(below).sum(0)
    return np.where(there > 0, np.nansum(below, axis=0), np.nan), there


def tables(out: Mapping[str, Any], width: int, shown: Sequence[int]) -> list[Table]:
    """Who lies below which curve, and where each reader stands.

    Args:
        out: the contents of metrics.json.
        width: characters at hand.
        shown: places of the categories that have rows.
    """
    return [below_curves(out, width, shown), operating_points(out, width, shown)]


def below_curves(out: Mapping[str, Any], width: int, shown: Sequence[int]) -> Table:
    """A row per category: how many readers lie below each model's curve."""
    table, models = begun("Readers below the ROC curve"), out["readers"]["below"]
    room = _room(table, width, COUNT_WIDTH)
    # The last is what it is all about.
    listed = list(models) if len(models) <= room else [*list(models)[: room - 1], list(models)[-1]]
    each = [counts(np.array(models[name]["readers"], float)) for name in listed]
    for name in listed:
        title = printing.named(name)
        table.add_column(title, justify="right", no_wrap=True, max_width=COUNT_WIDTH, overflow="ellipsis")
    for c in shown:
        cells = [UNDEFINED if np.isnan(below[c]) else f"{below[c]:.0f} of {of[c]}" for below, of in each]
        table.add_row(printing.named(out["categories"][c]), *cells, end_section=c == shown[-1])
    most = len(out["readers"]["each"])
    means = [models[name]["mean"] for name in listed]
    shares = [models[name]["share"] for name in listed]
    table.add_row("mean", *(UNDEFINED if m is None else f"{m:.2f} of {most}" for m in means), style="bold")
    table.add_row("share", *(UNDEFINED if s is None else f"{100 * s:.0f} %" for s in shares), style="bold")
    return table


def operating_points(out: Mapping[str, Any], width: int, shown: Sequence[int]) -> Table:
    """A row per category: sensitivity and specificity of each reader."""
    people = out["readers"]["each"]
    table = begun(f"Readers on {out['source']}: sensitivity / specificity in %")
    listed = people[: _room(table, width, POINT_WIDTH)]
    for person in listed:
        title = printing.named(person["name"])
        table.add_column(title, justify="right", no_wrap=True, max_width=POINT_WIDTH, overflow="ellipsis")
    for c in shown:
        points = [(person["sensitivity"][c], person["false_positive_rate"][c]) for person in listed]
        cells = map(_point, *zip(*points, strict=True))
        table.add_row(printing.named(out["categories"][c]), *cells, end_section=c == shown[-1])
    means = [[_mean(person[name]) for person in listed] for name in ("sensitivity", "false_positive_rate")]
    table.add_row("mean", *map(_point, *means), style="bold")
    return table


def _room(table: Table, width: int, column: int) -> int:
    """Begin a table with the column of categories; how many columns of so many characters there is room for."""
    names_width = 24 if width >= FULL_WIDTH else 16
    table.add_column("category", no_wrap=True, max_width=names_width, overflow="ellipsis")
    return max((width - names_width - 3) // (column + 3), 1)


def _mean(values: Sequence[float | None]) -> float | None:
    return defined(mean_of(np.array(values, float)))


def _point(sensitivity: float | None, false: float | None) -> str:
    other = None if false is None else 1 - false
    return f"{printing.percent(sensitivity)} / {printing.percent(other)}"


def to_csv(out: Mapping[str, Any], *, raw: bool = False) -> str:
    """A row per reader and category; in [0, 1] at full precision, undefined ones empty; 1 where below a model."""
    people, below = out["readers"]["each"], out["readers"]["below"]
    scores = [name for name in people[0] if name != "name"]
    header = ["reader", "category", "known_positive", "known_negative", *scores, *(f"below {name}" for name in below)]
    lines: list[list[Any]] = [header]
    for r, person in enumerate(people):
        for c, category in enumerate(out["categories"]):
            row = [person["name"], category, out["known"]["positive"][c], out["known"]["negative"][c]]
            marks = [one["readers"][r][c] for one in below.values()]
            marks = [None if mark is None else int(mark) for mark in marks]
            lines.append([*row, *(person[name][c] for name in scores), *marks])
    return printing.to_csv(lines, raw=raw)
