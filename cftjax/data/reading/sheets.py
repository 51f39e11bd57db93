"""CSV and Parquet files in memory: cells as the file has them, and the place of each for messages."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Float32, Int

from cftjax.data.reading import headers
from cftjax.data.reading.problems import DataError, Problems
from cftjax.runtime import storage
from cftjax.text import shown

PARQUET_SUFFIXES = (".parquet", ".pq")
# What an unreadable label becomes until the problem is raised: no float that a file may hold.
WRONG = np.inf
# Rows of the wrong length after which a file is given up: its lines are no table.
MAX_SKIPPED = 1000


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table in memory, its cells as the file has them.

    Attributes:
        columns: by name; a column without a name that counts the rows (a saved index) is left out.
        rows: [n] the number of each row as a spreadsheet shows it.
        title: the file's name where messages are about several files, else None.
        left_out: what was left out, in words.
    """

    columns: dict[str, pa.ChunkedArray]
    rows: Int[np.ndarray, " n"]
    title: str | None = None
    left_out: tuple[str, ...] = ()

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

    def labels(
        self, columns: Sequence[str], problems: Problems, mend: str = "use 1, 0, -1 or blank"
    ) -> Float32[np.ndarray, "n c"]:
        """Category columns as numbers: 1, 0, -1, NaN where blank; a column with any other value is a problem.

        Args:
            columns: their names.
            problems: where they are noted.
            mend: what a person may do about it.
        """
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
            wrong = np.flatnonzero(np.isinf(values[:, place]))
            if len(wrong):
                kinds = len(np.unique(codes[wrong]))
                others = f" and {kinds - 1} other values" if kinds > 1 else ""
                more = f" (and in {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
                what = f"{shown(cells[codes[wrong[0]]])}{others}{more} {'are no labels' if others else 'is no label'}"
                problems.add(what, row=self.place(wrong[0]), column=column, mend=mend)
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
        mend = "add it, or rename the one that is meant"
        problems.add(f"no such column in {title or 'the table'}; {has}", column=name, mend=mend)


def label(cell: Any) -> float:
    """1, 0 or -1, NaN for blank, and WRONG for everything else."""
    # Python itself would take 0_1 for 1.
    if isinstance(cell, str) and (not cell.strip() or "_" in cell):
        return WRONG if cell.strip() else np.nan
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
    left_out = []
    for position, (name, column) in enumerate(zip(map(str.strip, names), table.columns, strict=True)):
        if name in ("", headers.PARQUET_INDEX) or name.startswith(headers.CSV_INDEX):
            if why := headers.nameless(name, position, column):
                problems.add(why, mend="give it a name in the header, or remove it")
            left_out.append(f"column {position + 1} without a name")
        elif name in columns:
            problems.add("the header has this column twice", column=name, mend="rename or remove one")
        else:
            columns[name] = column
    if not len(table):
        problems.add(f"{title or 'the table'} has no rows", mend="add rows below the header, or copy the file again")
    return Sheet(columns, rows, title, tuple(left_out))


def read_csv(file: Path, problems: Problems, title: str | None) -> tuple[list[str], pa.Table, np.ndarray]:
    """The header, every cell as text, and the row numbers of what was kept: blank lines are not."""
    names, header_rows = headers.read(file)
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
    filled[:header_rows] = False
    return names, table.filter(pa.array(filled)), rows[filled]


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
