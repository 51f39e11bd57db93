"""Embeddings and labels in a Parquet table, one row per image.

`split`, `z` (a list per row) or z_0 to z_(d-1), optionally `group`, and one column per category of 1, 0, -1 and blank.
A column `path` is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from cftjax.data import columns, meaning, table
from cftjax.data import labels as label_values
from cftjax.data.reading import sheets
from cftjax.data.reading.problems import Problems
from cftjax.types import SPLITS, Embeddings

Z_COLUMN = re.compile(r"z_\d+")


class Read(NamedTuple):
    """A table that was read.

    Attributes:
        categories: names, length c.
        embeddings: by split.
        notes: how the columns were read, for a person to see.
    """

    categories: tuple[str, ...]
    embeddings: dict[str, Embeddings]
    notes: tuple[str, ...]


def read(file: Path, answer: meaning.Answer) -> Read:
    """Categories and the splits of a table.

    Args:
        file: the table.
        answer: what a label of -1 means.

    Raises:
        DataError: everything that is wrong with it, by row and column.
    """
    problems = Problems(file)
    sheet = sheets.read(file, problems)
    numbered = sorted((name for name in sheet.columns if Z_COLUMN.fullmatch(name)), key=lambda name: int(name[2:]))
    z_columns = ["z"] if "z" in sheet.columns else numbered
    categories = tuple(name for name in sheet.columns if name not in {"split", "group", "path", *z_columns})
    sheets.require_columns(["split"], sheet.columns, problems)
    if not z_columns:
        problems.add("no column has embeddings", mend="add z, a list per row, or z_0, z_1 and so on")
    elif z_columns == numbered and numbered != [f"z_{i}" for i in range(len(numbered))]:
        problems.add(f"the columns {numbered[0]} to {numbered[-1]} do not count from 0 without a gap")
    problems.raise_if_any()

    z = _lists(sheet, problems) if z_columns == ["z"] else _columns(sheet, numbered, problems)
    for row in np.flatnonzero(~np.isfinite(z).all(axis=1))[:1]:
        problems.add("an embedding is blank or not finite", row=sheet.place(row), column="z")
    written = sheet.labels(categories, problems, "use 1, 0 or blank, or take the column out")
    values, told = meaning.read(written, categories, answer, problems, always_ask=True)
    names = table.split_of_rows(sheet, "split", problems)
    groups = np.array(sheet.text("group", problems)) if "group" in sheet.columns else None
    problems.raise_if_any()

    labels = label_values.from_values(values)
    splits = {}
    for split in SPLITS:
        rows = np.flatnonzero(names == split)
        if len(rows):
            own = labels[rows]
            splits[split] = Embeddings(
                z[rows], own.labels, own.known, own.uncertain, None if groups is None else groups[rows]
            )
    return Read(categories, splits, (*told, *odd(sheet)))


def odd(sheet: sheets.Sheet) -> list[str]:
    """What is said of columns that are no categories by their names, and look like some."""
    return [
        f"{name} holds nothing but labels and is {what}: rename it if it is a category"
        for name, what in (("group", "taken as what keeps rows together"), ("path", "not read"))
        if name in sheet.columns and columns.holds_labels(sheet.columns[name])
    ]


def _lists(sheet: sheets.Sheet, problems: Problems) -> Float32[np.ndarray, "n d"]:
    """A column of lists of numbers, all of one length; a list that is missing or shorter is a problem."""
    column = sheet.columns["z"].combine_chunks()
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(kind(column.type) for kind in kinds) or not _is_number(column.type.value_type):
        problems.add(f"type {column.type} is no list of numbers", column="z")
        return np.zeros((len(column), 0), np.float32)
    lengths = pc.fill_null(pc.call_function("list_value_length", [column]), -1).to_numpy()
    dim = int(lengths[0])
    for row in np.flatnonzero((lengths != dim) | (lengths < 1))[:1]:
        what = "is blank" if lengths[row] < 0 else f"has {lengths[row]} numbers where the first row has {dim}"
        problems.add(f"the list {what}", row=sheet.place(row), column="z", mend="give every row as many numbers")
        return np.zeros((len(column), 0), np.float32)
    return _numbers(pc.call_function("list_flatten", [column])).reshape(len(column), dim)


def _columns(sheet: sheets.Sheet, names: list[str], problems: Problems) -> Float32[np.ndarray, "n d"]:
    """Columns of numbers side by side."""
    z = np.zeros((len(sheet.rows), len(names)), np.float32)
    for place, name in enumerate(names):
        if _is_number(sheet.columns[name].type):
            z[:, place] = _numbers(sheet.columns[name].combine_chunks())
        else:
            problems.add(f"type {sheet.columns[name].type} is no number", column=name)
    return z


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _numbers(values: Any) -> Float32[np.ndarray, " n"]:
    """Arrow's numbers as float32, NaN where there is none."""
    return pc.fill_null(values.cast(pa.float32(), safe=False), float("nan")).to_numpy(zero_copy_only=False)
