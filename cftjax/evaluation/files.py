"""Predictions as other programs write them, in CSV or Parquet: one row per study or image, one column per category."""

from __future__ import annotations

import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Bool, Float, Float64, Int

from cftjax import decisions
from cftjax.data import labels as label_values
from cftjax.data import meaning
from cftjax.data.reading import sheets, spelling
from cftjax.data.reading.problems import Problems, require
from cftjax.data.reading.sheets import Sheet
from cftjax.evaluation.studies import Aggregate, aggregated, studies
from cftjax.report.printing import to_csv
from cftjax.runtime import storage
from cftjax.scores.logits import category_groups
from cftjax.scores.predictions import Block, Predictions, Truth
from cftjax.text import few, for_spreadsheet, from_spreadsheet, shown

# Columns that may name the rows, in this order; upper or lower case is the same.
KEYS = ("study", "path", "image", "id")
# Nothing said of -1.
MINUS_ONE = meaning.Answer("--minus-one")
# Names compared to find in what way two files differ.
MOST_COMPARED = 10_000
# Numbers outside of [0, 1] from which on a file holds scores; fewer may be slips.
LEAST_SCORES, LEAST_SHARE = 10, 0.05
# Cells of the file of --ensemble-out, which is made in memory.
MOST_CELLS = 10**8


