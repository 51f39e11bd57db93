"""Open Images V3: 5,000 trainable categories, of which annotators verified a handful for each image.

Millions of rows are read in a stream: memory holds each image's name once and a few bytes a label, and the labels stay
sparse. Labels of categories that are not trainable are left out, and with them the images that have no other.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Bool, Int

from cftjax import types
from cftjax.data import sparse
from cftjax.data.reading import files, headers, sheets, spelling
from cftjax.data.reading.problems import Problems, require
from cftjax.text import shown

ANNOTATIONS = "annotations-human.csv"
COLUMNS = ("ImageID", "LabelName", "Confidence")
MEND = "copy it there, or leave out what is missing: --data.only-present"
# Bytes of the file read at a time: large enough to be quick, small beside what is kept.
BLOCK_BYTES = 2**23
# An id is a file's name, so it must not lead elsewhere.
# A category's id and, behind a separator, its name.
WITH_NAME = re.compile(r"^\"?(/[a-z]/\w+)\"?\s*[,;\t].*$")
ID_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True)
class OpenImagesData:
    """Open Images V3: classes-trainable.txt, {split}/annotations-human.csv and {split}/{ImageID}.jpg."""

    root: str = "openimages-v3"
    """The folder with classes-trainable.txt."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""
    only_present: bool = False
    """Whether images that are not there are left out; for a part of the set."""

    def load(self) -> types.Dataset:
        """Read the annotations; images are opened later.

        Raises:
            DataError: everything that is wrong with the files, row by row.
        """
        root = require(Path(self.root).expanduser())
        categories = read_categories(root / "classes-trainable.txt")
        problems = Problems(root)
        splits = {}
        for split in types.SPLITS:
            if split == "train" or os.path.isdir(root / split):
                require(root / split / ANNOTATIONS)
                splits[split] = self._split(root, split, categories, problems)
        problems.raise_if_any()
        files.warn_of_unlabelled(root, categories, splits["train"].labels)
        return types.Dataset(categories, splits, files.fingerprint(categories, splits))

    def _split(self, root: Path, split: str, categories: tuple[str, ...], problems: Problems) -> types.Records:
        ids, labels = read_annotations(root / split / ANNOTATIONS, categories, problems, f"{split}/{ANNOTATIONS}")
        if self.check_files or self.only_present:
            present = is_present(ids, root / split)
            if self.only_present:
                ids, labels = ids.filter(pa.array(present)), labels.take(np.flatnonzero(present))
            else:
                absent = ImageNames(ids.filter(pa.array(~present)), split)
                files.PathColumn(absent, lambda row: f"{split}/{ANNOTATIONS}", None, problems).note_near(
                    range(len(absent)), spelling.Folders(root), lambda row: f"no such file: {root / absent[row]}", MEND
                )
        if not len(ids):
            other = "" if len(labels.values) else other_names(root / split / ANNOTATIONS, categories)
            problems.add(f"no image of the {split} split is left{other}", mend="check the folder and the categories")
        names = ImageNames(ids, split)
        return types.Records(files.ImageFiles(root, names), labels, names)


class ImageNames(Sequence[str]):
    """Names such as `train/000a1b2c3d4e5f60.jpg`, made when asked for: a million of them take 20 MB."""

    def __init__(self, ids: pa.StringArray, split: str) -> None:
        """Keep the ids; `split` is the folder of all."""
        self.ids, self.split = ids, split

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """One name, or a list of them."""
        if isinstance(index, slice):
            return [f"{self.split}/{image}.jpg" for image in self.ids[index].to_pylist()]
        return f"{self.split}/{self.ids[index].as_py()}.jpg"

    def __iter__(self) -> Iterator[str]:
        """All names; Sequence's own would ask for them one by one."""
        for start in range(0, len(self), files.HASHED_NAMES):
            yield from self[start : start + files.HASHED_NAMES]


def read_categories(file: Path) -> tuple[str, ...]:
    """The trainable categories, one a line, as Open Images names them (`/m/0bt9lr`)."""
    with sheets.readable(require(file)):
        headers.refuse_other_encodings(file)
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    # The release has ids alone; other copies have the categories' names beside them.
    names = [WITH_NAME.sub(r"\1", line) for line in lines if line]
    problems = Problems(file)
    if odd := [(row, line) for row, line in enumerate(lines, 1) if re.search(r"[,;\t]", WITH_NAME.sub(r"\1", line))]:
        mend = "write one id a line, as in /m/0bt9lr"
        problems.add(f"{shown(odd[0][1])} is no category ({len(odd):,} such lines)", row=odd[0][0], mend=mend)
        problems.raise_if_any()
    if not names:
        problems.add("has no category", mend="write one category a line")
    for name in [name for name, times in collections.Counter(names).items() if times > 1]:
        problems.add(f"{shown(name)} is listed twice", mend="keep one line per category")
    problems.raise_if_any()
    return tuple(names)


