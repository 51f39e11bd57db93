"""The table of categories: its heads sort, and there may be thousands of rows."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from cftjax.metrics import MEAN, Metric
from cftjax.report import tables
from cftjax.report.page import text
from cftjax.types import word

# A longer name is cut in its middle; the whole one, up to a limit, shows when pointed at.
LONGEST_NAME, LONGEST_TITLE = 80, 500
# Rows that show before a reader asks for all: thousands take a browser seconds to lay out.
ROWS_AT_FIRST = 200


def _other(metrics: dict[str, Any]) -> Metric:
    return next(name for name in MEAN if name != metrics["metric"])


def words(metrics: dict[str, Any]) -> str:
    """How to read it."""
    split, metric = tables.reported_split(metrics), metrics["metric"]
    return escape(
        f"{metric} and {_other(metrics)} in % on {split}, changes in points of {metric} with their 95 % intervals: a "
        "change in colour is more than the drawing of the images explains. Known labels are those of training "
        "(+ present, - absent), from which tuning learns. Heads of columns sort; table.csv beside this page has all."
    )


def column_heads(metrics: dict[str, Any]) -> Iterator[str]:
    """Buttons that sort by what is below them."""
    split, metric, other = tables.reported_split(metrics), metrics["metric"], _other(metrics)
    heads = [("category", "text"), ("known +", "number"), ("known -", "number"), (f"{split} +", "number")]
    heads += [(word(stage), "number") for stage in tables.stages_of(metrics)]
    heads += [("0 to 100 %", "number"), ("change", "number"), ("95 % interval", "number"), ("chosen", "text")]
    heads += [(f"{other} backbone", "number"), (f"{other} final", "number")]
    for head, kind in heads:
        left = ' class="t"' if kind == "text" else ""
        hint = f' title="{metric} of backbone and final, sorted by the change"' if head == "0 to 100 %" else ""
        label = escape(head)
        for long in (other, split, "known", "95 %", "0 to"):  # too wide for one line
            label = label.replace(f"{long} ", f"{long} <br>")
        yield f'<th scope="col" data-kind="{kind}"{left}><button type="button"{hint}>{label}</button></th>'


def rows(metrics: dict[str, Any]) -> Iterator[str]:
    """Rows of the table; end tags that HTML can do without are left out, for there may be thousands."""
    split, metric, other = tables.reported_split(metrics), metrics["metric"], _other(metrics)
    scores, train, reported = metrics[split], metrics["known"]["train"], metrics["known"][split]
    change = scores["difference"][metric]
    for i, category in enumerate(metrics["categories"]):
        stages = [scores[stage][metric][i] for stage in tables.stages_of(metrics)]
        value, low, high = (change[key][i] for key in ("value", "low", "high"))
        sign = text.direction(low, high)
        reason = metrics["untuned"].get(category)
        chosen = escape(word(metrics["chosen"][i])) + (
            f' <span class="soft">({escape(reason)})</span>' if reason else ""
        )
        name, title = (text.name(category, length) for length in (LONGEST_NAME, LONGEST_TITLE))
        yield "".join(
            [
                "<tr>" if i < ROWS_AT_FIRST else "<tr hidden>",
                f'<th scope="row">{name}' if name == title else f'<th scope="row" title="{title}">{name}',
                *(f"<td>{count:,}" for count in (train["positive"][i], train["negative"][i], reported["positive"][i])),
                *(f"<td>{text.percent(score)}" for score in stages),
                f'<td class="d" data-v="{text.UNDEFINED if value is None else round(100 * value, 4)}">',
                text.scale(stages[0], stages[-1]),
                f'<td class="{sign}">{text.points(value)}' if sign else f"<td>{text.points(value)}",
                f'<td data-v="{text.UNDEFINED if low is None else round(100 * low, 4)}">{text.interval(low, high)}',
                f'<td class="{"w" if reason else "t"}">{chosen}',
                *(f"<td>{text.percent(scores[stage][other][i])}" for stage in ("backbone", "final")),
            ]
        )


def footer(metrics: dict[str, Any]) -> Iterator[str]:
    """Means over the categories: of the table's metric under its columns, of the other one under its own."""
    split, other = tables.reported_split(metrics), MEAN[_other(metrics)]
    scores, mean = metrics[split], MEAN[metrics["metric"]]
    change = scores["difference"][mean]
    low, high = change["low"], change["high"]
    yield '<tr><th scope="row">mean<td><td><td>'
    yield "".join(f"<td>{text.percent(scores[stage][mean])}" for stage in tables.stages_of(metrics))
    yield f'<td class="d">{text.scale(scores["backbone"][mean], scores["final"][mean])}'
    yield f'<td class="{text.direction(low, high)}">{text.points(change["value"])}<td>{text.interval(low, high)}<td>'
    yield "".join(f"<td>{text.percent(scores[stage][other])}" for stage in ("backbone", "final"))
