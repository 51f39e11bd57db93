"""Pascal VOC 2007 and 2012 (Everingham et al., IJCV 2010), from ImageSets/Main as released.

`{category}_{set}.txt` says of every image 1 (present), -1 (absent) or 0: present, but only as objects marked difficult.
VOC's own evaluation leaves difficult images out of that category; so does the test split here by default, while
training counts them as present. Loaders that read the objects of Annotations/ see them as present in both.
"""

from __future__ import annotations

import dataclasses
import os.path
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int8

from cftjax import types
from cftjax.data.reading import files
from cftjax.data.reading.problems import Problems, list_names, nearest, read_lines, require
from cftjax.text import shown

Difficult = Literal["positive", "negative", "unknown"]

VALUES = {"1": 1, "0": 0, "-1": -1}
# What an image has until its line is read.
UNREAD = 9


@dataclasses.dataclass(frozen=True)
class VocData:
    """Pascal VOC: trainval and test of 2007, or train and val of 2012, whose test labels are not public."""

    root: str = "VOCdevkit"
    """VOCdevkit, or the folder VOC2007 (VOC2012) in it."""
    year: Literal[2007, 2012] = 2007
    """2007: trainval trains, test tests; 2012: train trains, val tests."""
    own_validation: bool = False
    """For 2007: VOC's own val is the validation split, instead of a part carved from trainval."""
    difficult: Difficult = "positive"
    """What a category is in training and validation where all its objects are marked difficult."""
    difficult_test: Difficult = "unknown"
    """The same for the test split; VOC's own evaluation leaves such images out."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""

    def __post_init__(self) -> None:
        """Refuse a validation split that is needed for testing."""
        if self.own_validation and self.year == 2012:
            raise ValueError("own_validation is for year 2007: VOC 2012 has no public test labels, so val is its test.")

    def load(self) -> types.Dataset:
        """Read the image sets; images are opened later.

        Raises:
            DataError: everything that is wrong with the image sets, or the images that are missing.
        """
        root = require(Path(self.root).expanduser())
        # Path.is_dir would raise below a folder that must not be entered.
        if os.path.isdir(root / f"VOC{self.year}"):
            root = root / f"VOC{self.year}"
        folder = require(root / "ImageSets" / "Main")
        sets = {"train": "train", "test": "val"} if self.year == 2012 else {"train": "trainval", "test": "test"}
        if self.own_validation:
            sets = {"train": "train", "validation": "val", "test": "test"}
        problems = Problems(folder)
        categories = find_categories(folder, tuple(sets.values()), problems)
        names, values = {}, {}
        for split, name in sets.items():
            names[split] = read_set(folder / f"{name}.txt", problems)
            rows = {image: row for row, image in enumerate(names[split])}
            paths = [folder / f"{category}_{name}.txt" for category in categories]
            columns = [read_values(path, rows, len(names[split]), problems) for path in paths if path.exists()]
            values[split] = np.stack(columns, axis=1) if columns else np.zeros((len(names[split]), 0), np.int8)
        problems.raise_if_any()
        if self.check_files:
            require(root / "JPEGImages")
        places = [f"{sets[split]}.txt, row {row + 1}" for split in sets for row in range(len(names[split]))]
        paths = [f"JPEGImages/{image}.jpg" for split in sets for image in names[split]]
        checked = iter(
            files.relative_names(paths, root, problems, place=places.__getitem__, check_files=self.check_files)
        )
        problems.raise_if_any()
        splits = {}
        for split in sets:
            own = [next(checked) for _ in names[split]]
            labels = from_values(values[split], self.difficult_test if split == "test" else self.difficult)
            splits[split] = types.Records(files.ImageFiles(root, own), labels, own)
        return types.Dataset(categories, splits, files.fingerprint(categories, splits))


def from_values(values: Int8[np.ndarray, "n c"], difficult: Difficult) -> types.Labels:
    """Labels from VOC's 1 (present), 0 (present, but difficult) and -1 (absent)."""
    hard = values == 0
    positive = (values == 1) | (hard if difficult == "positive" else False)
    known = np.logical_not(hard) if difficult == "unknown" else np.ones_like(hard)
    return types.Labels(positive, known, np.zeros_like(hard))


def find_categories(folder: Path, sets: tuple[str, ...], problems: Problems) -> tuple[str, ...]:
    """The categories that have a file for one of the sets, sorted; one without a file for another is a problem."""
    present = set(list_names(folder))
    endings = [f"_{name}.txt" for name in sets]
    categories = sorted({file.removesuffix(end) for file in present for end in endings if file.endswith(end)} - {""})
    if not categories:
        problems.add(f"no file like aeroplane_{sets[0]}.txt; the folder {nearest(f'aeroplane_{sets[0]}.txt', folder)}")
    for category in categories:
        for end in endings:
            if category + end not in present:
                problems.add(f"{shown(category + end)} is missing", mend="unpack the archive of that set here as well")
    return tuple(categories)


def read_set(path: Path, problems: Problems) -> list[str]:
    """The images of a set, in the order of its file."""
    lines = [line.strip() for line in read_lines(path)]
    if not lines:
        problems.add(f"{path.name} lists no image")
    for number, line in enumerate(lines, 1):
        if len(line.split()) != 1:
            problems.add(f"{shown(line)} is no name of an image", row=f"{path.name}, row {number}")
    return lines


def read_values(path: Path, rows: dict[str, int], num_images: int, problems: Problems) -> Int8[np.ndarray, " n"]:
    """One category's 1, 0 or -1 of every image of a set.

    Args:
        path: lines of an image and its value, in any order.
        rows: the row of each image.
        num_images: rows of the result.
        problems: where lines that say nothing of a listed image, say it twice, or are missing, are noted.
    """
    values = np.full(num_images, UNREAD, np.int8)
    for number, line in enumerate(read_lines(path), 1):
        place = f"{path.name}, row {number}"
        match line.split():
            case []:
                pass
            case [image, value] if image in rows and value in VALUES and values[rows[image]] == UNREAD:
                values[rows[image]] = VALUES[value]
            case [image, _] if image not in rows:
                problems.add(f"image {shown(image)} is not in the set", row=place, mend="add it to the set's file")
            case [image, value] if value not in VALUES:
                problems.add(f"{shown(value)} is no label", row=place, mend="write 1, 0 or -1")
            case [image, _]:
                problems.add(f"image {shown(image)} stands here a second time", row=place, mend="keep one line")
            case _:
                problems.add(f"{shown(line)} is no image and label", row=place, mend="write them as in 000005 -1")
    for image, row in rows.items():
        if values[row] == UNREAD:
            problems.add(f"{path.name} says nothing of image {shown(image)}", mend="add 1, 0 or -1 for it")
    return values
