"""Predictions as a table on disk: one row per image, written block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Bool, Float

from cftjax.runtime import storage
from cftjax.text import for_spreadsheet

ENDINGS = (".csv", ".jsonl", ".parquet")
# Cells of a block that is held back until it is worth writing: 16 MB.
BLOCK_CELLS = 2**22


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is said of consecutive images.

    Attributes:
        paths: m, as they were named.
        probs: [m c] calibrated.
        decisions: [m c].
        errors: m, why an image could not be read; blank where it was.
    """

    paths: Sequence[str]
    probs: Float[np.ndarray, "m c"]
    decisions: Bool[np.ndarray, "m c"]
    errors: Sequence[str]


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a place that could not be written to, before hours are spent.

    Raises:
        ValueError: with the mend.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"-o {path}: the name must end in one of {', '.join(ENDINGS)}")
    if path.is_dir():
        raise ValueError(f"-o {path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise ValueError(f"-o {path} exists: give another name, or --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"-o {path}: the folder {path.parent} cannot be written to")


def columns(categories: Sequence[str]) -> tuple[str, list[str], list[str], str]:
    """Names of the columns: path, probabilities, decisions, error; a category called like another column gives way."""
    taken = {"path", "error"}

    def free(name: str) -> str:
        while name in taken:
            name += " (category)"
        taken.add(name)
        return name

    probs = [free(category) for category in categories]
    return "path", probs, [free(f"{category} decision") for category in categories], "error"


@contextlib.contextmanager
def writing(path: Path, categories: Sequence[str], *, raw: bool = False) -> Iterator[Callable[[Rows], None]]:
    """Write predictions in any number of parts; the file takes its name when the block ends without an error.

    Columns are `path`, one per category with its probability, one per category `NAME decision` with 1 or 0, and
    `error`. An image that could not be read has its error and no other values.

    Args:
        path: with one of `ENDINGS`.
        categories: names, length c.
        raw: leave names alone that a spreadsheet would take for formulas; in a .csv an apostrophe stands in front of
            them else, see `text.for_spreadsheet`.
    """
    ending = path.suffix.lower()
    as_cell = for_spreadsheet if ending == ".csv" and not raw else str
    path_column, *rest = columns(categories)
    probs, decisions, error = (list(map(as_cell, names)) if isinstance(names, list) else names for names in rest)
    schema = pa.schema(
        [(path_column, pa.string())]
        + [(name, pa.float32()) for name in probs]
        + [(name, pa.int8()) for name in decisions]
        + [(error, pa.string())]
    )
    held: list[Rows] = []

    def flush() -> None:
        if held:
            write(_table(held, schema, as_cell))
            held.clear()

    def add(part: Rows) -> None:
        held.append(part)
        if sum(one.probs.size + len(one.paths) for one in held) >= BLOCK_CELLS:
            flush()

    with storage.replacing(path) as temporary, _writer(temporary, ending, schema) as write:
        yield add
        flush()


def _table(parts: Sequence[Rows], schema: pa.Schema, as_cell: Callable[[str], str]) -> pa.Table:
    errors = [error for part in parts for error in part.errors]
    wrong = np.array([bool(error) for error in errors])
    probs, decisions = (np.concatenate([getattr(part, name) for part in parts]) for name in ("probs", "decisions"))
    paths = [as_cell(utf8(path)) for part in parts for path in part.paths]
    cells = [pa.array(paths, pa.string())]
    cells += [pa.array(column, mask=wrong) for column in probs.astype(np.float32).T]
    cells += [pa.array(column, mask=wrong) for column in decisions.astype(np.int8).T]
    cells.append(pa.array([as_cell(utf8(error)) or None for error in errors], pa.string()))
    return pa.Table.from_arrays(cells, schema=schema)


def utf8(text: str) -> str:
    """A path as UTF-8, whatever bytes its name has."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _writer(file: Path, ending: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], Any]]:
    if ending == ".parquet":
        with pyarrow.parquet.ParquetWriter(file, schema) as parquet:
            yield parquet.write_table
    elif ending == ".csv":
        with pyarrow.csv.CSVWriter(file, schema) as sheet:
            yield sheet.write_table
    else:
        with file.open("w", encoding="utf-8") as lines:

            def write(table: pa.Table) -> None:
                for row in table.to_pylist():
                    # The shortest decimal that is this float32.
                    plain = {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in row.items()}
                    lines.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")

            yield write
