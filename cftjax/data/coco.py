"""MS-COCO (Lin et al., ECCV 2014): instances_*.json with the images beside it; every label is known.

A category is positive where the image has at least one annotation of it, of whatever size and also as a crowd, and
negative elsewhere. Images without annotations count: all their categories are negative.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from cftjax import types
from cftjax.data.reading import files, instances
from cftjax.data.reading.problems import Problems, require


class Image(msgspec.Struct, gc=False):
    """An entry of `images`."""

    id: int | str | None = None
    file_name: str | None = None


class Instances(msgspec.Struct):
    """An instances file."""

    images: list[Image]
    annotations: list[instances.Annotation]
    categories: list[instances.Category]


@dataclasses.dataclass(frozen=True)
class CocoData:
    """MS-COCO as released: annotations/instances_*.json, and the folders of images; val is the test split."""

    root: str = "coco"
    """The folder with annotations/, train2014/ and val2014/ (or 2017)."""
    year: Literal[2014, 2017] = 2014
    """The year in the names of files and folders: 2014 trains on 82,783 images, 2017 on 118,287."""
    images: str | None = None
    """The folder with train2014/ and val2014/, where that is not the root."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""

    def load(self) -> types.Dataset:
        """Read the annotations; images are opened later.

        `val` is the test split, unless instances_test*.json is there as well: then it is the validation split.

        Raises:
            DataError: everything that is wrong with the annotations, or the images that are missing.
        """
        root = require(Path(self.root).expanduser())
        images = root if self.images is None else require(Path(self.images).expanduser())
        sources = {"train": "train", "test": "val"}
        # Path.exists would raise below a folder that must not be entered.
        if os.path.exists(root / f"annotations/instances_test{self.year}.json"):
            sources = {"train": "train", "validation": "val", "test": "test"}
        problems = Problems(root / "annotations")
        listings = {}
        paths = [root / f"annotations/instances_{name}{self.year}.json" for name in sources.values()]
        contents = instances.read_all(paths, Instances)
        for (split, name), file, content in zip(sources.items(), paths, contents, strict=True):
            columns = instances.category_columns(content.categories, file.name, problems)
            rows = instances.image_rows([image.id for image in content.images], file.name, problems)
            pairs = instances.annotated(content.annotations, rows, columns, file.name, problems)
            folder = f"{name}{self.year}"
            own = [posixpath.join(folder, image.file_name) if image.file_name else "" for image in content.images]
            listings[split] = instances.Listing(file.name, columns, own, *pairs)
        instances.refuse_other_categories(list(listings.values()), problems)
        if self.check_files and not problems:
            for name in sources.values():
                require(images / f"{name}{self.year}")
        names = instances.image_names(list(listings.values()), images, "file_name", problems, self.check_files)
        problems.raise_if_any()
        splits = {}
        for (split, listing), own in zip(listings.items(), names, strict=True):
            positive = np.zeros((len(own), len(listing.columns)), bool)
            positive[listing.rows, listing.categories] = True
            labels = types.Labels(positive, np.ones_like(positive), np.zeros_like(positive))
            splits[split] = types.Records(files.ImageFiles(images, own), labels, own)
        categories = tuple(name for _, name in listings["train"].columns)
        files.warn_of_absent(root, categories, splits["train"].labels.labels)
        return types.Dataset(categories, splits, files.fingerprint(categories, splits))
