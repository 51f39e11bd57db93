"""Annotation files in COCO's format, as COCO and LVIS have them: images, annotations and categories, joined by ids."""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from jaxtyping import Int

from cftjax.data.reading import files
from cftjax.data.reading.problems import DataError, Problems, read_bytes
from cftjax.text import shown

T = TypeVar("T")
NOT_JSON = re.compile(rb"[^\w]?(-?(?:NaN|Infinity))")


# The decoder makes only what is declared here: outlines and boxes, nine tenths of the file, are passed over. What is
# None was missing, and is told together with everything else that is wrong.
class Annotation(msgspec.Struct, gc=False):
    """An entry of `annotations`."""

    image_id: int | str | None = None
    category_id: int | None = None


class Category(msgspec.Struct):
    """An entry of `categories`."""

    id: int | None = None
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """What one file says.

    Attributes:
        file: its name, for messages.
        columns: id and name of each category, by ascending id: the columns of the labels.
        paths: of the images, in the order of the file; the rows of the labels.
        rows: [m] the row of each annotation.
        categories: [m] the column of each annotation.
    """

    file: str
    columns: list[tuple[int, str]]
    paths: list[str]
    rows: Int[np.ndarray, " m"]
    categories: Int[np.ndarray, " m"]


def read_json(path: Path, kind: type[T]) -> T:
    """Decode a JSON file; fields that `kind` does not declare cost neither time nor memory.

    Raises:
        DataError: no such file, not JSON, or of another structure; the message names byte and line, or the entry.
    """
    # Editors of Windows begin a file with a mark of its encoding.
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        wanted = ", ".join(kind.__annotations__)
        raise DataError(f"{path}: {error}; lists named {wanted} are needed, as in the release.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a string is not UTF-8 ({error.reason}); save the file as UTF-8.") from error
    except RecursionError as error:
        raise DataError(f"{path}: lists are nested too deeply; this is no annotation file.") from error
    except msgspec.DecodeError as error:
        reason, place = str(error), re.search(r" \(byte (\d+)\)", str(error))
        if place is None:
            byte, reason = len(data), "the file ends too early, or in the middle of a character"
        else:
            byte, reason = int(place[1]), reason.replace(place[0], "")
        line = data.count(b"\n", 0, byte) + 1
        if word := NOT_JSON.match(data, max(byte - 1, 0)):
            what = f"{word[1].decode()} is no JSON, though Python writes it, at byte {byte} (line {line})"
            raise DataError(f"{path}: {what}; write null, or take the entry out.") from error
        raise DataError(f"{path}: {reason}, at byte {byte} (line {line}); copy or download it again.") from error


def read_all(paths: Sequence[Path], kind: type[T]) -> list[T]:
    """Decode several JSON files.

    Raises:
        DataError: what is wrong with each of them, as `read_json` says it.
    """
    contents, refused = [], []
    for path in paths:
        try:
            contents.append(read_json(path, kind))
        except DataError as error:
            refused.append(str(error))
    if refused:
        raise DataError("\n".join(refused))
    return contents


def category_columns(categories: Sequence[Category], file: str, problems: Problems) -> list[tuple[int, str]]:
    """Id and name of each category, by ascending id; the ids may have holes."""
    if not categories:
        problems.add(f"{file} lists no category", mend="copy or download it again")
    first: dict[int | str | None, int] = {}
    columns = []
    for index, category in enumerate(categories):
        place = f"{file} categories[{index}]"
        if category.id is None or not (category.name or "").strip():
            problems.add("has no id or no name", row=place, mend="give both")
            continue
        for value in (category.id, category.name):
            earlier = first.setdefault(value, index)
            if earlier != index:
                what = f"{shown(value)} is also that of categories[{earlier}]"
                problems.add(what, row=place, mend="give every category an id and a name of its own")
        columns.append((category.id, category.name))
    return sorted(columns)


def image_rows(ids: Sequence[int | str | None], file: str, problems: Problems) -> dict[int | str | None, int]:
    """The row of each image, by id; one that is missing (None) or taken is a problem."""
    if not ids:
        problems.add(f"{file} lists no image", mend="copy or download it again")
    rows: dict[int | str | None, int] = {}
    for index, identity in enumerate(ids):
        if identity is None:
            problems.add("has no id", row=f"{file} images[{index}]", mend="give every image an id of its own")
        elif rows.setdefault(identity, index) != index:
            what = f"id {shown(identity)} is also that of images[{rows[identity]}]"
            problems.add(what, row=f"{file} images[{index}]", mend="list every image once")
    return rows


def annotated(
    annotations: Sequence[Annotation],
    rows: dict[int | str | None, int],
    columns: Sequence[tuple[int, str]],
    file: str,
    problems: Problems,
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """The row and the column of each annotation; one for an unlisted image or category is a problem.

    Args:
        annotations: in the order of the file.
        rows: the row of each image, by id.
        columns: id and name of each category.
        file: its name, for messages.
        problems: where problems are noted.
    """
    column_of: dict[int | None, int] = {identity: column for column, (identity, _) in enumerate(columns)}
    at_rows, at_columns = [], []
    for index, annotation in enumerate(annotations):
        row, column = rows.get(annotation.image_id), column_of.get(annotation.category_id)
        if row is not None and column is not None:
            at_rows.append(row)
            at_columns.append(column)
            continue
        place = f"{file} annotations[{index}]"
        said = (("image_id", annotation.image_id, row), ("category_id", annotation.category_id, column))
        for key, value, found in said:
            if value is None:
                problems.add(f"has no {key}", row=place)
            elif found is None:
                mend = "add it there, or take the annotation out"
                problems.add(f"{key} {shown(value)} is not listed in the file", row=place, mend=mend)
    return np.array(at_rows, np.int64), np.array(at_columns, np.int64)


def refuse_other_categories(listings: Sequence[Listing], problems: Problems) -> None:
    """Note where a file lists other categories than the first one."""
    first = listings[0]
    for listing in listings[1:]:
        for one, other in ((listing, first), (first, listing)):
            lacking = sorted(set(one.columns) - set(other.columns))
            if lacking:
                few = ", ".join(f"{identity} {shown(name)}" for identity, name in lacking[:5])
                more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
                what = f"{other.file} lacks categories of {one.file}: {few}{more}"
                problems.add(what, mend="list the same ids and names in both")


def image_names(
    listings: Sequence[Listing], root: Path, field: str, problems: Problems, check_files: bool
) -> list[list[str]]:
    """The names of all files' images below `root`; those missing, outside or listed twice anywhere are problems.

    Args:
        listings: of the files.
        root: the folder of the images.
        field: that the paths stand in, for messages.
        problems: where problems are noted.
        check_files: whether images must exist.

    Returns:
        One list per file.
    """
    places = [(listing.file, index) for listing in listings for index in range(len(listing.paths))]

    def place(index: int) -> str:
        file, row = places[index]
        return f"{file} images[{row}].{field}"

    paths = [path for listing in listings for path in listing.paths]
    names = iter(files.relative_names(paths, root, problems, place=place, check_files=check_files))
    return [[next(names) for _ in listing.paths] for listing in listings]
