"""What is looked at before a run begins, so that hours are not spent on data that cannot be meant."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from cftjax import types
from cftjax.data import leaks
from cftjax.data.reading import files, images, spelling
from cftjax.data.reading.problems import DataError
from cftjax.runtime import devices, hosts
from cftjax.text import few


def load(data: Any, *, allow_missing: bool) -> types.Dataset:
    """A source's data set.

    Args:
        data: a source, such as `TableData`.
        allow_missing: whether images may be missing, since they will be left out or told of later.
    """
    if allow_missing and any(field.name == "check_files" for field in dataclasses.fields(data)):
        data = dataclasses.replace(data, check_files=False)
    return data.load()


def read(data: Any, *, allow_missing: bool) -> types.Dataset:
    """What `load` gives, on every host; it is said first, and an error on one host is one on all."""
    if devices.is_primary():
        print("Reading the labels and looking for the images.", flush=True)
    return hosts.together(lambda: load(data, allow_missing=allow_missing))


def check(dataset: types.Dataset, leak: Literal["refuse", "warn"], *, allow_missing: bool) -> None:
    """Warn of images that are missing and of groups in two splits, and refuse a split of which nothing can be read.

    Args:
        dataset: the splits of the run.
        leak: whether groups in two splits are refused.
        allow_missing: whether nobody has looked for missing images so far.

    Raises:
        ValueError: no image of a split can be opened, or groups are in two splits and must not be.
    """
    shared = leaks.find({split: records.groups for split, records in dataset.splits.items()})
    for found in shared:
        if leak == "refuse":
            raise ValueError(f"{found}. Put each group into one split, or accept it with --split.leak warn")
        warnings.warn(f"{found}; --split.leak refuse stops here.", stacklevel=2)
    absent = missing(dataset.splits) if allow_missing else {}
    for split, rows in absent.items():
        records = dataset.splits[split]
        if len(rows) == len(records):
            raise DataError(f"{split}: none of its {len(rows):,} images is there{resembling(records, rows[0])}")
        if rows:
            names = few([str(records.names[row]) for row in rows], 5)
            what = f"{split}: {len(rows):,} of {len(records):,} images are missing{resembling(records, rows[0])}"
            warnings.warn(f"{what}: {names}.", stacklevel=2)
    for split, records in dataset.splits.items():
        require_readable(split, records, np.setdiff1d(np.arange(len(records)), absent.get(split, [])).tolist())


def missing(splits: Mapping[str, types.Records]) -> dict[str, list[int]]:
    """By split, the rows whose files do not exist; without the splits whose images are no files."""
    sources = {split: files.of(records) for split, records in splits.items()}
    return {
        split: files.missing(source.names, range(len(source.names)), source.root)
        for split, source in sources.items()
        if source is not None
    }


def resembling(records: types.Records, row: int) -> str:
    """What is there instead of a missing image, as the end of a sentence; empty where nothing is."""
    source = files.of(records)
    if source is None or files.is_file(os.path.join(source.root, source.names[row])):
        return ""
    near = spelling.Folders(source.root).nearest(source.names[row])
    if near is None:
        return ""
    return f"; in place of {source.names[row]} there is {near.name}, {near.how}"


def require_readable(split: str, records: types.Records, rows: list[int]) -> None:
    """Open images until one can be.

    Raises:
        ValueError: none can.
    """
    first = None
    for row in rows:
        try:
            records.image(row)
        except images.ImageError as error:
            first = first or error
        else:
            return
    raise DataError(
        f"{split}: none of its {len(rows):,} images can be opened; the first: {first}{resembling(records, rows[0])}"
    )
