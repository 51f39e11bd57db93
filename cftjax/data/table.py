"""A table of one's own, CSV or Parquet: a column of image paths and one column per category.

Cells of a category are 1 (positive), 0 (negative), -1 (uncertain) or blank (unknown). Optional columns name the split
(train, validation, test) and the group (patient, camera, …) of each image.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cftjax import types
from cftjax.data import labels as label_values
from cftjax.data.reading import files, sheets
from cftjax.data.reading.problems import Problems, require
from cftjax.text import shown

SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


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
    """The column that says train, validation or test; None means `split` where there is one."""
    group_column: str | None = None
    """The column of what stays together when validation is carved from train, such as the patient; None means `group`
    where there is one."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""

    def load(self) -> types.Dataset:
        """Read the table; images are opened later.

        Raises:
            DataError: everything that is wrong with the table, row by row.
        """
        file = require(Path(self.file).expanduser())
        root = file.parent if self.images is None else require(Path(self.images).expanduser())
        problems = Problems(file)
        sheet = sheets.read(file, problems)
        special = {
            "path": self.path_column,
            "split": self.split_column or ("split" if "split" in sheet.columns else None),
            "group": self.group_column or ("group" if "group" in sheet.columns else None),
        }
        rest = [name for name in sheet.columns if name not in special.values()]
        categories = self.categories or tuple(rest)
        before = len(problems)
        sheets.require_columns([*filter(None, special.values()), *categories], sheet.columns, problems)
        if not categories:
            problems.add("no column is left for a category", mend="add one column per category, 1, 0, -1 or blank")
        if len(set(categories)) < len(categories):
            problems.add(f"a category is chosen twice among {', '.join(categories)}")
        # Cells can be judged only under a sound header.
        if len(problems) > before:
            problems.raise_if_any()

        paths = sheet.text(self.path_column)
        names = files.relative_names(
            paths, root, problems, place=sheet.place, column=self.path_column, check_files=self.check_files
        )
        values = sheet.labels(categories, problems)
        split = split_of_rows(sheet, special["split"], problems)
        groups = None if special["group"] is None else np.array(sheet.text(special["group"], problems))
        problems.raise_if_any()

        labels = label_values.from_values(values)
        splits = {}
        for name in types.SPLITS:
            rows = np.flatnonzero(split == name)
            if len(rows):
                own = [names[row] for row in rows]
                splits[name] = types.Records(
                    files.ImageFiles(root, own), labels[rows], own, None if groups is None else groups[rows]
                )
        files.warn_of_unlabelled(file, categories, splits["train"].labels)
        return types.Dataset(tuple(categories), splits, files.fingerprint(categories, splits))


def split_of_rows(sheet: sheets.Sheet, column: str | None, problems: Problems) -> np.ndarray:
    """[n] the split of each row, by its name in `types.SPLITS`; all train without a column."""
    if column is None:
        splits = np.full(len(sheet.rows), "train", object)
    else:
        cells = sheet.text(column)
        splits = np.array([SPLIT_NAMES.get(cell.strip().lower(), "") for cell in cells], object)
        for index in np.flatnonzero(splits == ""):
            mend = "use train, validation or test"
            problems.add(f"{shown(cells[index])} is no split", row=sheet.place(index), column=column, mend=mend)
    if len(splits) and not (splits == "train").any():
        problems.add("no row belongs to the train split", column=column, mend="add training rows")
    return splits
