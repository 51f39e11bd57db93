"""What a sweep has come to, as a person reads it: two tables and a picture.

The first table has scores: every mode before CFT, Negative mode after each stage of CFT, every other one after all of
it. The second has what CFT gains over the backbone it started from, and over Ignore mode, with bootstrap intervals.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from cftjax import figures
from cftjax.config import LabelsConfig
from cftjax.metrics import MEAN
from cftjax.report import printing, sweep_scores
from cftjax.report.sweep_scores import FINAL, SweepScores
from cftjax.runtime import storage
from cftjax.scores.bootstrap import Interval
from cftjax.unknowns import MODES


def write(folder: Path, scores: SweepScores, labels: LabelsConfig, console: Console | None = None) -> None:
    """Print the tables, and write table.txt, table.csv, gains.csv, table.json and table.png.

    Args:
        folder: of the sweep.
        scores: of its runs.
        labels: how labels were hidden, for the note.
        console: where the tables are printed; None is the terminal.
    """
    shown = [table(scores), *([gains_table(scores)] if scores.gains else [])]
    text = printing.printed(lambda _: shown, notes(scores, labels), console)
    storage.write_bytes(folder / "table.txt", text.encode())
    storage.write_bytes(folder / "table.csv", sweep_scores.to_csv(scores).encode())
    storage.write_bytes(folder / "gains.csv", sweep_scores.gains_to_csv(scores).encode())
    storage.write_json(folder / "table.json", sweep_scores.to_json(scores))
    picture = io.BytesIO()
    figure(scores).savefig(picture, format="png", dpi=150)
    storage.write_bytes(folder / "table.png", picture.getvalue())


def figure(scores: SweepScores) -> Figure:
    """Lines over proportions; of more than two modes, what CFT makes of each, a panel for each proportion."""
    mean, rows = MEAN[scores.metric], scores.rows
    if len([mode for mode in scores.runs if mode != sweep_scores.FULL]) <= 2:
        return figures.over_proportions(
            scores.proportions,
            scores.methods,
            strong=FINAL if FINAL in rows else list(rows)[-1],
            metric=mean,
            split=scores.split,
        )
    methods = scores.methods
    before = {
        MODES[mode].title: methods[name]
        for name, (mode, stage) in rows.items()
        if stage == "backbone" and mode != sweep_scores.FULL
    }
    after = {MODES[mode].title: methods[name] for name, (mode, stage) in rows.items() if stage == "final"}
    return figures.over_modes(
        before,
        after,
        proportions=scores.proportions,
        metric=mean,
        split=scores.split,
    )


def table(scores: SweepScores) -> Table:
    """A row per mode and stage; columns of known proportions and their mean, in %."""
    title = f"{MEAN[scores.metric]} in % on {scores.split}, by the share of training labels known"
    out = _framed(title, scores)
    out.add_column("mean", justify="right", no_wrap=True, min_width=7)
    ends = (len(scores.runs) - 1, list(scores.rows).index(FINAL) if FINAL in scores.rows else -1)
    for place, (name, columns) in enumerate(scores.columns.items()):
        style = "bold" if name == FINAL else ""
        out.add_row(name, *(_cell(*column) for column in columns.values()), style=style, end_section=place in ends)
    return out


def gains_table(scores: SweepScores) -> Table:
    """A row per comparison; columns of known proportions, in points, with 95 % intervals."""
    out = _framed("What CFT gains, in points [95 % interval]", scores)
    rows: dict[str, list[str]] = {}
    for gain in scores.gains:
        rows.setdefault(f"{gain.name} over {gain.over}", []).append(_gain_cell(gain.interval))
    for name, cells in rows.items():
        out.add_row(name, *cells)
    return out


def _framed(title: str, scores: SweepScores) -> Table:
    out = printing.begun(title)
    out.add_column("method", no_wrap=True)
    for proportion in scores.proportions:
        out.add_column(f"{100 * proportion:g} %", justify="right", no_wrap=True, min_width=7)
    return out


def _cell(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return printing.UNDEFINED
    return f"{100 * mean:.2f}" if math.isnan(spread) else f"{100 * mean:.2f} ± {100 * spread:.2f}"


def _gain_cell(interval: Interval) -> str:
    if math.isnan(interval.value):
        return printing.UNDEFINED
    return f"{100 * interval.value:+.2f} \\[{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"


def notes(scores: SweepScores, labels: LabelsConfig) -> list[str]:
    """What a reader of the tables must know besides: the split, the seeds, what the rows are."""
    modes = [f"{MODES[mode].title} ({mode})" for mode in scores.runs if mode != sweep_scores.FULL]
    lines = [
        f"Scored on {scores.split}: {scores.num_images:,} images, {scores.num_categories:,} categories. "
        f"Training labels hidden: {labels.hide}, seed {labels.hide_seed}.",
        f"Modes of unknown labels while the backbone trains (--labels.unknown): {', '.join(modes)}.",
    ]
    if labels.hide == "positives_first":
        lines.append(
            f"Shares are those of the positive labels; of the negative ones {labels.known_negatives:.1%} stay known."
        )
    if any(name.endswith(sweep_scores.ONLY_JUDGES) for name in scores.rows):
        lines.append(
            f"CFT learns from the known labels of validation as well, in folds; {sweep_scores.ONLY_JUDGES[2:]}: from "
            "those of train alone (--choose.refit none)."
        )
    if sweep_scores.REFIT in scores.rows:
        lines.append(
            f"{sweep_scores.REFIT}: ridge regressions from the known labels of train and validation, "
            "one cross-fitted strength for all categories."
        )
    if sweep_scores.FULL in scores.runs:
        lines.append(f"{sweep_scores.FULL_TITLE}: no training label hidden; the same in every column.")
    if FINAL in scores.rows:
        lines.append("CFT by stages, and CFT final, start from Negative.")
    if scores.split == "validation":
        lines.append("There is no test split: validation was used to choose, so these scores are optimistic.")
    seeds = ", ".join(map(str, scores.seeds))
    if len(scores.seeds) == 1:
        lines.append(f"One seed ({seeds}), so that nothing is known of the spread.")
    else:
        lines.append(f"{len(scores.seeds)} seeds ({seeds}) of training and search: mean ± standard deviation.")
    if gains := scores.gains:
        drawn = "groups, each with all its images" if scores.unit == "groups" else "images"
        resamples = gains[0].interval.resamples
        mean = " of the mean over seeds" if len(scores.seeds) > 1 else ""
        lines.append(f"Intervals: paired bootstrap{mean}, {resamples} resamples of the {scores.split} {drawn}.")
    return lines
