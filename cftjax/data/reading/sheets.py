"""CSV and Parquet files in memory: cells as the file has them, and the place of each for messages."""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import difflib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Float32, Int

from cftjax.data.reading.problems import DataError, Problems
from cftjax.runtime import storage
from cftjax.text import shown

PARQUET_SUFFIXES = (".parquet", ".pq")
# What an unreadable label becomes until the problem is raised: no float that a file may hold.
WRONG = np.inf
# Rows of the wrong length after which a file is given up: its lines are no table.
MAX_SKIPPED = 1000
# Bytes checked at a time for being UTF-8.
DECODED_BYTES = 2**23


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table in memory, its cells as the file has them.

    Attributes:
        columns: by name; a column without a name (a saved row index) is left out.
        rows: [n] the number of each row as a spreadsheet shows it.
        title: the file's name where messages are about several files, else None.
    """

    columns: dict[str, pa.ChunkedArray]
    rows: Int[np.ndarray, " n"]
    title: str | None = None

    def place(self, index: int | np.integer) -> int | str:
        """What a message calls a row."""
        number = int(self.rows[index])
        return number if self.title is None else f"{self.title}, row {number}"

    def text(self, column: str, problems: Problems | None = None) -> list[str]:
        """A column as text, blank where nothing is; blank cells are problems where `problems` is given."""
        try:
            cells = pc.fill_null(self.columns[column].cast(pa.large_string()), "").to_pylist()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            kind = self.columns[column].type
            raise DataError(f"{self.title or 'the table'}: column {column}, of type {kind}, is not text.") from error
        if problems is not None:
            for index in (index for index, cell in enumerate(cells) if not cell.strip()):
                problems.add("the cell is blank", row=self.place(index), column=column, mend="fill it in")
        return cells

    def labels(self, columns: Sequence[str], problems: Problems) -> Float32[np.ndarray, "n c"]:
        """Category columns as numbers: 1, 0, -1, NaN where blank; every other value is a problem, noted once."""
        values = np.full((len(self.rows), len(columns)), np.nan, np.float32)
        for place, column in enumerate(columns):
            try:
                encoded = self.columns[column].combine_chunks().dictionary_encode()
            except pa.ArrowNotImplementedError:
                problems.add(f"type {self.columns[column].type} holds no labels", column=column)
                continue
            cells = encoded.dictionary.to_pylist()
            # One more than there are values, for cells that hold nothing.
            numbers = np.array([*map(label, cells), np.nan])
            codes = pc.fill_null(encoded.indices, len(cells)).to_numpy()
            values[:, place] = numbers[codes]
            wrong, first, count = np.unique(
                np.where(np.isinf(numbers), np.arange(len(numbers)), -1)[codes], return_index=True, return_counts=True
            )
            for code, row, times in zip(wrong, first, count, strict=True):
                if code >= 0:
                    more = f" (and in {times - 1} more rows)" if times > 1 else ""
                    mend = "use 1, 0, -1 or blank, or choose the category columns"
                    what = f"{shown(cells[code])}{more} is no label"
                    problems.add(what, row=self.place(row), column=column, mend=mend)
        return values


def require_columns(
    wanted: Iterable[str], existing: Collection[str], problems: Problems, title: str | None = None
) -> None:
    """Note each column that a table lacks, with the nearest that it has; `title` names one table among several."""
    for name in wanted:
        if name in existing:
            continue
        folded = {column.lower(): column for column in existing}
        close = difflib.get_close_matches(name.lower(), folded, n=1)
        has = f"the nearest is {folded[close[0]]}" if close else f"it has {', '.join(existing) or 'none'}"
        if len(existing) == 1 and any(mark in next(iter(existing)) for mark in ";\t|"):
            has += "; save it with commas between the cells"
        mend = "add it, or rename the one that is meant"
        problems.add(f"no such column in {title or 'the table'}; {has}", column=name, mend=mend)


def label(cell: Any) -> float:
    """1, 0 or -1, NaN for blank, and WRONG for everything else."""
    if isinstance(cell, str) and not cell.strip():
        return np.nan
    try:
        number = np.nan if cell is None else float(cell)
    except (TypeError, ValueError, OverflowError):
        return WRONG
    return number if number in (1, 0, -1) or np.isnan(number) else WRONG


def read(file: Path, problems: Problems, title: str | None = None) -> Sheet:
    """Read a table whole: Parquet by its suffix, else CSV.

    Args:
        file: the table.
        problems: where rows of the wrong length and repeated columns are noted.
        title: see `Sheet`.

    Raises:
        DataError: the file cannot be read at all.
    """
    with readable(file, problems):
        if file.suffix.lower() in PARQUET_SUFFIXES:
            with pyarrow.parquet.ParquetFile(file) as opened:
                content = opened.metadata
                storage.refuse_larger_than_memory(content.num_rows * content.num_columns)
                table = opened.read()
            names, rows = table.column_names, np.arange(1, len(table) + 1)
        else:
            names, table, rows = read_csv(file, problems, title)
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(names, table.columns, strict=True):
        if name.strip() in columns:
            problems.add("the header has this column twice", column=name.strip(), mend="rename or remove one")
        elif name.strip():
            columns[name.strip()] = column
    if not len(table):
        problems.add(f"{title or 'the table'} has no rows", mend="add rows below the header, or copy the file again")
    return Sheet(columns, rows, title)


def read_csv(file: Path, problems: Problems, title: str | None) -> tuple[list[str], pa.Table, np.ndarray]:
    """The header, every cell as text, and the row numbers of what was kept: blank lines are not."""
    names = read_header(file)
    skipped: list[int] = []
    # By position, so that the types are set whatever the header says, twice or not at all.
    positions = [str(position) for position in range(len(names))]
    table = pyarrow.csv.read_csv(
        file,
        # Row numbers are known to the handler only where one thread reads.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=positions),
        parse_options=pyarrow.csv.ParseOptions(
            invalid_row_handler=note_rows(problems, title, skipped), newlines_in_values=True, ignore_empty_lines=False
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(positions, pa.string())),
    )
    rows = np.setdiff1d(np.arange(1, len(table) + len(skipped) + 1), skipped)
    filled = np.zeros(len(table), bool)
    for column in table.columns:
        filled |= np.asarray(pc.call_function("not_equal", [column, pa.scalar("")]))
    # The header is a row like any other to the parser.
    filled[:1] = False
    return names, table.filter(pa.array(filled)), rows[filled]


def read_header(file: Path) -> list[str]:
    """The cells of the first row of a CSV file, which must be UTF-8 to its end."""
    refuse_other_encodings(file)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        names = next(csv.reader(stream), [])
    if not names:
        raise DataError(f"{file}: is empty; its first row must name the columns.")
    return names


def note_rows(problems: Problems, title: str | None, skipped: list[int]) -> Callable[[Any], str]:
    """A handler for pyarrow that notes rows of the wrong length, and their numbers in `skipped`."""

    def note(row: Any) -> str:
        skipped.append(row.number)
        place = row.number if title is None else f"{title}, row {row.number}"
        what = f"{row.actual_columns} cells where the header has {row.expected_columns}"
        problems.add(what, row=place, mend="quote cells that hold commas")
        return "skip" if len(skipped) < MAX_SKIPPED else "error"

    return note


@contextlib.contextmanager
def readable(file: Path, problems: Problems | None = None) -> Iterator[None]:
    """Turn what a parser raises over a file into one clean DataError; problems noted before explain it better."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        if problems:
            problems.raise_if_any()
        raise DataError(f"{file}: cannot be read as a table ({' '.join(str(error).split())}).") from error


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
