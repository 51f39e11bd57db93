"""The report as a table, made from the contents of metrics.json alone: for the console, as text and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cftjax.metrics import MEAN
from cftjax.report import printing
from cftjax.report.printing import FULL_WIDTH, MOST_ROWS, begun, percent
from cftjax.text import few
from cftjax.types import STAGES, word


def reported_split(metrics: dict[str, Any]) -> str:
    """Test where there is one, else validation."""
    return "test" if "test" in metrics else "validation"


def stages_of(metrics: dict[str, Any]) -> tuple[str, ...]:
    """The stages in the order in which they ran; a report of an older version does not say."""
    return tuple(metrics.get("stages", STAGES))


def table(metrics: dict[str, Any], *, most_rows: int = MOST_ROWS, width: int = FULL_WIDTH) -> Table:
    """Per category the known training labels, the score after each stage, what was chosen and what it gained.

    Args:
        metrics: the contents of metrics.json.
        most_rows: of more categories than this, the largest falls and rises are shown.
        width: characters at hand; below 120 the columns between backbone and final are left out, and
            the known negatives.
    """
    metric, split = metrics["metric"], reported_split(metrics)
    scores, known = metrics[split], metrics["known"]["train"]
    difference = scores["difference"]
    title = f"{metric} in % on {split}; change from backbone to final in points"
    if split == "validation":
        title += "\nno test split: validation was used to choose, so these scores are optimistic"
    out = begun(title)
    full = width >= FULL_WIDTH
    stages = stages_of(metrics) if full else (STAGES[0], STAGES[-1])
    out.add_column("category", no_wrap=True, overflow="ellipsis")
    out.add_column("known +", justify="right", no_wrap=True, min_width=7)
    if full:
        out.add_column("known -", justify="right", no_wrap=True, min_width=7)
    for stage in stages:
        out.add_column(word(stage), justify="right", no_wrap=True, min_width=6)
    out.add_column("chosen", no_wrap=True, min_width=8, max_width=8, overflow="ellipsis")
    out.add_column("change  [95 % interval]", justify="right", no_wrap=True, min_width=25)
    changes = difference[metric]
    shown = printing.extremes(changes["value"], most_rows)
    for i in shown:
        out.add_row(
            printing.named(metrics["categories"][i]),
            *(f"{known[kind][i]:,}" for kind in (("positive", "negative") if full else ("positive",))),
            *(percent(scores[stage][metric][i]) for stage in stages),
            printing.named(word(metrics["chosen"][i])),
            _change({key: changes[key][i] for key in changes}),
            end_section=i == shown[-1],
        )
    for name in sorted(MEAN, key=lambda name: name != metric):
        mean = MEAN[name]
        out.add_row(
            mean,
            *([""] * (2 if full else 1)),
            *(percent(scores[stage][mean]) for stage in stages),
            "",
            _change(difference[mean]),
            style="bold",
        )
    printing.fit_names(out, width)
    return out


def _change(interval: Mapping[str, Any]) -> Text:
    return printing.change(interval, none="[no interval]", width=18)


def notes(metrics: dict[str, Any], most_rows: int = MOST_ROWS) -> list[str]:
    """What a reader of the table must know besides: categories left alone or undefined, the bootstrap, the time."""
    metric, split = metrics["metric"], reported_split(metrics)
    difference = metrics[split]["difference"]
    lines = []
    by_reason: dict[str, list[str]] = {}
    for category, reason in metrics["untuned"].items():
        by_reason.setdefault(reason, []).append(category)
    for reason, names in by_reason.items():
        lines.append(f"Left as the backbone had them ({reason}): {', '.join(names)}.")
    lines += _undefined(metrics)
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
    # Reports of earlier versions did not look.
    lines += [f"Beware: {leak}." for leak in metrics.get("leaks", [])]
    for name, images in metrics["unopened"].items():
        if images:
            one = "1 image" if len(images) == 1 else f"{len(images):,} images"
            lines.append(f"{one} of {name} could not be opened: {few(images, 5)}; left out.")
    if len(metrics["categories"]) > most_rows:
        lines.append(f"{most_rows} of {len(metrics['categories'])} categories shown; table.csv has them all.")
    if metrics["seconds"]:
        lines.append("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in metrics["seconds"].items()) + ".")
    return lines


def _undefined(metrics: dict[str, Any]) -> Iterator[str]:
    """Which categories have no score, by what they lack."""
    metric, split = metrics["metric"], reported_split(metrics)
    known, final = metrics["known"][split], metrics[split]["final"][metric]
    left = [i for i, value in enumerate(final) if value is None]
    for kind in ("positive", "negative"):
        names = [metrics["categories"][i] for i in left if known[kind][i] == 0]
        left = [i for i in left if known[kind][i] > 0]
        if names:
            yield f"{metric} undefined on {split}, left out of the mean: no known {kind} of {', '.join(names)}."
    if left:  # a logit that is no number
        names = [metrics["categories"][i] for i in left]
        yield f"{metric} undefined on {split}, left out of the mean: {', '.join(names)}."


def to_csv(metrics: dict[str, Any]) -> str:
    """Every category and, last, the mean; scores in [0, 1] at full precision, undefined ones empty."""
    split = reported_split(metrics)
    scores, known = metrics[split], metrics["known"]["train"]
    changes = ("value", "low", "high", "resamples")
    header = ["category", "train_known_positive", "train_known_negative", "split"]
    for metric in MEAN:
        header += [f"{metric}_{word(stage)}" for stage in stages_of(metrics)]
        header += [f"{metric}_difference", *(f"{metric}_difference_{key}" for key in changes[1:])]
    lines: list[list[Any]] = [[*header, "chosen", "untuned"]]
    for i, category in enumerate(metrics["categories"]):
        row = [category, known["positive"][i], known["negative"][i], split]
        for metric in MEAN:
            row += [scores[stage][metric][i] for stage in stages_of(metrics)]
            row += [scores["difference"][metric][key][i] for key in changes]
        lines.append([*row, word(metrics["chosen"][i]), metrics["untuned"].get(category, "")])
    row = ["mean", "", "", split]
    for mean in MEAN.values():
        row += [scores[stage][mean] for stage in stages_of(metrics)] + [
            scores["difference"][mean][key] for key in changes
        ]
    return printing.to_csv([*lines, [*row, "", ""]])
