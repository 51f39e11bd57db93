"""Embeddings and labels in a Parquet table, one row per image.

`split`, `z` (a list per row) or z_0 to z_(d-1), optionally `group`, and one column per category of 1, 0, -1 and blank.
A column `path` is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from cftjax.data import labels as label_values
from cftjax.data import table
from cftjax.data.reading import sheets
from cftjax.data.reading.problems import Problems
from cftjax.types import SPLITS, Embeddings

MinusOne = Literal["refuse", "uncertain", "unknown"]
MINUS_ONE_MEND = "say what it means with --minus-one uncertain or --minus-one unknown"
Z_COLUMN = re.compile(r"z_\d+")


def read(file: Path, minus_one: MinusOne) -> tuple[tuple[str, ...], dict[str, Embeddings]]:
    """Categories and the splits of a table.

    Args:
        file: the table.
        minus_one: what a label of -1 means.

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
    values = sheet.labels(categories, problems)
    for row, column in np.argwhere(values == -1)[:1] if minus_one == "refuse" else ():
        problems.add("the label is -1", row=sheet.place(row), column=categories[column], mend=MINUS_ONE_MEND)
    names = table.split_of_rows(sheet, "split", problems)
    groups = np.array(sheet.text("group", problems)) if "group" in sheet.columns else None
    problems.raise_if_any()

    labels = label_values.from_values(without(values, minus_one))
    splits = {}
    for split in SPLITS:
        rows = np.flatnonzero(names == split)
        if len(rows):
            own = labels[rows]
            splits[split] = Embeddings(
                z[rows], own.labels, own.known, own.uncertain, None if groups is None else groups[rows]
            )
    return categories, splits


def without(values: Float32[np.ndarray, "n c"], minus_one: MinusOne) -> Float32[np.ndarray, "n c"]:
    """-1 as unknown, where that is what it means."""
    return np.where(values == -1, np.float32(np.nan), values) if minus_one == "unknown" else values


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
