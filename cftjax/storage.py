"""Small files of a run: JSON and arrays, written whole or not at all, read without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from cftjax.types import Heads

# Ends the names of files that are being written; those of `replacing` begin with a dot as well.
PART = ".part"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends; after an error it is gone.

    For what is too large to be held whole; `write_bytes` serves the rest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed `replacing` has left anywhere under a folder; nobody may be writing there."""
    for path in folder.rglob(f".*{PART}"):
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
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it, or restore it from a copy") from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An .npz of plain arrays."""
    # An opened file, for NumPy would add an ending to a name.
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise ValueError(f"{path} is not a readable .npz of plain arrays ({error})") from error


def write_tensors(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """A .safetensors of plain arrays, with strings about them."""
    # The format copies memory as it lies: a transposed view would be written untransposed.
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, safetensors.numpy.save(whole, metadata=dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a .safetensors and the strings about them, or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
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
    arrays = read_arrays(path)
    return Heads(arrays["kernel"], arrays["bias"])


class FolderStore(MutableMapping[str, dict[str, np.ndarray]]):
    """Arrays by name, one .npz each: what an interrupted stage goes on from."""

    def __init__(self, folder: Path):
        """Keep the arrays in this folder."""
        self.folder = folder

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        """Read one entry."""
        if not self._path(name).is_file():
            raise KeyError(name)
        return read_arrays(self._path(name))

    def __setitem__(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write one entry, whole or not at all."""
        write_arrays(self._path(name), arrays)

    def __delitem__(self, name: str) -> None:
        """Forget one entry."""
        self._path(name).unlink()

    def __iter__(self) -> Iterator[str]:
        """Names of all entries."""
        return (path.stem for path in self.folder.glob("[!.]*.npz"))

    def __len__(self) -> int:
        """The number of entries."""
        return sum(1 for _ in self)
