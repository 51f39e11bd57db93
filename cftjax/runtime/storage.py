"""Small files of a run: JSON and arrays, written whole or not at all, read without pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from cftjax.runtime import digests
from cftjax.types import Heads

# Ends the names of files that are being written; those of `replacing` begin with a dot as well.
PART = digests.PART
LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Whatever the system refuses within, a write to a full disk above all, names this file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def fitting(name: str, room: int) -> str:
    """A file's name that leaves so many bytes of the 255 that file systems give: a longer one ends in its digest."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME - room:
        return name
    digest = hashlib.blake2b(encoded, digest_size=4).hexdigest()
    return encoded[: LONGEST_NAME - room - len(digest) - 1].decode(errors="ignore") + "~" + digest


def begun(name: str) -> str:
    """What a file that is being written bears of the name that it will have."""
    return fitting(name, len(f"..{'0' * 8}{PART}"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends; after an error it is gone.

    For what is too large to be held whole; `write_bytes` serves the rest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{begun(path.name)}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        with named(path):
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, deep: bool = True) -> None:
    """Delete what a killed `replacing` has left in a folder and, if deep, below it; nobody may be writing there."""
    for path in (folder.rglob if deep else folder.glob)(f".*{PART}"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader or a crash never sees half of it."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Strict JSON: NaN is refused."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content, or ValueError naming the file."""
    digests.check(path)
    try:
        return json.loads(path.read_bytes())
    # No text, no JSON, or nested deeper than Python goes.
    except (ValueError, RecursionError) as error:
        raise digests.Damaged(f"{path} is damaged, it is not JSON ({error}): {digests.mend(path)}") from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An .npz of plain arrays."""
    # An opened file, for NumPy would add an ending to a name.
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})


def refuse_bomb(archive: zipfile.ZipFile) -> None:
    """Raise ValueError where a small archive would unpack to more than this machine's memory."""
    # As the archive states it; zipfile never unpacks more of a member than is stated.
    refuse_larger_than_memory(sum(member.file_size for member in archive.infolist()))


def refuse_larger_than_memory(size: int) -> None:
    """Raise ValueError where so many bytes do not fit into this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ValueError(f"unpacks to {size / 1e9:,.1f} GB, more than this machine's memory of {memory / 1e9:,.1f} GB")


def read_arrays(path: Path, needed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """All arrays of an .npz, those needed among them, or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    digests.check(path)
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bomb(archive)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    # Damaged archives make the readers raise nearly anything.
    except Exception as error:
        raise ValueError(f"{path} is not a readable .npz of plain arrays ({error or type(error).__name__})") from error
    # A member that is no array comes as its bytes.
    if lacking := [name for name in needed if not isinstance(arrays.get(name), np.ndarray)]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}; it holds {', '.join(arrays) or 'nothing'}")
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def write_tensors(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """A .safetensors of plain arrays, with strings about them."""
    # The format copies memory as it lies: a transposed view would be written untransposed.
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, safetensors.numpy.save(whole, metadata=dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a .safetensors and the strings about them, or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    digests.check(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.get_tensors(), dict(file.metadata() or {})
    except Exception as error:
        raise ValueError(f"{path} is not a readable .safetensors ({error})") from error


def write_heads(path: Path, heads: Heads) -> None:
    """Kernel [c d] and bias [c], float32."""
    write_arrays(path, {"kernel": np.asarray(heads.kernel), "bias": np.asarray(heads.bias)})


def read_heads(path: Path) -> Heads:
    """What `write_heads` wrote."""
    arrays = read_arrays(path, ("kernel", "bias"))
    kernel, bias = arrays["kernel"], arrays["bias"]
    if kernel.dtype != np.float32 or bias.dtype != np.float32 or kernel.ndim != 2 or bias.shape != kernel.shape[:1]:
        raise ValueError(f"{path}: kernel {kernel.shape} and bias {bias.shape} are no last layer [c d], [c] of float32")
    return Heads(kernel, bias)


def record_digests(folder: Path, deep: bool = True) -> str:
    """Record the digests of a folder that is complete, as `digests.of_folder` takes them; the record's own digest."""
    path = folder / digests.RECORD
    # What no longer is as an earlier record says must not be taken for damage if this one is not finished.
    path.unlink(missing_ok=True)
    write_json(path, digests.sealed({"files": digests.of_folder(folder, deep)}))
    return digests.of_file(path)


class FolderStore(MutableMapping[str, dict[str, np.ndarray]]):
    """Arrays by name, one .npz each: what an interrupted stage goes on from.

    Every entry bears the key of the stage that it was made for, and a digest. Those of another key are as good as not
    there.
    """

    def __init__(self, folder: Path, key: str = ""):
        """Keep the arrays in this folder, for a stage of this key."""
        self.folder, self.key = folder, key

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        """Read one entry.

        Raises:
            KeyError: where there is none, or one of another key.
            ValueError: where it is damaged.
        """
        path = self._path(name)
        if not path.is_file():
            raise KeyError(name)
        arrays = read_arrays(path)
        key, digest = (str(arrays.pop(member, "")) for member in (KEY, DIGEST))
        if not digest or key != self.key:
            raise KeyError(name)
        if digest != _digest(key, arrays):
            raise digests.Damaged(f"{path} is damaged (it is not what was written): delete it, and it is made anew")
        return arrays

    def __setitem__(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write one entry, whole or not at all."""
        plain = {member: np.asarray(array) for member, array in arrays.items()}
        of_store = {KEY: np.array(self.key), DIGEST: np.array(_digest(self.key, plain))}
        write_arrays(self._path(name), plain | of_store)

    def __delitem__(self, name: str) -> None:
        """Forget one entry."""
        self._path(name).unlink()

    def __iter__(self) -> Iterator[str]:
        """Names of all entries."""
        return (path.stem for path in self.folder.glob("[!.]*.npz"))

    def __len__(self) -> int:
        """The number of entries."""
        return sum(1 for _ in self)


# Members of an entry that say whose it is, and what it is.
KEY, DIGEST = "stage key", "digest"


def _digest(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that an entry holds."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
