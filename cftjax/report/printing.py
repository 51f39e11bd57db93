"""Tables for people: on the terminal and, the same, as text for a file; and how they write numbers."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cftjax.text import for_spreadsheet, printable

UNDEFINED = "-"
FULL_WIDTH = 120
# Of more categories, tables show the lowest and the highest.
MOST_ROWS = 120


def begun(title: str) -> Table:
    """A table in the style of all of them."""
    return Table(
        title=Text(printable(title, keep="\n"), style="table.title"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
        expand=False,
    )


def printed(tables: Callable[[int], Sequence[Table]], notes: Sequence[str], console: Console | None = None) -> str:
    """Print tables and notes, and return the same as plain text of full width.

    Args:
        tables: characters at hand -> the tables.
        notes: a line each, below them.
        console: where to print; None is the terminal.
    """
    plain = Console(file=io.StringIO(), width=FULL_WIDTH, color_system=None, record=True)
    # A pipe or a log has no width of its own, and Rich would assume 80.
    console = console or Console(width=None if sys.stdout.isatty() else FULL_WIDTH)
    for target in (plain, console):
        for table in tables(target.width):
            target.print(table)
        for note in map(printable, notes):
            target.print(note, markup=False, highlight=False, emoji=False)
    return re.sub(" +$", "", plain.export_text(), flags=re.MULTILINE)


def named(name: str) -> Text:
    """A name as a cell: no markup, and no effect on a terminal."""
    return Text(printable(name))


def fit_names(table: Table, width: int, least: int = 8, most: int = 40) -> None:
    """Cut the names in the first column to what all others leave: numbers are never cut.

    Args:
        table: with all its rows.
        width: characters at hand.
        least: characters of a name, though the table then is too wide.
        most: characters of a name.
    """
    names, *others = table.columns
    # Between two columns stand a blank of padding and one of the frame.
    taken = sum(2 + max(_length(cell) for cell in (column.header, *column.cells)) for column in others)
    names.max_width = min(max(width - taken - 3, least), most)
    for column in others:
        column.min_width = max(_length(cell) for cell in (column.header, *column.cells))


def _length(cell: Any) -> int:
    return cell_len(cell.plain if isinstance(cell, Text) else str(cell))


def percent(value: float | None) -> str:
    """A score in [0, 1] in %, two decimals; a dash where undefined."""
    return UNDEFINED if value is None else f"{100 * value:.2f}"


def points(value: float | None) -> str:
    """A change of a score in points, with its sign."""
    return UNDEFINED if value is None else f"{100 * value:+.2f}"


def change(interval: Mapping[str, float | None], none: str = "", width: int = 0) -> Text:
    """A difference in points with its interval; coloured only where the interval excludes 0.

    Args:
        interval: `value`, `low` and `high`, as in metrics.json.
        none: what stands for an interval that there is not.
        width: characters of the interval at least, so that it lines up.
    """
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if value is None:
        return Text(UNDEFINED)
    if low is None or high is None:
        return Text(f"{points(value)} {none:>{width}}".rstrip())
    ends = f"[{points(low)}, {points(high)}]"
    return Text(f"{points(value)} {ends:>{width}}", "green" if low > 0 else "red" if high < 0 else "")


def extremes(values: Sequence[float | None], most: int) -> list[int]:
    """The places of all values, or of too many those of the lowest and highest, in their order."""
    if len(values) <= most:
        return list(range(len(values)))
    ranked = sorted((value, i) for i, value in enumerate(values) if value is not None)
    shown = [*ranked[: most // 2], *ranked[len(ranked) - most // 2 :]]
    return sorted({i for _, i in shown})


def to_csv(rows: Iterable[Sequence[Any]], *, raw: bool = False) -> str:
    """Rows as CSV, the first of them the header; None is an empty cell.

    Args:
        rows: of texts and numbers.
        raw: leave texts alone that a spreadsheet would take for formulas, see `text.for_spreadsheet`.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(row if raw else [for_spreadsheet(cell) for cell in row] for row in rows)
    return file.getvalue()


def defined(x: Any) -> Any:
    """Numbers as JSON can hold them: lists, and None for what is not finite."""
    if isinstance(x, np.ndarray):
        return [defined(value) for value in x.tolist()]
    if isinstance(x, Mapping):
        return {key: defined(value) for key, value in x.items()}
    return None if isinstance(x, float) and not math.isfinite(x) else x
