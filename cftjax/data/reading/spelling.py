"""Names that are there under another spelling: of files below a folder, and of rows of another table."""

from __future__ import annotations

import os
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cftjax.text import few

DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")
# Folders in which a file is looked for that is not where its name says.
MOST_FOLDERS = 64


class Near(NamedTuple):
    """A file that is there.

    Attributes:
        name: of the file below the root.
        how: it differs from the name that was looked for.
    """

    name: str
    how: str


def folded(name: str) -> str:
    """A name but for case, and for accents that are composed or apart."""
    return unicodedata.normalize("NFC", name).casefold()


class Folders:
    """The folders below a root, each listed once, to find files by names that are nearly theirs."""

    def __init__(self, root: Path) -> None:
        """Start without any listing."""
        self.root = os.fspath(root)
        self.listings: dict[str, dict[str, str]] = {}

    def listing(self, folder: str) -> dict[str, str]:
        """What a folder holds, by exact name, by folded name, and its files by folded stem and a star."""
        if folder not in self.listings:
            try:
                names = sorted(os.listdir(os.path.join(self.root, folder)))
            except OSError:
                names = []
            known: dict[str, str] = {}
            for key in (lambda name: f"{folded(os.path.splitext(name)[0])}.*", folded, lambda name: name):
                # The first of several, and exact names last, so that they win.
                known |= {key(name): name for name in reversed(names)}
            self.listings[folder] = known
        return self.listings[folder]

    def walk(self, parts: Sequence[str]) -> str | None:
        """The file that parts of a path lead to, each taken by its nearest name."""
        found = ""
        for place, part in enumerate(parts):
            known, last = self.listing(found), place == len(parts) - 1
            keys = [part, folded(part), *([f"{folded(os.path.splitext(part)[0])}.*"] if last else [])]
            name = next((known[key] for key in keys if key in known), None)
            if name is None:
                return None
            found = f"{found}/{name}" if found else name
        return found if os.path.isfile(os.path.join(self.root, found)) else None

    def nearest(self, path: str) -> Near | None:
        """The file that a path which leads nowhere may mean; None where there is none."""
        parts: list[str] = []
        for text in spellings(path):
            parts = [part for part in text.split("/") if part not in ("", ".", "..")]
            # A path from elsewhere may end as one here does; a name alone may lie in one of the folders.
            for dropped in range(len(parts)):
                if (found := self.walk(parts[dropped:])) is not None:
                    return Near(found, difference(path, found))
        for folder in sorted(set(self.listing("").values()))[:MOST_FOLDERS]:
            if parts and (found := self.walk([folder, parts[-1]])) is not None:
                return Near(found, difference(path, found))
        return None


def spellings(path: str) -> Iterator[str]:
    """The path with slashes, without drive and blanks at the ends of names; then also with its %-codes decoded."""
    plain = DRIVE.sub("", path.strip()).replace("\\", "/")
    for text in dict.fromkeys((plain, urllib.parse.unquote(plain))):
        yield "/".join(part.strip() for part in text.split("/"))


def difference(path: str, name: str) -> str:
    """How the name of a file differs from a path that means it, in words that are the same for all alike."""
    how, text = [], path
    for words, change in (
        ("without the drive", lambda text: DRIVE.sub("", text)),
        ("with / for \\", lambda text: text.replace("\\", "/")),
        ("with characters for %-codes", urllib.parse.unquote),
        ("without blanks at the ends", lambda text: "/".join(part.strip() for part in text.split("/"))),
    ):
        changed = change(text)
        if changed != text:
            how.append(words)
        text = changed
    text = os.path.normpath(text).replace(os.sep, "/")
    (written, suffix), (own_written, own_suffix) = os.path.splitext(text), os.path.splitext(name)
    stem, own_stem = (unicodedata.normalize("NFC", part) for part in (written, own_written))
    same_end = folded(stem).endswith(folded(own_stem))
    if not same_end:
        how.append("in another folder")
        stem, own_stem = os.path.basename(stem), os.path.basename(own_stem)
    elif len(stem) > len(own_stem):
        how.append("without the folders before it")
    if not stem.endswith(own_stem):
        how.append("in other case")
    elif os.path.basename(written) != os.path.basename(own_written) or (same_end and not written.endswith(own_written)):
        how.append("with accents composed otherwise")
    if suffix != own_suffix:
        how.append("with the suffix in other case" if suffix.lower() == own_suffix.lower() else f"as {own_suffix}")
    return " and ".join(how)


def as_number(name: str) -> str:
    """A name that is a whole number, as such."""
    number = float(name)
    return str(int(number)) if number == int(number) else name


# How the names of rows may be alike, and what makes them so.
ALIKE: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("as numbers", as_number),
    ("but for \\ and /", lambda name: name.replace("\\", "/")),
    ("but for upper and lower case", str.casefold),
    ("but for how accents are composed", lambda name: unicodedata.normalize("NFC", name)),
    ("but for %-codes", urllib.parse.unquote),
    ("but for the suffix", lambda name: os.path.splitext(name)[0]),
    ("but for the folders before them", lambda name: name.replace("\\", "/").rpartition("/")[2]),
    (
        "but for folders and suffix",
        lambda name: os.path.splitext(name.replace("\\", "/").rpartition("/")[2])[0].casefold(),
    ),
)


def alike(missing: Sequence[str], there: Sequence[str]) -> str | None:
    """In what way names that are missing are there after all, with an example; None where most are not.

    Args:
        missing: names that another table has.
        there: names that this table has.
    """
    for words, change in ALIKE:
        of_there = changed(there, change)
        found = [name for name, other in changed(missing, change).items() if other in set(of_there.values())]
        if found and 2 * len(found) >= len(missing):
            first = {other: name for name, other in reversed(of_there.items())}
            example = few([first[change(name)] for name in found[:3]])
            return f"{len(found):,} of them are there {words}: it has {example} for {few(found[:3])}; write them alike"
    return None


def changed(names: Sequence[str], change: Callable[[str], str]) -> dict[str, str]:
    """Names to what they become; those that cannot be changed so are left out."""
    result = {}
    for name in names:
        try:
            result[name] = change(name)
        except (ValueError, OverflowError):
            continue
    return result
