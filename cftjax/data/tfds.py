"""Prepared TensorFlow Datasets, read without TensorFlow: ArrayRecord files below a folder like ~/tensorflow_datasets.

Only preparing one needs TensorFlow: install the extra `tfds-prepare`, then `prepare` once, on any machine.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cftjax import extras, types
from cftjax.data import sparse
from cftjax.data.reading import files, images
from cftjax.data.reading.problems import DataError
from cftjax.data.tfds_layouts import Example, Layout, layout_of, listed

# Records read at a time while labels are gathered; each brings the bytes of its image along.
READ_RECORDS = 256
# Sets of more categories keep their labels sparse.
DENSE_CATEGORIES = 200
# What importing and reading may fail over: messages name their versions.
PACKAGES = ("tensorflow-datasets", "protobuf", "array-record")
INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class TfdsData:
    """A prepared TensorFlow dataset: chexpert, coco, voc, open_images_v4, lvis, celeb_a, bigearthnet, or another."""

    name: str = "chexpert"
    """Dataset, configuration and version, as far as needed: chexpert, coco/2014, coco/2014:1.1.0."""
    root: str = "~/tensorflow_datasets"
    """The folder that the set was prepared in (TFDS's data_dir)."""
    train: str | None = None
    """TFDS's split for training, sums and slices allowed (`train+validation[:50%]`); None is the set's usual one."""
    validation: str | None = None
    """The same for validation; a blank leaves it out, so that it is carved from train."""
    test: str | None = None
    """The same for testing; a blank leaves it out."""
    labels: str | None = None
    """The feature that lists the categories present, such as `objects/label`; for sets that are not known by name."""

    def load(self) -> types.Dataset:
        """Read the labels; images are decoded later.

        Raises:
            DataError: the set is not prepared, or not as its name promises.
            ImportError: tensorflow_datasets cannot be imported.
        """
        library = import_library()
        layout = layout_of(self.name) if self.labels is None else listed(self.labels)
        folder = find_folder(self.name, self.root)
        builder = reading(folder, library.builder_from_directory, folder)
        try:
            categories = layout.categories(builder.info.features)
            _ = builder.info.features["image"]
        except (KeyError, AttributeError, TypeError) as error:
            what = f"its features lack what is expected of {self.name} ({error})"
            raise DataError(f"{folder}: {what}; it has {', '.join(builder.info.features)}.") from error
        splits = {}
        for role, split in self._splits(layout, tuple(builder.info.splits), folder).items():
            raw = library.decode.DeserializeMethod.RAW_BYTES
            source = reading(folder, builder.as_data_source, split=split, deserialize_method=raw)
            splits[role] = read_split(source, layout, len(categories), role, f"{folder}: {split}")
        files.warn_of_unlabelled(folder, categories, splits["train"].labels)
        return types.Dataset(categories, splits, files.fingerprint(categories, splits))

    def _splits(self, layout: Layout, existing: Sequence[str], folder: Path) -> dict[str, str]:
        """TFDS's split for each of ours."""
        usual = {role: split for role, split in layout.splits.items() if split in existing}
        asked = {role: getattr(self, role) for role in types.SPLITS if getattr(self, role) is not None}
        chosen = usual | asked
        if not chosen.get("train"):
            raise DataError(f"{folder}: no split to train on; name one of {', '.join(existing)} as `train`.")
        return {role: chosen[role] for role in types.SPLITS if chosen.get(role)}


def prepare(name: str, root: str = "~/tensorflow_datasets", manual_dir: str | None = None) -> None:
    """Download and prepare a set, once; the one thing here that needs TensorFlow.

    Args:
        name: as `TfdsData.name`.
        root: the folder to prepare it in.
        manual_dir: the folder of what has to be downloaded by hand; for chexpert the one above CheXpert-v1.0-small.

    Raises:
        ImportError: TensorFlow is not installed.
    """
    library = import_library()
    try:
        importlib.import_module("tensorflow")
    except ImportError as error:
        mend = f"run {extras.install('tfds-prepare')}, perhaps in an environment of its own"
        raise ImportError(f"preparing a set needs TensorFlow ({error}): {mend}.") from error
    manual = None if manual_dir is None else Path(manual_dir).expanduser()
    builder = library.builder(name, data_dir=Path(root).expanduser(), file_format="array_record")
    builder.download_and_prepare(download_config=library.download.DownloadConfig(manual_dir=manual))


def import_library() -> Any:
    """The module tensorflow_datasets, imported only where it is used: it takes half a second."""
    try:
        return importlib.import_module("tensorflow_datasets")
    # Its generated messages refuse other versions of protobuf, each version with another kind of error.
    except Exception as error:
        mend = "upgrade them together: pip install -U tensorflow-datasets protobuf"
        raise ImportError(f"tensorflow_datasets cannot be imported with {versions()} ({error}): {mend}.") from error


def versions() -> str:
    """The installed versions of what reads the files."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def find_folder(name: str, root: str) -> Path:
    """The folder of a prepared set: the newest version of the only configuration, where the name leaves them open.

    Raises:
        DataError: it is not prepared, or has several configurations.
    """
    top = Path(root).expanduser()
    folder = top / name.replace(":", "/")
    if os.path.isfile(folder / INFO):
        return folder
    prepared = sorted({file.parent.parent for pattern in (f"*/{INFO}", f"*/*/{INFO}") for file in folder.glob(pattern)})
    if not prepared:
        command = f'python -c "from cftjax.data import tfds; tfds.prepare({name!r}, {root!r})"'
        raise DataError(
            f"{folder}: {name} is not prepared there; run {extras.install('tfds-prepare')}, then {command}, "
            "with manual_dir='…' as well where files have to be downloaded by hand."
        )
    if len(prepared) > 1:
        choice = ", ".join(f"{name}/{path.name}" for path in prepared)
        raise DataError(f"{folder}: has several configurations; name one of {choice}.")
    return max((file.parent for file in prepared[0].glob(f"*/{INFO}")), key=lambda path: numbers(path.name))


def numbers(version: str) -> list[int]:
    """1.10.0 as [1, 10, 0]."""
    return [int(part) for part in re.findall(r"[0-9]+", version)]


def reading(place: Path | str, step: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Do one step of reading; whatever it raises becomes a DataError that names the place and the versions."""
    try:
        return step(*args, **options)
    # Splits that do not exist, other file formats, unknown features, messages of another version: each of its own kind.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{place}: cannot be read with {versions()} ({reason}).") from error


def read_split(source: Any, layout: Layout, c: int, role: str, place: str) -> types.Records:
    """The labels, names and groups of a split.

    Args:
        source: TFDS's data source of raw records.
        layout: of the set.
        c: the number of categories.
        role: `train`, `validation` or `test`.
        place: folder and split, for messages.

    Raises:
        DataError: the split is empty, or a record is not as the layout says.
    """
    n = len(source)
    if n == 0:
        raise DataError(f"{place}: has no examples.")
    rows, categories, values, names, groups = [], [], [], [], []
    for start in range(0, n, READ_RECORDS):
        block = range(start, min(start + READ_RECORDS, n))
        for row, record in zip(block, reading(place, source.__getitems__, list(block)), strict=True):
            try:
                example = Example(record)
                own, value = layout.entries(example, c, role)
                names.append(example.text(layout.title) if layout.title else f"{role}/{row:07d}")
                if layout.group is not None:
                    groups.append(layout.group(example))
                if len(own) and not (own.min() >= 0 and own.max() < c):
                    raise ValueError(f"it names category {own.max()} of {c}")
            except Exception as error:
                raise DataError(f"{place}: example {row} cannot be read ({error}).") from error
            rows.append(np.full(len(own), row, np.int32))
            categories.append(own.astype(np.int32))
            values.append(value.astype(np.int8))
    labels = sparse.from_entries(np.concatenate(rows), np.concatenate(categories), np.concatenate(values), (n, c))
    return types.Records(
        TfdsImages(source, names),
        labels if c > DENSE_CATEGORIES else labels[:],
        names,
        None if layout.group is None else np.array(groups),
    )


@dataclasses.dataclass(frozen=True)
class TfdsImages:
    """Decodes the image of a row.

    Attributes:
        source: TFDS's data source of raw records.
        names: of the rows, for messages.
    """

    source: Any
    names: Sequence[str]

    def __call__(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image of a row; other features, such as the masks of LVIS, are not decoded.

        Raises:
            images.ImageError: it is damaged, or has too many pixels.
        """
        # By the rules for image files, so that palettes, transparency and rotation come out as from a folder.
        name = Path(self.names[row])
        try:
            content = io.BytesIO(Example(self.source[row]).content("image"))
            with Image.open(content, formats=images.FORMATS) as image:
                images.refuse_bomb(name, image.width, image.height)
                return images.to_rgb(name, image)
        except images.ImageError:
            raise
        # As for files: decoders raise nearly anything.
        except Exception as error:
            raise images.ImageError(f"{name}: its image cannot be read ({error}); prepare the set again.") from error
