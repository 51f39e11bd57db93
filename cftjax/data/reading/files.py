"""Image files named by a table: their paths are checked before anything is opened; the whole set has a fingerprint."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from cftjax import types
from cftjax.data import sparse
from cftjax.data.reading import images, spelling
from cftjax.data.reading.problems import Problems
from cftjax.data.splits import SelectedImage
from cftjax.text import few, shown

# Names joined at a time while hashing, so that a million of them need no second copy.
HASHED_NAMES = 65_536
MISSING_MEND = "copy it there, or leave out what is missing: --data.on-bad-image skip"
OUTSIDE_MEND = "list images below it, or name a folder above all of them as the images' root"
# Missing files after which no more are compared with what is there.
MOST_UNLIKE = 1000
# Images of a folder from which on listing it is quicker than asking for each; CheXpert has one or two in a folder.
LISTED_ROWS = 4


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Opens the image of a row; it holds names alone, so it goes to worker processes cheaply.

    Attributes:
        root: the folder that names start from.
        names: path of each row's image below `root`, with forward slashes.
    """

    root: Path
    names: Sequence[str]

    def __call__(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image of a row."""
        return images.open_image(self.names[row], root=self.root)


def of(records: types.Records) -> ImageFiles | None:
    """The files behind a split, also behind rows selected from one; None where its images are not files."""
    image, rows = records.image, None
    while isinstance(image, SelectedImage):
        image, rows = image.image, image.rows if rows is None else image.rows[rows]
    if not isinstance(image, ImageFiles) or rows is None:
        return image if isinstance(image, ImageFiles) else None
    return ImageFiles(image.root, [image.names[int(row)] for row in rows])


def relative_names(
    paths: Sequence[str],
    root: Path,
    problems: Problems,
    *,
    place: Callable[[int], int | str],
    column: str | None = None,
    check_files: bool = True,
) -> list[str]:
    """The paths of a table as names below `root`; each that is blank, outside, repeated or missing is a problem.

    The check is of the text alone, so that folders linked into `root` remain usable.

    Args:
        paths: relative to `root`, or absolute and below it.
        root: the folder of the images.
        problems: where problems are noted.
        place: what a message calls a row, from its index.
        column: of the paths, for messages.
        check_files: whether every file must exist; no file is opened for it.

    Returns:
        Names with forward slashes, one per path; those of problem paths are of no use.
    """
    names: list[str] = []
    first: dict[str, int] = {}
    sound, outside = [], []
    column_of = PathColumn(paths, place, column, problems)
    top = os.path.join(os.path.normpath(root.absolute()), "")
    for index, path in enumerate(paths):
        name = os.path.normpath(path)
        if os.path.isabs(name):
            name = name[len(top) :] if name.startswith(top) else ".."
        name = name.replace(os.sep, "/")
        names.append(name)
        earlier = first.setdefault(name, index)
        if not path.strip() or "\0" in path:
            column_of.note(index, f"the path {shown(path)} names no file", "write the path of the image")
        elif name == ".." or name.startswith("../"):
            outside.append(index)
        elif earlier != index:
            what = f"{shown(path)} is listed a second time, after {spoken(place(earlier))}"
            column_of.note(index, what, "keep one row per image")
        else:
            sound.append(index)
    folders = spelling.Folders(root)
    column_of.note_near(outside, folders, lambda row: f"{shown(paths[row])} is outside of {root}", OUTSIDE_MEND)
    if check_files:
        absent = missing(names, sound, root)
        column_of.note_near(absent, folders, lambda row: f"no such file: {root / names[row]}", MISSING_MEND)
    return names


@dataclasses.dataclass(frozen=True)
class PathColumn:
    """The paths of a table, and how messages call each of them.

    Attributes:
        paths: as the table has them.
        place: what a message calls a row, from its index.
        column: their column; None where paths stand elsewhere.
        problems: where problems are noted.
    """

    paths: Sequence[str]
    place: Callable[[int], int | str]
    column: str | None
    problems: Problems

    def note(self, row: int, what: str, mend: str) -> None:
        """Note what is wrong with one path."""
        self.problems.add(what, row=self.place(row), column=self.column, mend=mend)

    def note_near(self, rows: Sequence[int], folders: spelling.Folders, what: Callable[[int], str], mend: str) -> None:
        """Note paths that lead to no file: those that differ alike from files that are there are one problem.

        Args:
            rows: of the paths.
            folders: where files are.
            what: says what is wrong with a row.
            mend: for paths that resemble no file.
        """
        alike: dict[str, list[tuple[int, str]]] = {}
        unlike = 0
        for row in rows:
            near = folders.nearest(self.paths[row]) if unlike < MOST_UNLIKE else None
            if near is None:
                unlike += 1
                self.note(row, what(row), mend)
            else:
                alike.setdefault(near.how, []).append((row, near.name))
        for how, found in alike.items():
            (row, name), more = found[0], f" (and {len(found) - 1:,} more in the same way)" if len(found) > 1 else ""
            self.note(row, f"{what(row)}; {name} is there, {how}{more}", "write the paths as the files are named")


def spoken(place: int | str) -> str:
    """A row's number or description within a sentence."""
    return f"row {place}" if isinstance(place, int) else place


def missing(names: Sequence[str], rows: Iterable[int], root: Path) -> list[int]:
    """Those of the rows whose file does not exist, in order; a folder of many is listed once."""
    rows = list(rows)
    above = [names[row].rpartition("/")[0] for row in rows]
    listings: dict[str, set[str] | None] = {
        folder: None for folder, number in collections.Counter(above).items() if number >= LISTED_ROWS
    }
    # Text joined by hand, and one question a file: Path and isfile take longer than the disk does.
    top, absent = os.path.join(root, ""), []
    for row, folder in zip(rows, above, strict=True):
        if folder not in listings:
            present = is_file(top + names[row])
        else:
            if (files := listings[folder]) is None:
                files = listings[folder] = set(listed(root / folder))
            present = names[row].rpartition("/")[2] in files
        if not present:
            absent.append(row)
    return sorted(absent)


def is_file(path: str) -> bool:
    """Whether a file is there."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def listed(folder: Path) -> Iterator[str]:
    """The names of the files in a folder; none where it does not exist or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if not entry.is_dir())
    # Too long a name, no such folder, a file in its place: the same to somebody who looks for the images.
    except OSError:
        return