def key_column(columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns that may name the rows, best first."""
    folded = {name.lower(): name for name in reversed(columns)}
    return [folded[key.lower()] for key in wanted if key.lower() in folded]


def common_keys(sheets_: Sequence[tuple[Path, Sheet]], wanted: Sequence[str], alike: bool) -> list[str]:
    """The column of each file that names its rows.

    Args:
        sheets_: files with their tables, that of the truth first.
        wanted: names of such a column, best first.
        alike: whether all files must use the same one; not where names are reduced to studies first.

    Raises:
        ValueError: where a file has none, or the files have none in common.
    """
    each = [key_column(list(sheet.columns), wanted) for _, sheet in sheets_]
    for (file, sheet), keys in zip(sheets_, each, strict=True):
        if not keys:
            raise ValueError(
                f"{file}: no column {' or '.join(wanted)} names its rows; it has {few(list(sheet.columns), 8)}: "
                "name the right one with --key"
            )
    shared = [key for key in each[0] if all(key.lower() in map(str.lower, keys) for keys in each)]
    if shared:
        return [next(k for k in keys if k.lower() == shared[0].lower()) for keys in each]
    if alike:
        for (file, _), keys in zip(sheets_[1:], each[1:], strict=True):
            if not {key.lower() for key in keys} & {key.lower() for key in each[0]}:
                raise ValueError(
                    f"{file}: its rows are named by {' or '.join(keys)}, those of {sheets_[0][0]} by "
                    f"{' or '.join(each[0])}; rename one, or bring images together by --aggregate"
                )
        raise ValueError(f"no column names the rows of all files: name one with --key, in {sheets_[0][0]} and the rest")
    return [keys[0] for keys in each]


def read(file: Path) -> Sheet:
    """A table whose header and rows are sound; blank cells and values are judged by those who use them.

    Raises:
        DataError: with every row of the wrong length and every column that is there twice.
    """
    problems = Problems(file)
    sheet = sheets.read(require(file), problems)
    problems.raise_if_any()
    return dataclasses.replace(sheet, columns={from_spreadsheet(name): cells for name, cells in sheet.columns.items()})


def read_keys(file: Path, sheet: Sheet, column: str) -> list[str]:
    """The names of the rows, without blanks around them."""
    problems = Problems(file)
    keys = [from_spreadsheet(key.strip()) for key in sheet.text(column, problems)]
    problems.raise_if_any()
    return keys


def note_repeats(keys: Sequence[str], sheet: Sheet, column: str, problems: Problems) -> None:
    """Every name that a row before had already is a problem."""
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key in first:
            what = f"{shown(key)} is there twice, first in row {sheet.place(first[key])}"
            mend = "keep one, or bring rows of one study together by --aggregate"
            problems.add(what, row=sheet.place(row), column=column, mend=mend)
        first.setdefault(key, row)


def read_truth(
    file: Path,
    sheet: Sheet,
    key: str,
    categories: Sequence[str],
    *,
    aggregate: bool,
    group: re.Pattern[str] | None,
    answer: meaning.Answer = MINUS_ONE,
) -> Truth:
    """Labels of some of a file's columns: 1, 0, blank for unknown, -1 for uncertain, which does not count.

    Args:
        file: for messages.
        sheet: its content.
        key: the column of the rows' names.
        categories: the columns wanted.
        aggregate: whether rows will be brought together, so that a name may come twice.
        group: what the bootstrap draws together, as found in the names; None draws rows.
        answer: what -1 means where it does not show.

    Raises:
        ValueError: with every cell that is no label, and every column of which nothing says what its -1 means.
    """
    names = read_keys(file, sheet, key)
    problems = Problems(file)
    sheets.require_columns(categories, sheet.columns, problems)
    problems.raise_if_any()
    if not aggregate:
        note_repeats(names, sheet, key, problems)
    written = sheet.labels(categories, problems, "use 1, 0, -1 or blank, or choose the columns with --categories")
    values, told = meaning.read(written, categories, answer, problems)
    problems.raise_if_any()
    found = label_values.from_values(values)
    groups = None
    if group is not None:
        groups = studies(names, group, str(file))[1]
    unit = "studies" if key.lower() == "study" else "images"
    notes = tuple(f"In {file.name} {sentence}." for sentence in told)
    return Truth(tuple(categories), found.labels, found.known, file.name, tuple(names), groups, unit, notes)


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of a file of predictions find those of the truth.

    Attributes:
        key: the column of their names.
        study: what of a name counts, and of the rows of which mean or maximum is taken; None takes names as they are.
        aggregate: mean or maximum.
        scores: whether numbers outside of [0, 1] are scores, however few they are.
    """

    key: str
    study: re.Pattern[str] | None = None
    aggregate: Aggregate = "mean"
    scores: bool = False


def places(file: Path, sheet: Sheet, rows: Rows, truth: Truth, problems: Problems) -> Int[np.ndarray, " n"]:
    """Where each row of a file stands in the truth; -1 for rows that the truth lacks, and those that were not read.

    Args:
        file: for messages.
        sheet: its content.
        rows: how rows find each other.
        truth: whose rows must all be there, and once where they are not brought together.
        problems: where missing rows and repeats are noted.
    """
    keys = read_keys(file, sheet, rows.key)
    assert truth.names is not None
    place = {name: i for i, name in enumerate(truth.names)}
    if rows.study is not None:
        units, unit_of = studies(keys, rows.study, str(file))
        keys = [units[i] for i in unit_of.tolist()]
    index = np.array([place.get(key, -1) for key in keys], np.int64)
    broken = np.zeros(len(keys), bool)
    errors = sheet.text("error") if "error" in sheet.columns else []
    # Rows that `cftjax predict` could not open.
    for row, error in enumerate(errors):
        broken[row] = bool(error.strip())
    index[broken] = -1
    found = np.zeros(len(truth), bool)
    found[index[index >= 0]] = True
    missing = [truth.names[i] for i in np.flatnonzero(~found).tolist()]
    if missing:
        many = f"{len(missing):,} of the {len(truth):,} {truth.unit} of {truth.source} are missing"
        hint = ""
        absent = set(missing)
        if of_broken := [row for row in np.flatnonzero(broken).tolist() if keys[row] in absent]:
            hint = f"; row {sheet.place(of_broken[0])} has the error {shown(errors[of_broken[0]])}"
        elif way := spelling.alike(missing[:MOST_COMPARED], keys[:MOST_COMPARED]):
            hint = f"; {way}"
        elif near := difflib.get_close_matches(missing[0], keys[:MOST_COMPARED], n=1):
            hint = f"; the nearest it has is {near[0]}"
        problems.add(f"{many}: {few(missing, 3)}{hint}", column=rows.key)
    if rows.study is None:
        wanted = [key if index[row] >= 0 else f"\0{row}" for row, key in enumerate(keys)]
        note_repeats(wanted, sheet, rows.key, problems)
    return index


def read_predictions(file: Path, sheet: Sheet, rows: Rows, truth: Truth, name: str) -> Predictions:
    """A model's predictions in the order of the truth; rows and columns that the truth lacks are left out.

    Raises:
        ValueError: where rows of the truth are missing or come twice, or a cell of them is no number, or a few are no
            probabilities.
    """
    problems = Problems(file)
    index = places(file, sheet, rows, truth, problems)
    used = np.flatnonzero(index >= 0)
    given = np.array([category in sheet.columns for category in truth.categories])
    values = np.full((len(index), len(truth.categories)), np.nan)
    for c in np.flatnonzero(given).tolist():
        values[:, c] = numbers(sheet, truth.categories[c], used, problems)
    problems.raise_if_any()
    outside = (values < 0) | (values > 1)
    num = np.count_nonzero(outside)
    only_ranks = num > 0 and (
        rows.scores or num >= max(LEAST_SCORES, LEAST_SHARE * np.count_nonzero(given) * len(used))
    )
    if not only_ranks:
        refuse_outside(values, outside, sheet, truth.categories, problems)
    table = aggregated(values, index, len(truth), rows.aggregate)
    if not only_ranks:
        return of_array(name, table, given)
    low, high = np.nanmin(values), np.nanmax(values)
    percent = "; if it is percent, divide by 100" if low >= 0 and 2 < high <= 100 else ""
    note = (
        f"{name} gives scores from {low:g} to {high:g}, no probabilities: they rank, and what needs probabilities is -"
    )
    return of_array(name, table, given, only_ranks=True, note=f"{note}{percent}.")


def refuse_outside(
    values: Float64[np.ndarray, "n c"],
    outside: Bool[np.ndarray, "n c"],
    sheet: Sheet,
    categories: Sequence[str],
    problems: Problems,
) -> None:
    """Note the columns in which a few numbers are no probabilities, one line each.

    Raises:
        DataError: there are any.
    """
    for c in np.flatnonzero(outside.any(axis=0)).tolist():
        wrong = np.flatnonzero(outside[:, c])
        cell = sheet.columns[categories[c]][int(wrong[0])].as_py()
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        problems.add(
            f"{shown(cell)} is no probability{more}",
            row=sheet.place(wrong[0]),
            column=categories[c],
            mend="use numbers in [0, 1], or say --scores where a file holds scores",
        )
    problems.raise_if_any()


def of_array(
    name: str,
    values: Float[np.ndarray, "n c"],
    given: Bool[np.ndarray, " c"],
    *,
    only_ranks: bool = False,
    note: str = "",
) -> Predictions:
    """Predictions that are in memory: probabilities, or scores that only rank."""

    def block(some: slice) -> Block:
        return Block(values[:, some], np.full_like(values[:, some], np.nan) if only_ranks else values[:, some])

    thresholds = np.full(len(given), np.nan)
    return Predictions(name, given, block, thresholds, calibrated=not only_ranks, only_ranks=only_ranks, note=note)


def numbers(sheet: Sheet, column: str, used: Int[np.ndarray, " k"], problems: Problems) -> Float64[np.ndarray, " n"]:
    """A column as numbers, NaN in rows that are not used; cells of the others that hold none are a problem."""
    cells = sheet.columns[column].combine_chunks()
    values = np.full(len(cells), np.nan)
    try:
        picked = cells.take(pa.array(used))
        if pa.types.is_string(picked.type) or pa.types.is_large_string(picked.type):
            picked = pc.call_function("utf8_trim_whitespace", [picked])
        found = pc.fill_null(pc.cast(picked, pa.float64()), np.nan).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        found = np.array([number(cell) for cell in cells.take(pa.array(used)).to_pylist()], np.float64)
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        row = int(used[wrong[0]])
        cell = cells[row].as_py()
        blank = cell is None or (isinstance(cell, str) and not cell.strip())
        more = f" (and {len(wrong) - 1} more cells hold none)" if len(wrong) > 1 else ""
        what = "the cell is blank" if blank else f"{shown(cell)} is no probability"
        mend = "fill it in" if blank else "use numbers in [0, 1]"
        problems.add(f"{what}{more}", row=sheet.place(row), column=column, mend=mend)
    values[used] = found
    return values


def number(cell: Any) -> float:
    """A cell's number; NaN where it holds none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def near_misses(missing: Sequence[str], columns: Sequence[str]) -> str:
    """For each category the column that may be meant, as the end of a sentence; empty where none is near."""
    folded = {re.sub(r"[\W_]+", "", name.lower()): name for name in columns}
    found = []
    for category in missing:
        close = difflib.get_close_matches(re.sub(r"[\W_]+", "", category.lower()), folded, n=1, cutoff=0.85)
        if close:
            found.append(f"is {shown(folded[close[0]])} meant to be {category}?")
    return f"; {' '.join(found)}" if found else ""


def read_thresholds(file: Path, categories: Sequence[str], others: Sequence[str] = ()) -> Float64[np.ndarray, " c"]:
    """Thresholds by category: JSON, a run's decisions.json among it, or a table with columns category and threshold.

    Args:
        file: where they stand.
        categories: those that are scored.
        others: that are there besides, so that the file may name them.

    Returns:
        [c], NaN where the file gives none.

    Raises:
        ValueError: where it gives none at all, one that is no number in [0, 1], or one of a category that is not there.
    """
    pairs = threshold_pairs(file)
    found = np.array([np.nan if blank(pairs.get(name)) else number(pairs[name]) for name in categories], np.float64)
    problems = Problems(file)
    for category, value in pairs.items():
        if category not in categories and category not in others:
            near = difflib.get_close_matches(category, [*categories, *others], n=1)
            mend = f"is {near[0]} meant?" if near else f"there are {few(list(categories), 5)}"
            problems.add(f"has a threshold for {shown(category)}, which is no category here", mend=mend)
        elif not blank(value) and not (0 <= number(value) <= decisions.NEVER):
            percent = ", and 0.5 for 50 %" if 1 < number(value) <= 100 else ""
            mend = f"use a number in [0, 1]{percent}"
            problems.add(f"the threshold of {category} is {shown(value)}", mend=mend)
    problems.raise_if_any()
    if np.isnan(found).all():
        raise ValueError(
            f"{file}: has a threshold for none of {few(categories, 5)}; it has {few(list(pairs), 5) or 'none'}"
        )
    return found


def threshold_pairs(file: Path) -> dict[str, Any]:
    """Category to threshold, as the file has them.

    Raises:
        ValueError: where it has another form, or names a category twice.
    """
    require(file)
    if file.suffix.lower() == ".json":
        content = storage.read_json(file)
        each = content.get("categories", content) if isinstance(content, dict) else content
        try:
            pairs = each.items() if isinstance(each, dict) else [(one["category"], one["threshold"]) for one in each]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: must map each category to its threshold") from error
    else:
        sheet, problems = read(file), Problems(file)
        sheets.require_columns(("category", "threshold"), sheet.columns, problems)
        problems.raise_if_any()
        pairs = zip(map(str.strip, sheet.text("category")), sheet.text("threshold"), strict=True)
    found: dict[str, Any] = {}
    for category, threshold in pairs:
        if category in found:
            raise ValueError(f"{file}: has two thresholds of {category}; keep one")
        found[category] = threshold
    return found


def blank(value: Any) -> bool:
    """Whether a threshold is left open."""
    return value is None or (isinstance(value, str) and not value.strip())


def write_predictions(path: Path, truth: Truth, predictions: Predictions, key: str, *, raw: bool = False) -> None:
    """One row per image or study, one column of probabilities per category that is given: what `read` reads.

    Args:
        path: of the .csv.
        truth: what names the rows.
        predictions: of the model.
        key: what the column of the rows' names is called.
        raw: leave names alone that a spreadsheet would take for formulas, see `text.for_spreadsheet`.

    Raises:
        ValueError: where the rows have no names, or are too many for a file made in memory.
    """
    if truth.names is None:
        raise ValueError(
            f"{path}: the rows of {truth.source} have no names; delete the run's folder embeddings and run the "
            "training command again to keep them"
        )
    chosen = np.flatnonzero(predictions.given).tolist()
    if len(chosen) * len(truth) > MOST_CELLS:
        raise ValueError(f"{path}: would have {len(chosen) * len(truth):,} cells, more than {MOST_CELLS:,}")
    as_cell = str if raw else for_spreadsheet
    columns = [pa.array([as_cell(name) for name in truth.names])]
    for some in category_groups(len(truth), len(truth.categories), 1):
        scores, probs = predictions.block(some)
        probs = (scores if predictions.only_ranks else probs).astype(np.float64)
        columns += [pa.array(probs[:, c - some.start]) for c in chosen if some.start <= c < some.stop]
    header = to_csv([[key, *(truth.categories[c] for c in chosen)]], raw=raw)
    table, body = pa.table(columns, names=[str(i) for i in range(len(columns))]), io.BytesIO()
    pyarrow.csv.write_csv(table, body, pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed"))
    storage.write_bytes(path, header.encode() + body.getvalue())
