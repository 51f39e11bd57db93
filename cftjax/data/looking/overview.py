"""A summary of a data set as a person reads it on a terminal: tables, and lines of what to know besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cftjax.config import LabelsConfig
from cftjax.data import hiding
from cftjax.data.looking.summary import Counts, Range, Summary
from cftjax.text import few, printable

KINDS = {"positive": "1", "negative": "0", "uncertain": "-1", "unknown": "unknown"}
# Categories up to which co-occurrence is printed whole; of more, the closest pairs.
WHOLE_MATRIX, CLOSEST_PAIRS = 20, 20
# Images that a category needs before it counts as close to another one.
ENOUGH = 10
NAME_WIDTH = 28


def show(summary: Summary, labels_config: LabelsConfig, console: Console, most: int) -> None:
    """Print everything.

    Args:
        summary: of the data set.
        labels_config: how labels are hidden and read.
        console: where to.
        most: categories shown, at most.
    """
    tables = [splits_table(summary)]
    train = summary.splits["train"]
    whole = len(summary.categories) <= most
    chosen = np.arange(len(summary.categories)) if whole else train.pairs.categories[:most]
    tables += [*label_tables(summary, chosen, console), pair_table(summary, console.width)]
    for table in tables:
        # Rich would break a title to the width of its table.
        title, table.title = table.title, None
        console.print(printable(str(title)), style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(table)
    for note in notes(summary, labels_config, most):
        console.print(printable(note), markup=False, highlight=False, emoji=False, soft_wrap=True)


def splits_table(summary: Summary) -> Table:
    """Images, patients, sizes and faults of every split."""
    table = new_table("Splits, as training uses them")
    table.add_column("split")
    grouped = any(split.groups is not None for split in summary.splits.values())
    titles = ["images", *(["groups"] if grouped else []), "missing", "width", "height"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("pixels")
    for name, split in summary.splits.items():
        sizes = split.sizes
        groups = [f"{split.groups:,}" if split.groups is not None else "-"] if grouped else []
        modes = ", ".join(f"{mode} {number:,}" for mode, number in sizes.modes.items())
        row = [f"{split.images:,}", *groups, f"{len(split.missing):,}", spread(sizes.width), spread(sizes.height)]
        table.add_row(name, *row, modes or "-")
    return table


def spread(values: Range | None) -> str:
    """Least, median and greatest."""
    return "-" if values is None else f"{values.least} / {values.median:g} / {values.greatest}"


def label_tables(summary: Summary, chosen: Int[np.ndarray, " k"], console: Console) -> Iterator[Table]:
    """Labels of each kind per category, as many splits side by side as fit."""
    names = [summary.categories[c] for c in chosen.tolist()]
    groups = label_groups(summary)
    # By itself, a console measures nothing wider than it is.
    wide = console.options.update(max_width=10_000)
    while groups:
        taken = len(groups)
        table = label_table(names, groups, chosen)
        while taken > 1 and console.measure(table, options=wide).maximum > console.width:
            taken -= 1
            table = label_table(names, groups[:taken], chosen)
        yield table
        groups = groups[taken:]


def label_table(names: Sequence[str], groups: Sequence[tuple[str, Counts]], chosen: Int[np.ndarray, " k"]) -> Table:
    """Labels of each kind of some splits; kinds that no label of a split has are left out."""
    table = new_table("Images with each label")
    table.add_column("\ncategory", no_wrap=True, max_width=NAME_WIDTH, overflow="ellipsis")
    columns = []
    for title, counts in groups:
        header = title
        for kind, column in counts._asdict().items():
            if kind in ("positive", "negative") or column.any():
                cells = [f"{number:,}" for number in column[chosen].tolist()]
                # Only names are cut: numbers get what they need.
                width = max(map(len, [KINDS[kind], *cells]))
                table.add_column(f"{header}\n{KINDS[kind]}", justify="right", no_wrap=True, min_width=width)
                columns.append(cells)
                header = ""
    for name, *row in zip(names, *columns, strict=True):
        table.add_row(Text(printable(name)), *row)
    return table


def label_groups(summary: Summary) -> list[tuple[str, Counts]]:
    """What is counted: each split, and train a second time where labels of it are hidden."""
    groups = []
    for name, split in summary.splits.items():
        if all(np.array_equal(one, other) for one, other in zip(split.given, split.seen, strict=True)):
            groups.append((name, split.given))
        else:
            groups += [(f"{name}, after hiding", split.seen), (f"{name}, in the files", split.given)]
    return groups


def pair_table(summary: Summary, width: int) -> Table:
    """P(column | row) in %, whole for few categories, else the closest pairs."""
    pairs = summary.splits["train"].pairs
    shares, names = 100 * pairs.shares, [summary.categories[c] for c in pairs.categories.tolist()]
    told = "of the train images positive for the row, % positive for the column, where its label is known"
    if len(names) <= WHOLE_MATRIX and NAME_WIDTH + 5 * len(names) + 4 <= width:
        table = new_table(f"Together: {told}")
        table.add_column("", no_wrap=True, max_width=NAME_WIDTH, overflow="ellipsis")
        for number in range(len(names)):
            table.add_column(str(number + 1), justify="right", no_wrap=True)
        for number, (name, row) in enumerate(zip(names, shares.tolist(), strict=True)):
            numbers = ["-" if np.isnan(x) else "." if c == number else f"{x:.0f}" for c, x in enumerate(row)]
            table.add_row(Text(printable(f"{number + 1} {name}")), *numbers)
        return table
    table = new_table(f"Closest pairs: {told}")
    for title in ("row", "column"):
        table.add_column(title, no_wrap=True, max_width=NAME_WIDTH, overflow="ellipsis")
    for title in ("%", "images"):
        table.add_column(title, justify="right", no_wrap=True)
    score = np.where((pairs.judged >= ENOUGH) & ~np.eye(len(names), dtype=bool), shares, -1)
    order = np.argsort(-score, axis=None, kind="stable")[:CLOSEST_PAIRS]
    for row, column in zip(*np.unravel_index(order, score.shape), strict=True):
        if score[row, column] > 0:
            images = f"{pairs.both[row, column]:,} of {pairs.judged[row, column]:,}"
            table.add_row(
                Text(printable(names[row])), Text(printable(names[column])), f"{score[row, column]:.0f}", images
            )
    return table


def new_table(title: str) -> Table:
    """In the form of the report's."""
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 2, 0, 0), expand=False)


