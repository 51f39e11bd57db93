"""Damage is noticed: digests of the files of a run, recorded when they are complete and compared when they are read.

A folder that is complete holds `.digests.json`, with the digest of every file below it; a folder below that has a
record of its own stands in it by that record. JSON files that describe other files are sealed: they hold a digest of
themselves. What has neither was made before there were digests, or killed while it was made, and is read as it is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

RECORD = ".digests.json"
SEAL = "seal"
# What describes a run, and a stage of it.
CONFIG, STAGE = "config.json", "stage.json"
SEALED, LOCK = (CONFIG, STAGE), ".lock"
# Larger files are digested by several threads, a block each.
BLOCK = 2**24
# What grows after its folder is complete, or is not there to stay.
TRACKING = "tracking"
LEFT_OUT_FOLDERS = ("tensorboard", TRACKING)
PART = ".part"


class Damaged(ValueError):
    """A file is not what was written."""


def of_file(path: Path) -> str:
    """The digest of a file: SHA-256, of files longer than a block that of their blocks' digests.

    Once in a process, unless the file changes: what one stage has written the next one need not read twice.
    """
    state = path.stat()
    return _of_file(path.absolute(), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=4096)
def _of_file(path: Path, size: int, *_: int) -> str:
    if size <= BLOCK:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    starts = range(0, size, BLOCK)
    with futures.ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:
        blocks = pool.map(functools.partial(_of_block, path), starts)
        return hashlib.sha256(b"".join(blocks)).hexdigest()


def _of_block(path: Path, start: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        digest, left = hashlib.sha256(), BLOCK
        while left and (content := file.read(min(left, 2**20))):
            digest.update(content)
            left -= len(content)
        return digest.digest()


def forget() -> None:
    """Digest every file again at the next question."""
    _of_file.cache_clear()


def of_folder(folder: Path, deep: bool = True) -> dict[str, str]:
    """The digests of the files in a folder and, if deep, below it, by name.

    Not of what is sealed, and of a folder below that has a record of its own only that of its record.
    """
    return {path.relative_to(folder).as_posix(): of_file(path) for path in _files(folder, deep)}


def _files(folder: Path, deep: bool) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        record = path / RECORD
        if record.is_file():
            if deep:
                yield record
        elif path.is_dir():
            if deep and path.name not in LEFT_OUT_FOLDERS:
                yield from _files(path, deep)
        elif path.name not in (RECORD, *SEALED, LOCK) and not path.name.endswith(PART):
            yield path


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with its seal."""
    return content | {SEAL: _seal(content)}


def unsealed(path: Path, content: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What was sealed.

    Args:
        path: of the file, to be named.
        content: of the file.
        known: names that may stand in a file without a seal, as older versions wrote it.

    Raises:
        Damaged: where the seal does not fit; where there is none, and the file is no older one.
    """
    inner = {name: value for name, value in content.items() if name != SEAL}
    sound = content[SEAL] == _seal(inner) if SEAL in content else all(name in known for name in content)
    if not sound:
        raise Damaged(f"{path} is damaged (it is not what was written): {mend(path)}")
    return inner


def _seal(content: dict[str, Any]) -> str:
    # As it comes back from a file: numbers and texts have one form there.
    plain = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def check(path: Path) -> None:
    """Compare a file with the record beside it, where there is one that knows it.

    Raises:
        Damaged: the file, or the record.
    """
    record = path.parent / RECORD
    if path.name == RECORD or not record.is_file() or not path.is_file():
        return
    wanted = read(record).get(path.name)
    if wanted is not None and wanted != of_file(path):
        raise Damaged(f"{path} is damaged (it is not what was written): {mend(path)}")


def read(record: Path) -> dict[str, str]:
    """The digests of a record, by the files' names.

    Raises:
        Damaged: where it is not what was written.
    """
    try:
        content = json.loads(record.read_bytes())
        files = unsealed(record, content, known=())["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except Damaged:
        raise
    # No text, no JSON, nested deeper than Python goes, or another thing than a record.
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{record} is damaged (it is not what was written): {mend(record)}") from error


class Comparison(NamedTuple):
    """What comparing a folder with its record has shown.

    Attributes:
        compared: how many files are what was written.
        wrong: those that are not, or are missing.
    """

    compared: int
    wrong: tuple[Path, ...]


def compare(folder: Path) -> Comparison:
    """Compare all files below a folder that its record names; none where it has no record."""
    record = folder / RECORD
    if not record.is_file():
        return Comparison(0, ())
    try:
        files = read(record)
    except Damaged:
        return Comparison(0, (record,))
    compared, wrong = 0, []
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or of_file(path) != digest:
            wrong.append(path)
            continue
        compared += 1
        if path.name == RECORD:
            below = compare(path.parent)
            compared, wrong = compared + below.compared, [*wrong, *below.wrong]
    return Comparison(compared, tuple(wrong))


def check_folder(folder: Path) -> None:
    """Compare all files of a folder with its record, where it has one.

    Raises:
        Damaged: naming the first file.
    """
    if wrong := compare(folder).wrong:
        raise Damaged(f"{wrong[0]} is damaged (it is not what was written): {mend(wrong[0])}")


@contextlib.contextmanager
def describing(path: Path) -> Iterator[None]:
    """Refuse, by its name, a file that lacks what the block looks for in it.

    Raises:
        Damaged: naming file and mend.
    """
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise Damaged(f"{path} is damaged (it does not hold what it should: {error}): {mend(path)}") from error


def mend(path: Path) -> str:
    """What to do about a damaged file of a run."""
    if path.name == CONFIG:
        return "restore it from a copy, or use another --workdir"
    for folder in path.parents:
        # A checkpoint of a stage under way is one of several; all else is made anew by its stage.
        if folder.name.isdecimal() and not _complete(folder.parent.parent):
            return f"delete the folder {folder} to go on from an earlier one"
        if (folder / STAGE).is_file():
            return f"delete the folder {folder}, and the command that made it makes that stage anew"
    return "delete it, or restore it from a copy"


def _complete(folder: Path) -> bool:
    """Whether a stage says that it is complete, as far as it can be read."""
    try:
        return bool(json.loads((folder / STAGE).read_bytes())["complete"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
