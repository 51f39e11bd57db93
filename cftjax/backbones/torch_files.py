"""Torch checkpoints (.pth, .pt, .bin) as NumPy arrays, without torch and without running anything they contain.

A checkpoint is a pickle, and a pickle names functions to call. Only the names in `GLOBALS` are answered, and none with
the function it stands for: each gets a few lines of this file that describe a tensor. Every other name is refused.
"""

from __future__ import annotations

import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from cftjax.runtime.storage import refuse_bomb

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys of a training checkpoint under which the weights are looked for, in this order."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "model_averaged")
"""Keys under which a moving average of the weights stands beside them."""
STORAGES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read(path: str | Path, key: str | None = None) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, in either container format.

    Args:
        path: what `torch.save` wrote: a zip archive, or before torch 1.6 a sequence of pickles.
        key: under which they stand; None looks at the top and under the keys in `NESTED` and `AVERAGED`, and says which
            was taken where there are several.

    Returns:
        Name to array, in the file's order. bfloat16 tensors keep their type (`ml_dtypes.bfloat16`).

    Raises:
        ValueError: the file is not a torch checkpoint, is damaged, holds no tensors, or names anything but tensors.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            tree, storages = _read_zip(path)
        else:
            tree, storages = _read_legacy(path)
        found = _state_dicts(tree)
        taken, tensors = _taken(found, key)
        arrays = {name: _array(value, storages) for name, value in tensors.items()}
    except _Refused as refusal:
        raise ValueError(
            f"{path} asks for {refusal}, which is not part of a tensor: save model.state_dict() alone, not the model."
        ) from None
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    # Damaged bytes make the interpreter of pickles and the reader of archives raise nearly anything.
    except Exception as e:
        raise ValueError(f"{path} is damaged or not a torch checkpoint ({type(e).__name__}: {e}).") from None
    if not arrays:
        raise ValueError(f"{path} holds no tensors, neither at the top nor under {', '.join(NESTED)}.")
    if others := [f"{path}#{other}" for other in found if other and other != taken]:
        kind = "averaged" if taken in AVERAGED else "raw"
        if key is None:
            what = f"{path} holds weights under {', '.join(found)}: {taken}, the {kind} ones, are taken"
            warnings.warn(f"{what}; --backbone.weights {others[0]} takes the others.", stacklevel=2)
    return arrays


class _Storage(NamedTuple):
    """A flat run of numbers elsewhere in the file."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view into a storage: shape and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """Stands for OrderedDict; torch hangs a version table on it, which is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyType:
    """Stands for numpy.dtype: pickled as a name, then a state whose second entry is the byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biufc":
            raise _Refused(f"numpy.dtype {name!r}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1]) if state[1] in "<>" else self.dtype


class _NumpyArray:
    """Stands for numpy.ndarray: pickled empty, then a state of version, shape, type, order and bytes."""

    array: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


class _Answer:
    """What the pickle gets for a name: may be called, and cannot be altered from inside the pickle."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *arguments: Any) -> Any:
        return self.value(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refused("a change to a function")


class _Refused(Exception):
    """A name outside `GLOBALS`."""


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _scalar(dtype: _NumpyType, data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _NumpyArray,
    ("numpy", "dtype"): _NumpyType,
    # NumPy 2 moved these; files hold the name of the version that wrote them.
    **{
        (f"numpy.{core}.multiarray", name): answer
        for core in ("core", "_core")
        for name, answer in {"_reconstruct": lambda *_: _NumpyArray(), "scalar": _scalar}.items()
    },
}


class _Unpickler(pickle.Unpickler):
    """Answers names from `GLOBALS` alone, and leaves storages to be read later."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return _Answer(np.dtype(STORAGES[name]))
        if (module, name) not in GLOBALS:
            raise _Refused(f"{module}.{name}")
        return _Answer(GLOBALS[module, name])

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(getattr(dtype, "value", None), np.dtype) or view not in ([], [None]):
            raise _Refused(f"a persistent {kind!r}")
        return _Storage(dtype.value, str(key), int(size))


def _read_zip(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The zip container: data.pkl, one file per storage under data/, all under one folder."""
    with zipfile.ZipFile(path) as archive:
        refuse_bomb(archive)
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive, but not one that torch wrote (no data.pkl).")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder").decode() != sys.byteorder:
            raise ValueError(f"was written on a machine of another byte order than this one's, {sys.byteorder}.")
        with archive.open(pickles[0]) as file:
            tree = _Unpickler(file).load()
        storages = {}
        for name in names:
            if name.startswith(f"{folder}data/"):
                storages[name.removeprefix(f"{folder}data/")] = np.frombuffer(archive.read(name), np.uint8)
    return tree, storages


