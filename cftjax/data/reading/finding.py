"""Images that a person names: files, folders, patterns, and tables of paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cftjax.data.reading import images, sheets
from cftjax.data.reading.problems import DataError, Problems, require

# What is taken from a folder; a file that is named is taken whatever its name.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff"),
    ".webp",
    *images.DICOM_SUFFIXES,
)
TABLES = (".csv", *sheets.PARQUET_SUFFIXES)
PATH_COLUMN = "path"


def find(given: Iterable[str]) -> tuple[list[str], list[Path]]:
    """All images that are named, each once, in the order given; those of a folder by name.

    Args:
        given: image files; folders, searched with all below them; patterns with `*`, `?` or `**`; and tables (.csv,
            .parquet) with a column `path` of files, relative to the table's folder or absolute.

    Returns:
        How each was named, and its file.

    Raises:
        DataError: for what does not exist, holds no images, or is a table without that column.
    """
    names: dict[Path, str] = {}
    for one in given:
        for name, file in _of(one):
            names.setdefault(file, name)
    return list(names.values()), list(names)


def _of(given: str) -> Sequence[tuple[str, Path]]:
    path = Path(given).expanduser()
    if path.is_dir():
        found = list(in_folder(path))
        if not found:
            raise DataError(f"{path}: no image in this folder or below it; looked for {', '.join(SUFFIXES)}.")
        return [(str(file), file) for file in found]
    if path.is_file():
        return in_table(path) if path.suffix.lower() in TABLES else [(given, path)]
    if glob.has_magic(given):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
        if not found:
            raise DataError(f"{given}: no file fits this pattern; put it in quotes, and check the folder.")
        return [(str(file), file) for file in found]
    return [(given, require(path))]


def in_folder(folder: Path) -> Iterator[Path]:
    """Image files of a folder and all below it, linked folders once, hidden files not."""
    seen = set()
    for above, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(above)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(above, name)
            if not name.startswith(".") and (file.suffix.lower() in SUFFIXES or _is_bare_dicom(file)):
                yield file


def _is_bare_dicom(file: Path) -> bool:
    """Scanners leave out the suffix."""
    try:
        return not file.suffix and file.is_file() and images.is_dicom(file)
    except OSError:
        return False


def in_table(table: Path) -> list[tuple[str, Path]]:
    """The files of a table's column `path`, named as it names them."""
    problems = Problems(table)
    sheet = sheets.read(table, problems)
    sheets.require_columns([PATH_COLUMN], sheet.columns, problems)
    problems.raise_if_any()
    names = sheet.text(PATH_COLUMN, problems)
    problems.raise_if_any()
    return [(name, table.parent / name) for name in names]
