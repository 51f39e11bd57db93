"""Which column of a table is what: path, split, group, or a category; what looks odd is asked about or told."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cftjax.data.reading import sheets
from cftjax.data.reading.problems import Problems
from cftjax.text import few, shown

# What tables call columns that are no categories, in lower case; such a column of labels is told, not refused.
OTHER_NAMES = frozenset(
    [
        *(
            "age",
            "camera",
            "center",
            "centre",
            "date",
            "female",
            "file",
            "filename",
            "fold",
            "gender",
            "group",
            "height",
        ),
        *("hospital", "id", "image", "image_id", "index", "label", "male", "patient", "patient_id", "person", "pid"),
        *("row", "sex", "site", "source", "split", "study", "subject", "subject_id", "view", "weight", "width", "year"),
    ]
)
OPTIONS = "choose the category columns with --data.categories"


@dataclasses.dataclass(frozen=True)
class Roles:
    """What each column of a table is taken as.

    Attributes:
        path: the column of the images' paths.
        split: that of their splits; None where all are train.
        group: that of what stays together; None where every image stands alone.
        categories: those of the labels.
        not_read: all others, in words.
    """

    path: str
    split: str | None
    group: str | None
    categories: tuple[str, ...]
    not_read: tuple[str, ...]

    def told(self, file: Path) -> str:
        """One line for a person who wants to see that all is as meant."""
        parts = [
            f"path from {self.path}",
            "all rows are train" if self.split is None else f"split from {self.split}",
            "no groups" if self.group is None else f"groups from {self.group}",
            f"{len(self.categories):,} categories: {few(self.categories)}",
        ]
        if self.not_read:
            parts.append(f"not read: {few(self.not_read)}")
        return f"{file.name}: {'; '.join(parts)}."


def roles(
    sheet: sheets.Sheet,
    *,
    path: str,
    split: str | None,
    group: str | None,
    categories: Sequence[str],
    problems: Problems,
) -> Roles:
    """Take every column as what it is named, and note what is missing or looks like something else.

    Args:
        sheet: the table.
        path: the column of the paths.
        split: that of the splits; None for `split` where there is one, blank for none.
        group: that of the groups, likewise.
        categories: those of the labels; none means all others.
        problems: where problems are noted.
    """
    taken = {"split": split, "group": group}
    for role, column in taken.items():
        if column is None and role in sheet.columns and role not in categories:
            taken[role] = role
            if holds_labels(sheet.columns[role]):
                mend = (
                    f"say --data.{role}-column {role} if it is the {role}, --data.{role}-column '' if it is a category"
                )
                problems.add(
                    f"holds nothing but labels, as a category does, and is named {role}", column=role, mend=mend
                )
    special = [path, *filter(None, taken.values())]
    others = [name for name in sheet.columns if name not in special]
    chosen = tuple(categories) or tuple(others)
    sheets.require_columns([*special, *chosen], sheet.columns, problems)
    if path in sheet.columns and holds_labels(sheet.columns[path]):
        problems.add(
            "holds nothing but labels where paths of images are expected",
            column=path,
            mend="name the column of the paths with --data.path-column",
        )
    if not chosen:
        problems.add("no column is left for a category", mend="add one column per category, 1, 0, -1 or blank")
    if len(set(chosen)) < len(chosen):
        problems.add(f"a category is chosen twice among {', '.join(chosen)}")
    if twice := [name for name in chosen if name in special]:
        problems.add(f"{twice[0]} is a category and the column of paths, splits or groups at once", mend=OPTIONS)
    left = [*(name for name in others if name not in chosen), *sheet.left_out]
    return Roles(path, taken["split"] or None, taken["group"] or None, chosen, tuple(left))


def holds_labels(column: pa.ChunkedArray) -> bool:
    """Whether a column that is not blank holds 1, 0, -1 and blank alone."""
    try:
        cells = column.combine_chunks().dictionary_encode().dictionary.to_pylist()
    except pa.ArrowNotImplementedError:
        return False
    values = np.array([sheets.label(cell) for cell in cells], np.float64)
    return bool(np.isfinite(values).any()) and not np.isinf(values).any()


def mend_of(sheet: sheets.Sheet) -> str:
    """What may be done about a column of a table that is taken as a category and holds no labels."""
    return f"use 1, 0, -1 or blank, or {OPTIONS} (of {few(list(sheet.columns), 6)})"


def warn_of_odd_names(file: Path, categories: Sequence[str]) -> None:
    """Tell of columns taken as categories whose names say that they are something else."""
    odd = [name for name in categories if name.lower() in OTHER_NAMES]
    if odd:
        what = f"{few([shown(name) for name in odd])} {'is' if len(odd) == 1 else 'are'} taken as a category"
        warnings.warn(
            f"{file}: {what}, for labels stand there; if that is wrong, {OPTIONS}, or name what it is with "
            "--data.split-column or --data.group-column.",
            stacklevel=3,
        )