def read_annotations(
    file: Path, categories: Sequence[str], problems: Problems, title: str
) -> tuple[pa.StringArray, sparse.SparseLabels]:
    """Read a table of labels: ImageID, LabelName, and Confidence 1 or 0; other columns do not matter.

    Args:
        file: the table, of any length.
        categories: those that are kept.
        problems: where bad rows are noted.
        title: of the table, for messages.

    Returns:
        The images that have a label of one of the categories, ascending, and their labels.
    """
    number = {name: index for index, name in enumerate(categories)}
    images: list[pa.DictionaryArray] = []
    columns, values = [np.zeros(0, np.int32)], [np.zeros(0, np.int8)]
    for batch in stream(file, problems, title):
        codes, names = batch.encoded("LabelName")
        column = np.array([number.get(name, -1) for name in names], np.int32)[codes]
        codes, cells = batch.encoded("Confidence")
        confidence = np.array([sheets.label(cell) for cell in cells])
        valid = (confidence == 0) | (confidence == 1)
        wanted = column >= 0
        batch.refuse("Confidence", codes, cells, valid, wanted, "is no verified label", "use 1 or 0", problems)
        value = np.where(valid, confidence, 0).astype(np.int8)[codes]
        codes, cells = batch.encoded("ImageID")
        valid = np.array([ID_PATTERN.fullmatch(cell) is not None for cell in cells], bool)
        batch.refuse("ImageID", codes, cells, valid, wanted, "is no image", "use letters and digits", problems)
        images.append(batch.columns["ImageID"].filter(pa.array(wanted)).dictionary_encode())
        columns.append(column[wanted])
        values.append(value[wanted])
    # Every image once, whichever block of the file it was in.
    merged = pa.chunked_array(images, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
    ids = merged.chunk(0).dictionary if merged.num_chunks else pa.array([], pa.string())
    codes = [np.asarray(chunk.indices) for chunk in merged.chunks]
    order = np.asarray(pc.call_function("array_sort_indices", [ids]))
    rank = np.empty(len(ids), np.int32)
    rank[order] = np.arange(len(ids), dtype=np.int32)
    rows = rank[np.concatenate([np.zeros(0, np.int32), *codes])]
    labels = sparse.from_entries(rows, np.concatenate(columns), np.concatenate(values), (len(ids), len(categories)))
    return ids.take(pa.array(order)), labels


def other_names(file: Path, categories: Sequence[str]) -> str:
    """How a table calls its categories where it has none of those wanted, as the end of a sentence."""
    for block in stream(file, Problems(file), ANNOTATIONS):
        if names := block.encoded("LabelName")[1]:
            wanted, there = shown(categories[0]), shown(names[0])
            return f": none of the categories, such as {wanted}, is among its labels, such as {there}"
    return ""


@dataclasses.dataclass(frozen=True)
class Block:
    """Some consecutive rows of a table.

    Attributes:
        columns: text by name.
        start: how many rows were read before, the header among them, without those that were skipped.
        skipped: numbers of the rows skipped so far, ascending.
        title: of the table, for messages.
    """

    columns: dict[str, pa.StringArray]
    start: int
    skipped: list[int]
    title: str

    def encoded(self, column: str) -> tuple[np.ndarray, list[str]]:
        """[k] a number for each row, and the text that each number stands for."""
        encoded = self.columns[column].dictionary_encode()
        return np.asarray(encoded.indices), encoded.dictionary.to_pylist()

    def refuse(
        self,
        column: str,
        codes: Int[np.ndarray, " k"],
        cells: Sequence[str],
        valid: Bool[np.ndarray, " m"],
        rows: Bool[np.ndarray, " k"],
        what: str,
        mend: str,
        problems: Problems,
    ) -> None:
        """Note the cells of some rows whose text is not valid, each text once."""
        if valid.all():
            return
        wrong, first, count = np.unique(
            np.where(rows & ~valid[codes], codes, -1), return_index=True, return_counts=True
        )
        for code, index, times in zip(wrong, first, count, strict=True):
            if code >= 0:
                more = f" (and in {times - 1} more rows)" if times > 1 else ""
                place = f"{self.title}, row {self.row(int(index))}"
                problems.add(f"{shown(cells[code])}{more} {what}", row=place, column=column, mend=mend)

    def row(self, index: int) -> int:
        """The number of a row as an editor shows it."""
        number = self.start + index + 1
        for skipped in self.skipped:
            number += skipped <= number
        return number


def stream(file: Path, problems: Problems, title: str) -> Iterator[Block]:
    """The rows of a CSV file, a block after the other; what cannot be read is noted or raised."""
    skipped: list[int] = []
    with sheets.readable(file, problems):
        header, header_rows = headers.read(file)
        before = len(problems)
        sheets.require_columns(COLUMNS, header, problems, title)
        if len(problems) > before:
            problems.raise_if_any()
        names = [str(position) for position in range(len(header))]
        positions = {name: str(header.index(name)) for name in COLUMNS}
        reader = pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(
                invalid_row_handler=sheets.note_rows(problems, title, skipped), ignore_empty_lines=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(positions.values()), column_types=dict.fromkeys(names, pa.string())
            ),
        )
        start = 0
        for batch in reader:
            # The header is a row like any other to the parser.
            rows = batch if start else batch.slice(header_rows)
            columns = {name: rows[position] for name, position in positions.items()}
            yield Block(columns, max(start, header_rows), skipped, title)
            start += len(batch)


def is_present(ids: pa.StringArray, folder: Path) -> Bool[np.ndarray, " n"]:
    """Whether the folder holds {id}.jpg; it is listed once, in pieces."""
    names = (name[:-4] for name in files.listed(folder) if name.endswith(".jpg") and name.isascii())
    pieces = iter(lambda: list(itertools.islice(names, files.HASHED_NAMES)), [])
    present = pa.chunked_array([pa.array(piece, pa.string()) for piece in pieces], pa.string())
    return np.asarray(pc.call_function("is_in", [ids], pc.SetLookupOptions(value_set=present)))
