"""LVIS v1 (Gupta et al., CVPR 2019): 1,203 categories on COCO's images of 2017, naturally partial labels.

Per image a category is positive where it has an annotation, negative where the image's `neg_category_ids` names it, and
unknown elsewhere: some ten of the 1,203 are known. Labels are therefore stored sparse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Int

from cftjax import types
from cftjax.data import sparse
from cftjax.data.reading import files, instances
from cftjax.data.reading.problems import Problems, require
from cftjax.text import shown

# COCO's folders; one that is missing is told as such, not image by image.
FOLDERS = ("train2017", "val2017")


class Image(msgspec.Struct, gc=False):
    """An entry of `images`."""

    id: int | str | None = None
    coco_url: str | None = None
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class Instances(msgspec.Struct):
    """An LVIS file."""

    images: list[Image]
    annotations: list[instances.Annotation]
    categories: list[instances.Category]


@dataclasses.dataclass(frozen=True)
class LvisData:
    """LVIS v1 as released, on COCO's images of 2017; val is the test split."""

    root: str = "lvis"
    """The folder with annotations/lvis_v1_train.json and lvis_v1_val.json."""
    images: str | None = None
    """The folder with COCO's train2017/ and val2017/, where that is not the root."""
    not_exhaustive: Literal["unknown", "positive"] = "unknown"
    """What a category is of which the file says that not every object was outlined, where none was: nearly always it
    has outlined objects, and is positive for them."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""

    def load(self) -> types.Dataset:
        """Read the annotations; images are opened later.

        A category both annotated and said to be absent is uncertain.

        Raises:
            DataError: everything that is wrong with the annotations, or the images that are missing.
        """
        root = require(Path(self.root).expanduser())
        images = root if self.images is None else require(Path(self.images).expanduser())
        problems = Problems(root / "annotations")
        listings, labels = {}, {}
        annotation_files = [root / f"annotations/lvis_v1_{name}.json" for name in ("train", "val")]
        contents = instances.read_all(annotation_files, Instances)
        for split, file, content in zip(("train", "test"), annotation_files, contents, strict=True):
            columns = instances.category_columns(content.categories, file.name, problems)
            rows = instances.image_rows([image.id for image in content.images], file.name, problems)
            positive = instances.annotated(content.annotations, rows, columns, file.name, problems)
            paths = [image_path(image) for image in content.images]
            listings[split] = instances.Listing(file.name, columns, paths, *positive)
            negative = listed(content.images, "neg_category_ids", columns, file.name, problems)
            partly = listed(content.images, "not_exhaustive_category_ids", columns, file.name, problems)
            entries = [(*positive, 1), (*negative, 0)]
            if self.not_exhaustive == "positive":
                entries.append((*partly, 1))
            labels[split] = from_parts(entries, (len(content.images), len(columns)))
        instances.refuse_other_categories(list(listings.values()), problems)
        if self.check_files and not problems:
            named = {path.partition("/")[0] for listing in listings.values() for path in listing.paths}
            for folder in FOLDERS:
                if folder in named:
                    require(images / folder)
        names = instances.image_names(list(listings.values()), images, "coco_url", problems, self.check_files)
        problems.raise_if_any()
        splits = {
            split: types.Records(files.ImageFiles(images, own), labels[split], own)
            for split, own in zip(listings, names, strict=True)
        }
        categories = tuple(name for _, name in listings["train"].columns)
        files.warn_of_unlabelled(root, categories, labels["train"])
        return types.Dataset(categories, splits, files.fingerprint(categories, splits))


def image_path(image: Image) -> str:
    """Folder and file of an image: the last two parts of its URL, as train2017/000000391895.jpg; blank without one."""
    parts = (image.coco_url or "").split("/")
    return "/".join(parts[-2:])


def listed(
    images: Sequence[Image],
    field: Literal["neg_category_ids", "not_exhaustive_category_ids"],
    columns: Sequence[tuple[int, str]],
    file: str,
    problems: Problems,
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """The row and the column of each category that the images name in a field.

    Args:
        images: in the order of the file.
        field: a list of category ids.
        columns: id and name of each category.
        file: its name, for messages.
        problems: where missing fields and unlisted categories are noted.
    """
    column_of = {identity: column for column, (identity, _) in enumerate(columns)}
    at_rows, at_columns = [], []
    for row, image in enumerate(images):
        identities = getattr(image, field)
        if identities is None:
            mend = "take the file of LVIS v1; instances files of COCO do not have it"
            problems.add(f"has no {field}", row=f"{file} images[{row}]", mend=mend)
            continue
        for identity in identities:
            column = column_of.get(identity)
            if column is None:
                what = f"category {shown(identity)} is not listed in the file"
                problems.add(what, row=f"{file} images[{row}].{field}", mend="add it there, or take it out here")
                continue
            at_rows.append(row)
            at_columns.append(column)
    return np.array(at_rows, np.int64), np.array(at_columns, np.int64)


def from_parts(
    parts: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"], int]], shape: tuple[int, int]
) -> sparse.SparseLabels:
    """Sparse labels from (rows, columns, value) of several kinds."""
    rows, columns = (np.concatenate([part[axis] for part in parts]) for axis in (0, 1))
    values = np.concatenate([np.full(len(rows), value, np.int8) for rows, _, value in parts])
    return sparse.from_entries(rows, columns, values, shape)