def _read_legacy(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The old container: four pickles (magic, version, machine, tree), the list of storages, then each one's bytes."""
    with path.open("rb") as file:
        try:
            magic = _Unpickler(file).load()
        except Exception:
            magic = None
        if magic != LEGACY_MAGIC or _Unpickler(file).load() != LEGACY_PROTOCOL:
            raise ValueError("is not a torch checkpoint.")
        if _Unpickler(file).load()["little_endian"] != (sys.byteorder == "little"):
            raise ValueError(f"was written on a machine of another byte order than this one's, {sys.byteorder}.")
        unpickler = _Recording(file)
        tree = unpickler.load()
        storages = {}
        for key in _Unpickler(file).load():
            size = int.from_bytes(file.read(8), sys.byteorder, signed=True)
            storages[key] = _bytes(file, size * unpickler.dtypes[key].itemsize)
    return tree, storages


class _Recording(_Unpickler):
    """Remembers the type of each storage: the old container says how many numbers it holds, not how many bytes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        storage = super().persistent_load(pid)
        self.dtypes[storage.key] = storage.dtype
        return storage


def _bytes(file: BinaryIO, size: int) -> np.ndarray:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("ends early; copy it again.")
    return np.frombuffer(data, np.uint8)


def _state_dicts(tree: Any) -> dict[str, dict[str, Any]]:
    """All dicts that hold tensors, by the key of the checkpoint under which they stand; the tree itself under none."""
    if isinstance(tree, _Tensor | _NumpyArray):
        return {"": {"": tree}}
    if not isinstance(tree, dict):
        return {}
    candidates = {"": tree} | {key: tree[key] for key in (*NESTED, *AVERAGED) if key in tree}
    found = {}
    for key, candidate in candidates.items():
        # An average may hold its own state, and the weights within it.
        if key and isinstance(candidate, dict) and isinstance(candidate.get("module"), dict):
            candidate = candidate["module"]
        if isinstance(candidate, dict):
            tensors = {str(k): v for k, v in candidate.items() if isinstance(v, _Tensor | _NumpyArray)}
            if tensors:
                found[key] = tensors
    return found


def _taken(found: dict[str, dict[str, Any]], key: str | None) -> tuple[str, dict[str, Any]]:
    """The key that is asked for, else the first, and what stands there."""
    if key is not None and key not in found:
        there = ", ".join(name or "the top" for name in found) or "nowhere"
        raise ValueError(f"holds no weights under {key!r}; there are some under {there}.")
    if not found:
        return "", {}
    taken = next(iter(found)) if key is None else key
    return taken, found[taken]


def _array(value: _Tensor | _NumpyArray, storages: dict[str, np.ndarray]) -> np.ndarray:
    """Copy a view out of its storage."""
    if isinstance(value, _NumpyArray):
        return value.array.copy()
    storage, offset, shape, strides = value
    data = storages[storage.key]
    if data.size % storage.dtype.itemsize or data.size // storage.dtype.itemsize < storage.size:
        raise ValueError(f"storage {storage.key} holds {data.size} bytes, too few for {storage.size} {storage.dtype}.")
    flat = data.view(storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= flat.size):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage {storage.key} of {flat.size} numbers.")
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    steps = tuple(step * storage.dtype.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False).copy()
