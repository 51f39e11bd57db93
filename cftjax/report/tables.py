"""The report as a table, made from the contents of metrics.json alone: for the console, as text and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cftjax.text import few

MEAN = {"AP": "mAP", "AUROC": "mAUC"}
STAGES = ("backbone", "ga", "polish", "final")
TITLES = {"backbone": "before", "ga": "search", "polish": "polish", "final": "final"}
UNDEFINED = "-"
MOST_ROWS = 120
FULL_WIDTH = 120


def reported_split(metrics: dict[str, Any]) -> str:
    """Test where there is one, else validation."""
    return "test" if "test" in metrics else "validation"


def _score(value: float | None) -> str:
    return UNDEFINED if value is None else f"{100 * value:.2f}"


def _difference(value: float | None, low: float | None, high: float | None) -> Text:
    """A change in points with its interval; coloured only where the interval excludes 0."""
    if value is None:
        return Text(UNDEFINED)
    if low is None or high is None:
        return Text(f"{100 * value:+.2f} {'[no interval]':>18}")
    interval = f"[{100 * low:+.2f}, {100 * high:+.2f}]"
    style = "green" if low > 0 else "red" if high < 0 else ""
    return Text(f"{100 * value:+.2f} {interval:>18}", style)


def _rows_shown(change: Sequence[float | None], most: int) -> list[int]:
    """All rows, or of too many the largest falls and rises, in the categories' order."""
    if len(change) <= most:
        return list(range(len(change)))
    ranked = sorted((i for i, x in enumerate(change) if x is not None), key=lambda i: change[i] or 0.0)
    return sorted({*ranked[: most // 2], *ranked[-(most // 2) :]})


def table(metrics: dict[str, Any], *, most_rows: int = MOST_ROWS, width: int = FULL_WIDTH) -> Table:
    """Per category the known training labels, the score after each stage, what was chosen and what it gained.

    Args:
        metrics: the contents of metrics.json.
        most_rows: of more categories than this, the largest falls and rises are shown.
        width: characters at hand; below 120 the columns between before and final are left out, and the known negatives.
    """
    metric, split = metrics["metric"], reported_split(metrics)
    scores, known = metrics[split], metrics["known"]["train"]
    difference = scores["difference"]
    title = f"{metric} in % on {split}; change from before to final in points"
    if split == "validation":
        title += "\nno test split: validation was used to choose, so these scores are optimistic"
    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), expand=False)
    full = width >= FULL_WIDTH
    stages = STAGES if full else (STAGES[0], STAGES[-1])
    # Only names are cut: what a column of numbers needs, it gets, and the names have the rest.
    rest = width - (92 if full else 66)
    out.add_column("category", no_wrap=True, max_width=min(max(rest, 8), 40), overflow="ellipsis")
    out.add_column("known +", justify="right", no_wrap=True, min_width=7)
    if full:
        out.add_column("known -", justify="right", no_wrap=True, min_width=7)
    for stage in stages:
        out.add_column(TITLES[stage], justify="right", no_wrap=True, min_width=6)
    out.add_column("chosen", no_wrap=True, min_width=8, max_width=8, overflow="ellipsis")
    out.add_column("change  [95 % interval]", justify="right", no_wrap=True, min_width=25)
    changes = difference[metric]
    shown = _rows_shown(changes["value"], most_rows)
    for i in shown:
        out.add_row(
            Text(metrics["categories"][i]),
            *(f"{known[kind][i]:,}" for kind in (("positive", "negative") if full else ("positive",))),
            *(_score(scores[stage][metric][i]) for stage in stages),
            Text(metrics["chosen"][i]),
            _difference(*(changes[key][i] for key in ("value", "low", "high"))),
            end_section=i == shown[-1],
        )
    for name in sorted(MEAN, key=lambda name: name != metric):
        mean = MEAN[name]
        out.add_row(
            mean,
            *([""] * (2 if full else 1)),
            *(_score(scores[stage][mean]) for stage in stages),
            "",
            _difference(*(difference[mean][key] for key in ("value", "low", "high"))),
            style="bold",
        )
    return out


def notes(metrics: dict[str, Any], most_rows: int = MOST_ROWS) -> list[str]:
    """What a reader of the table must know besides: categories left alone or undefined, the bootstrap, the time."""
    metric, split = metrics["metric"], reported_split(metrics)
    difference = metrics[split]["difference"]
    lines = []
    by_reason: dict[str, list[str]] = {}
    for category, reason in metrics["untuned"].items():
        by_reason.setdefault(reason, []).append(category)
    for reason, names in by_reason.items():
        lines.append(f"Left as before ({reason}): {', '.join(names)}.")
    final = metrics[split]["final"][metric]
    undefined = [name for name, value in zip(metrics["categories"], final, strict=True) if value is None]
    if undefined:
        lines.append(f"{metric} undefined on {split} (left out of the mean): {', '.join(undefined)}.")
    changes = difference[metric]
    drawn = difference["resamples"]
    drawn_as = "groups, each with all its images" if difference["resampled"] == "groups" else "images"
    lines.append(f"Intervals: paired bootstrap, {drawn} resamples of the {split} {drawn_as}.")
    fewer = [(n, c) for n, c in zip(changes["resamples"], metrics["categories"], strict=True) if 0 < n < drawn]
    if fewer:
        least, name = min(fewer)
        lines.append(
            f"Resamples in which a category is undefined do not count: {len(fewer)} of {len(metrics['categories'])} "
            f"categories rest on fewer, {name} on {least}."
        )
    for name, images in metrics["unopened"].items():
        if images:
            one = "1 image" if len(images) == 1 else f"{len(images):,} images"
            lines.append(f"{one} of {name} could not be opened: {few(images, 5)}; left out.")
    if len(metrics["categories"]) > most_rows:
        lines.append(f"{most_rows} of {len(metrics['categories'])} categories shown; table.csv has them all.")
    if metrics["seconds"]:
        lines.append("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in metrics["seconds"].items()) + ".")
    return lines


def to_csv(metrics: dict[str, Any]) -> str:
    """Every category and, last, the mean; scores in [0, 1] at full precision, undefined ones empty."""
    split = reported_split(metrics)
    scores, known = metrics[split], metrics["known"]["train"]
    changes = ("value", "low", "high", "resamples")
    header = ["category", "train_known_positive", "train_known_negative", "split"]
    for metric in MEAN:
        header += [f"{metric}_{stage}" for stage in STAGES]
        header += [f"{metric}_difference", *(f"{metric}_difference_{key}" for key in changes[1:])]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*header, "chosen", "untuned"])
    for i, category in enumerate(metrics["categories"]):
        row: list[Any] = [category, known["positive"][i], known["negative"][i], split]
        for metric in MEAN:
            row += [scores[stage][metric][i] for stage in STAGES]
            row += [scores["difference"][metric][key][i] for key in changes]
        writer.writerow([*row, metrics["chosen"][i], metrics["untuned"].get(category, "")])
    row = ["mean", "", "", split]
    for mean in MEAN.values():
        row += [scores[stage][mean] for stage in STAGES] + [scores["difference"][mean][key] for key in changes]
    writer.writerow([*row, "", ""])
    return file.getvalue()
