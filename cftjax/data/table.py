"""A table of one's own, CSV or Parquet: a column of image paths and one column per category.

Cells of a category are 1 (positive), 0 (negative), -1 (uncertain) or blank (unknown); where -1 may be something else,
it is asked about. Optional columns name the split (train, validation, test) and the group (patient, camera, …) of each
image.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cftjax import types
from cftjax.data import columns, meaning
from cftjax.data import labels as label_values
from cftjax.data.reading import files, sheets
from cftjax.data.reading.problems import Problems, require
from cftjax.text import shown

SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
SPLIT_MEND = "use train, validation or test, or name the right column with --data.split-column"


@dataclasses.dataclass(frozen=True)
class TableData:
    """A CSV or Parquet file of one's own: image paths and one column per category, 1 / 0 / -1 / blank."""

    file: str = "labels.csv"
    """The table; read as Parquet where its name ends in .parquet, else as CSV with a header, in UTF-8."""
    images: str | None = None
    """The folder that image paths start from; None is the folder of the table."""
    path_column: str = "path"
    """The column of the image paths, relative to the folder or absolute and below it."""
    categories: tuple[str, ...] = ()
    """The category columns, in the order wanted; none means every column that is not path, split or group."""
    split_column: str | None = None
    """The column that says train, validation or test; None means `split` where there is one, a blank that there is
    none."""
    group_column: str | None = None
    """The column of what stays together when validation is carved from train, such as the patient; None means `group`
    where there is one, a blank that there is none."""
    minus_one: str = "ask"
    """What -1 means in the category columns, where it does not show: negative, uncertain or unknown;
    negative-and-zero-unknown (or -uncertain, -negative) says it of 0 as well. Of single columns: Bald=negative,Young=…
    See docs/data.md."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""

    def __post_init__(self) -> None:
        """Refuse what is no answer."""
        meaning.parse(self.minus_one)

    def load(self) -> types.Dataset:
        """Read the table; images are opened later.

        Raises:
            DataError: everything that is wrong with the table, row by row.
        """
        file = require(Path(self.file).expanduser())
        root = file.parent if self.images is None else require(Path(self.images).expanduser())
        problems = Problems(file)
        sheet = sheets.read(file, problems)
        before = len(problems)
        roles = columns.roles(
            sheet,
            path=self.path_column,
            split=self.split_column,
            group=self.group_column,
            categories=self.categories,
            problems=problems,
        )
        # Cells can be judged only under a sound header.
        if len(problems) > before:
            problems.raise_if_any()

        paths = sheet.text(roles.path)
        names = files.relative_names(
            paths, root, problems, place=sheet.place, column=roles.path, check_files=self.check_files
        )
        written = sheet.labels(roles.categories, problems, columns.mend_of(sheet))
        values, told = meaning.read(written, roles.categories, meaning.parse(self.minus_one), problems)
        split = split_of_rows(sheet, roles.split, problems, SPLIT_MEND)
        groups = None if roles.group is None else np.array(sheet.text(roles.group, problems))
        problems.raise_if_any()
        if not self.categories:
            # A blank says of these that they are categories.
            said = [role for role, name in (("split", self.split_column), ("group", self.group_column)) if name == ""]
            columns.warn_of_odd_names(file, [name for name in roles.categories if name not in said])

        labels, splits, categories = label_values.from_values(values), {}, roles.categories
        for name in types.SPLITS:
            rows = np.flatnonzero(split == name)
            if len(rows):
                own = [names[row] for row in rows]
                groups_of = None if groups is None else groups[rows]
                splits[name] = types.Records(files.ImageFiles(root, own), labels[rows], own, groups_of)
        files.warn_of_unlabelled(file, categories, splits["train"].labels)
        notes = (roles.told(file), *(f"{file.name}: {sentence}." for sentence in told))
        return types.Dataset(categories, splits, files.fingerprint(categories, splits), notes)


def split_of_rows(
    sheet: sheets.Sheet, column: str | None, problems: Problems, mend: str = "use train, validation or test"
) -> np.ndarray:
    """[n] the split of each row, by its name in `types.SPLITS`; all train without a column."""
    if column is None:
        splits = np.full(len(sheet.rows), "train", object)
    else:
        cells = sheet.text(column)
        splits = np.array([SPLIT_NAMES.get(cell.strip().lower(), "") for cell in cells], object)
        wrong = np.flatnonzero(splits == "")
        if len(wrong):
            more = f" (and so are {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
            what = f"{shown(cells[wrong[0]])} is no split{more}"
            problems.add(what, row=sheet.place(wrong[0]), column=column, mend=mend)
    if len(splits) and not (splits == "train").any():
        problems.add("no row belongs to the train split", column=column, mend="add training rows")
    return splits
