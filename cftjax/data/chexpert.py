"""CheXpert (Irvin et al., AAAI 2019): chest radiographs with fourteen findings, from the folder as released.

A finding is 1 (positive), 0 (negative), -1 (uncertain) or blank (not mentioned, here: unknown). `valid.csv`, labelled
by radiologists, is the test split unless a `test.csv` with labels lies beside it; then it is the validation split.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from cftjax import types
from cftjax.data import labels as label_values
from cftjax.data.reading import files, sheets
from cftjax.data.reading.problems import DataError, Problems, nearest, require
from cftjax.text import shown

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
# The findings that the competition scores, in the order of its tables.
COMPETITION_FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
PATH = "Path"
VIEW = "Frontal/Lateral"
# Whatever stands before the split's folder is the name that the release, or its owner, gave to the whole.
PATH_PATTERN = re.compile(
    r"(?:.*/)?(?P<name>(?:train|valid|test)/patient(?P<patient>[0-9]{1,9})/study[0-9]+/"
    r"[^/\0]*?(?P<view>frontal|lateral)?\.\w+)"
)
STUDY_PATTERN = re.compile(r"(?:^|/)(patient[0-9]+/study[0-9]+)(?:/|$)")


@dataclasses.dataclass(frozen=True)
class CheXpertData:
    """CheXpert as released: train.csv, valid.csv and perhaps test.csv, with the images below the same folder."""

    root: str = "CheXpert-v1.0-small"
    """The folder with train.csv, or the folder above it."""
    findings: Literal["fourteen", "five"] = "fourteen"
    """All findings, or the five that the competition scores."""
    views: Literal["all", "frontal", "lateral"] = "all"
    """The radiographs that are used, in every split."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""

    def load(self) -> types.Dataset:
        """Read the tables; images are opened later.

        Raises:
            DataError: everything that is wrong with the tables, row by row.
        """
        root = find_root(Path(self.root).expanduser())
        categories = FINDINGS if self.findings == "fourteen" else COMPETITION_FINDINGS
        problems = Problems(root)
        tables = read_tables(root, categories, problems)
        parts = {split: read_rows(table, categories, self.views, problems) for split, table in tables.items()}
        check_names(list(parts.values()), root, problems, self.check_files)
        problems.raise_if_any()
        splits = {}
        for split, rows in parts.items():
            labels = label_values.from_values(rows.values)
            splits[split] = types.Records(files.ImageFiles(root, rows.names), labels, rows.names, rows.patients)
        files.warn_of_unlabelled(root, categories, splits["train"].labels)
        return types.Dataset(categories, splits, files.fingerprint(categories, splits))


def find_root(root: Path) -> Path:
    """The folder that holds train.csv: the one given, or the only one named CheXpert… within it."""
    require(root)
    if os.path.isfile(root / "train.csv"):
        return root
    below = sorted(path.parent for path in root.glob("CheXpert*/train.csv"))
    if len(below) == 1:
        return below[0]
    if below:
        raise DataError(f"{root}: holds {', '.join(path.name for path in below)}; name one of them as the root.")
    raise DataError(f"{root / 'train.csv'}: no such file; the folder {root} {nearest('train.csv', root)}.")


def read_tables(root: Path, categories: Sequence[str], problems: Problems) -> dict[str, sheets.Sheet]:
    """The tables by split: valid.csv is the test split where test.csv is absent or says nothing.

    Raises:
        DataError: a table cannot be read, or lacks a column.
    """
    train, valid = (sheets.read(require(root / name), problems, title=name) for name in ("train.csv", "valid.csv"))
    tables = {"train": train, "test": valid}
    if os.path.isfile(root / "test.csv"):
        test = sheets.read(root / "test.csv", problems, title="test.csv")
        known = [category for category in categories if category in test.columns]
        # A first look; what is wrong with its cells is noted when the split is read.
        if known and np.isfinite(test.labels(known, Problems(root))).any():
            tables = {"train": train, "validation": valid, "test": test}
    before = len(problems)
    for table in tables.values():
        sheets.require_columns([PATH, *categories], table.columns, problems, table.title)
    # Cells can be judged only under a sound header.
    if len(problems) > before:
        problems.raise_if_any()
    return tables