def notes(summary: Summary, labels_config: LabelsConfig, most: int) -> Iterator[str]:
    """What a reader of the tables must know besides."""
    categories, parts = summary.categories, summary.splits
    train = parts["train"]
    if summary.carved:
        yield f"Validation was carved from train: {parts['validation'].images:,} images (options --split)."
    if labels_config.hide != "none":
        settings = ", ".join(f"{name} {value}" for name, value in hiding.hiding(labels_config).items())
        yield f"Labels of train are hidden ({settings}): training sees what is left (options --labels)."
    if train.seen.unknown.any():
        meanings = {"assume_negative": "count as negative", "ignore": "do not count"}
        meaning = meanings.get(labels_config.unknown, "become what docs/training.md says")
        yield f"In training unknown labels {meaning} (--labels.unknown {labels_config.unknown})."
    if train.seen.uncertain.any():
        yield f"In training uncertain labels become: {labels_config.uncertain} (--labels.uncertain)."
    if len(categories) > most:
        yield f"{most:,} of {len(categories):,} categories shown, the most frequent in train; --json has all."
    lacking = [name for name, number in zip(categories, train.seen.positive.tolist(), strict=True) if not number]
    if lacking:
        yield f"Without a known positive in train, so that nothing can be learned of them: {few(lacking)}."
    for name, split in parts.items():
        sizes = split.sizes
        if sizes.sampled < split.images - len(split.missing):
            yield f"Sizes of {name}: of {sizes.sampled:,} images drawn at random (--size-sample)."
        if sizes.unreadable:
            yield f"{name}: {sizes.unreadable:,} of the {sizes.sampled:,} images have no readable header; run check."
        if split.missing:
            yield f"Missing files of {name}: {few(split.missing)}."
    if summary.shared_groups:
        yield f"{summary.shared_groups:,} groups have images in more than one split: scores on them are too good."
    if summary.repeated:
        listed = [f"{name} ({', '.join(where)})" for name, where in summary.repeated.items()]
        yield f"Listed more than once: {few(listed)}."
    if summary.same_content is None:
        yield "Contents were not compared; --contents finds the same image under different names."
    else:
        groups = [" = ".join(f"{split}:{name}" for split, name in group) for group in summary.same_content]
        yield f"Same content under different names: {few(groups) if groups else 'none'}."
