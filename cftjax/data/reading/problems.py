"""What is wrong with a data set's files: collected over a whole file, then told in one message."""

from __future__ import annotations

import os
from pathlib import Path

from cftjax.text import closest

# A person mends by kind, not by row: twenty lines show the kinds, the count shows the size.
NUM_SHOWN = 20
# Names of a folder that are compared with one that was not found.
NAMES_COMPARED = 10_000


class DataError(ValueError):
    """The files of a data set cannot be used; the message names file, row and column, and the mend."""


class Problems:
    """Everything that is wrong with one file.

    The first twenty are kept, the rest only counted, so that a file of nine million bad rows costs no memory.
    """

    def __init__(self, source: Path | str) -> None:
        """Start without any.

        Args:
            source: the file or folder at fault, as the message should name it.
        """
        self.source = source
        self.lines: list[str] = []
        self.count = 0

    def __len__(self) -> int:
        """How many there are, shown or not."""
        return self.count

    def add(
        self, what: str, *, row: int | str | None = None, column: str | None = None, mend: str | None = None
    ) -> None:
        """Note one problem.

        Args:
            what: what is wrong, without full stop.
            row: a row number as an editor or a spreadsheet shows it, or words for another place (`images[3].id`).
            column: the column's name.
            mend: what to do about it, without full stop.
        """
        self.count += 1
        if self.count > NUM_SHOWN:
            return
        places = [f"row {row}" if isinstance(row, int) else row, None if column is None else f"column {column}"]
        place = ", ".join(part for part in places if part is not None)
        self.lines.append((f"{place}: " if place else "") + what + (f"; {mend}" if mend else "") + ".")

    def raise_if_any(self) -> None:
        """Raise what was noted.

        Raises:
            DataError: there are problems; the message lists the first twenty and counts the rest.
        """
        if self.count == 0:
            return
        if self.count == 1:
            raise DataError(f"{self.source}: {self.lines[0]}")
        hidden = self.count - len(self.lines)
        rest = [f"and {hidden} more."] if hidden else []
        raise DataError("\n  ".join([f"{self.source}: {self.count} problems:", *self.lines, *rest]))


def require(path: Path) -> Path:
    """Return `path` where it exists.

    Raises:
        DataError: it does not; the message names the nearest name that does.
    """
    # os.path says no, where Path raises: to a name too long, or below a folder that must not be entered.
    if os.path.exists(path):
        return path
    above, name = path.parent, path.name
    while not os.path.isdir(above) and above != above.parent:
        above, name = above.parent, above.name
    place = f"the folder {above}" if above == path.parent else f"{above} has no {name}; it"
    raise DataError(f"{path}: no such file or folder; {place} {nearest(name, above)}.")


def list_names(folder: Path) -> list[str]:
    """What a folder that must be there holds, sorted.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    try:
        return sorted(os.listdir(require(folder)))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); a folder is needed.") from error


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that must be there.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        return require(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without line ends and without blank lines at its end.

    Raises:
        DataError: there is no such file, or it is not text; the message names byte and line.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: byte {error.start} (line {line}) is not UTF-8; save the file as UTF-8.") from error
    text = text.replace("\r\n", "\n").rstrip()
    # Only \n ends a line: str.splitlines would also split at characters that names may hold.
    return text.split("\n") if text else []


def nearest(name: str, folder: Path) -> str:
    """What a folder holds instead of `name`, as the end of a sentence."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(NAMES_COMPARED), strict=False))
    except OSError as error:
        return f"cannot be listed ({error.strerror})"
    return closest(name, names)