@dataclasses.dataclass(frozen=True)
class Rows:
    """The chosen rows of one table.

    Attributes:
        names: image path of each row below the root, such as train/patient00001/study1/view1_frontal.jpg.
        values: [n c] 1, 0, -1 or NaN.
        patients: [n] the patient's number.
        places: what a message calls each row.
    """

    names: list[str]
    values: Float[np.ndarray, "n c"]
    patients: Int[np.ndarray, " n"]
    places: list[int | str]


def read_rows(
    table: sheets.Sheet, categories: Sequence[str], views: Literal["all", "frontal", "lateral"], problems: Problems
) -> Rows:
    """Take a table's rows of the wanted views; malformed paths, views and labels are noted."""
    paths = table.text(PATH)
    matches = [PATH_PATTERN.fullmatch(path) for path in paths]
    wanted = np.array([match is not None for match in matches], bool)
    for index in np.flatnonzero(~wanted):
        mend = "write train/patient00001/study1/view1_frontal.jpg, with or without the folder's name before it"
        problems.add(f"{shown(paths[index])} is no CheXpert path", row=table.place(index), column=PATH, mend=mend)
    if views != "all":
        # The released test set has no column of views; its file names say the same.
        column = VIEW if VIEW in table.columns else PATH
        cells = table.text(VIEW) if column == VIEW else [match["view"] or "" if match else "" for match in matches]
        view = np.array([cell.strip().lower() for cell in cells], object)
        for index in np.flatnonzero(wanted & (view != "frontal") & (view != "lateral")):
            what = f"{shown(cells[index])} is no view"
            problems.add(what, row=table.place(index), column=column, mend="say frontal or lateral, or use all views")
        wanted &= view == views
        if not wanted.any():
            problems.add(f"{table.title} has no {views} view", column=column, mend="choose other views")
    values = table.labels(categories, problems)
    chosen = np.flatnonzero(wanted)
    taken = [match for match, want in zip(matches, wanted, strict=True) if match and want]
    return Rows(
        names=[match["name"] for match in taken],
        values=values[chosen],
        patients=np.array([int(match["patient"]) for match in taken], np.int64),
        places=[table.place(index) for index in chosen],
    )


def check_names(parts: Sequence[Rows], root: Path, problems: Problems, check_files: bool) -> None:
    """Note images that are missing, or listed twice in one table or in two."""
    names = [name for rows in parts for name in rows.names]
    places = [place for rows in parts for place in rows.places]
    files.relative_names(names, root, problems, place=places.__getitem__, column=PATH, check_files=check_files)


def studies(names: Sequence[str]) -> Shaped[np.ndarray, " n"]:
    """[n] the study of each image, as `patient00001/study1`: a study has one label and one view or more.

    Args:
        names: paths that hold the patient and the study, such as the names of `types.Records`.

    Raises:
        ValueError: a name holds none.
    """
    found = []
    for name in names:
        match = STUDY_PATTERN.search(name)
        if match is None:
            raise ValueError(f"{name!r} holds no study: it needs patientN/studyN/ in it.")
        found.append(match[1])
    return np.array(found, str)


def aggregate(
    scores: Float[np.ndarray, "n c"], studies: Shaped[np.ndarray, " m"], how: Literal["max", "mean"] = "max"
) -> tuple[Float[np.ndarray, "s c"], Shaped[np.ndarray, " s"]]:
    """Scores per study from scores per view, as the competition compares them.

    Args:
        scores: of every view; logits or probabilities for max, probabilities for mean.
        studies: the study of each view, from `studies`.
        how: the greatest score over a study's views, or their mean.

    Returns:
        Scores per study, and the studies in ascending order.
    """
    if len(studies) != len(scores):
        raise ValueError(f"{len(scores)} rows of scores have {len(studies)} studies: give one study for each row.")
    names, owner = np.unique(studies, return_inverse=True)
    shape = (len(names), scores.shape[1])
    if how == "max":
        combined = np.full(shape, -np.inf, scores.dtype)
        np.maximum.at(combined, owner, scores)
        return combined, names
    combined = np.zeros(shape, scores.dtype)
    np.add.at(combined, owner, scores)
    return combined / np.bincount(owner)[:, None].astype(scores.dtype), names