def warn_of_unlabelled(source: Path | str, categories: Sequence[str], labels: types.Labels) -> None:
    """Name the categories that nobody labelled in any training image: nothing can be learned of them."""
    if isinstance(labels, sparse.SparseLabels):
        counts = labels.counts()
        given = (counts.positive + counts.negative + counts.uncertain) > 0
    else:
        given = (labels.known | labels.uncertain).any(axis=0)
    nameless = [categories[int(index)] for index in np.flatnonzero(np.logical_not(given))]
    if nameless:
        warnings.warn(f"{source}: no training image has a label for {few(nameless, 20)}.", stacklevel=3)


def warn_of_absent(source: Path | str, categories: Sequence[str], positive: Bool[np.ndarray, "n c"]) -> None:
    """Name the categories that no training image shows, where all labels are known: nothing can be learned of them."""
    absent = [categories[int(index)] for index in np.flatnonzero(~positive.any(axis=0))]
    if absent:
        what = f"{source}: no training image shows {few(absent, 20)}; nothing can be learned of it."
        warnings.warn(what, stacklevel=3)


def fingerprint(categories: Sequence[str], splits: dict[str, types.Records]) -> str:
    """A hash of categories, names, labels and groups; the place of the files does not enter."""
    digest = hashlib.sha256(json.dumps(list(categories)).encode())
    for split, records in splits.items():
        digest.update(f"\n{split} {len(records)}\n".encode())
        for start in range(0, len(records), HASHED_NAMES):
            digest.update("\0".join(records.names[start : start + HASHED_NAMES]).encode())
        labels = records.labels
        if isinstance(labels, sparse.SparseLabels):
            parts = [labels.starts, labels.categories, labels.values]
        else:
            parts = [np.packbits(part) for part in (labels.labels, labels.known, labels.uncertain)]
        for part in parts:
            digest.update(np.ascontiguousarray(part).data)
        if records.groups is not None:
            digest.update("\0".join(map(str, records.groups.tolist())).encode())
    return digest.hexdigest()
