"""The first row of a CSV file, and what is met in its place: other formats or separators, comments, no names."""

from __future__ import annotations

import codecs
import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cftjax.data.reading.problems import DataError
from cftjax.text import shown

# Bytes checked at a time for being UTF-8.
DECODED_BYTES = 2**23
SEPARATORS = (";", "\t", "|")
# How files begin that are often given the suffix of a table, and what to do about them.
MAGIC = {
    b"PK\x03\x04": "is an Excel file or another archive, not CSV; save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "is an old Excel file, not CSV; save the sheet as CSV in UTF-8",
    b"\x1f\x8b": "is compressed by gzip; unpack it",
    b"PAR1": "is a Parquet file; give it a name that ends in .parquet",
}
# What pandas calls an index that has no name, in Parquet and in CSV.
PARQUET_INDEX, CSV_INDEX = "__index_level_0__", "Unnamed: "


class Header(NamedTuple):
    """The row that names the columns.

    Attributes:
        names: without blanks around them.
        rows: of the file up to it, itself included: blank ones may come before.
    """

    names: list[str]
    rows: int


def read(file: Path) -> Header:
    """The header of a CSV file, which must be UTF-8 to its end.

    Raises:
        DataError: the file is something else, or its first line names no columns.
    """
    refuse_other_formats(file)
    refuse_other_encodings(file)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        numbered = enumerate(csv.reader(stream), 1)
        filled = ((row, cells) for row, cells in numbered if any(cell.strip() for cell in cells))
        rows, names = next(filled, (0, []))
        _, following = next(filled, (0, names))
    if not names:
        raise DataError(f"{file}: is empty; its first row must name the columns.")
    if len(names) == 1:
        if separator := next((mark for mark in SEPARATORS if mark in names[0]), None):
            what = f"its cells are separated by {shown(separator)}; save it with commas between the cells"
            raise DataError(f"{file}: line {rows} is {shown(names[0])}: {what}.")
        if len(following) > 1:
            what = "the first line must name the columns; take a title or a comment out"
            raise DataError(
                f"{file}: line {rows} is {shown(names[0])} alone, the next has {len(following)} cells; {what}."
            )
    if names[0].lstrip().startswith("#") and len(following) != len(names):
        what = "the first line must name the columns; take the comment out"
        raise DataError(f"{file}: line {rows} is a comment, {shown(','.join(names))}; {what}.")
    return Header([name.strip() for name in names], rows)


def refuse_other_formats(file: Path) -> None:
    """Raise a DataError where a file begins as one of `MAGIC` does."""
    with file.open("rb") as stream:
        start = stream.read(max(map(len, MAGIC)))
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{file}: {what}.")


def refuse_other_encodings(file: Path) -> None:
    """Raise a DataError where a file is not UTF-8; parsers would find out late, or not say where."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = 0
    with file.open("rb") as stream:
        # The last, empty block says that a character cut short will not be completed.
        for block in itertools.chain(iter(lambda: stream.read(DECODED_BYTES), b""), [b""]):
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line = lines + error.object.count(b"\n", 0, error.start) + 1
                raise DataError(f"{file}: line {line} is not UTF-8; save the table as UTF-8.") from error
            lines += block.count(b"\n")


def nameless(name: str, position: int, column: pa.ChunkedArray) -> str | None:
    """Why a column without a name of its own cannot be left out; None where it can, since it is an index or blank.

    Args:
        name: nothing, or what pandas writes instead.
        position: of the column, from 0.
        column: its cells.
    """
    cells = written(column)
    if not len(cells):
        return None
    if counts_rows(cells) and (name or position == 0):
        return None
    if name == PARQUET_INDEX and not set(cells) <= {"0", "1", "-1", "0.0", "1.0", "-1.0", "true", "false"}:
        return None
    called = f" (pandas calls it {shown(name)})" if name else ""
    return f"column {position + 1} has values, such as {shown(cells[0])}, and no name{called}"


def written(column: pa.ChunkedArray) -> list[str]:
    """The cells of a column that hold something, as text."""
    try:
        cells = pc.fill_null(column.cast(pa.large_string()), "").to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return [str(column.type)]
    return [cell.strip() for cell in cells if cell.strip()]


def counts_rows(cells: list[str]) -> bool:
    """Whether cells are the numbers of rows, perhaps shuffled or thinned out, and cannot be labels."""
    try:
        numbers = np.array(cells, np.float64)
    except ValueError:
        return False
    if not ((numbers >= 0) & (numbers == np.floor(numbers))).all():
        return False
    in_order = [list(range(first, first + len(cells))) for first in (0, 1)]
    return bool(numbers.max() > 1) or (len(cells) < 3 and numbers.tolist() in in_order)
