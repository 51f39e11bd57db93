"""What a model trained anywhere is handed over in: one file of embeddings, labels and, mostly, its last layer.

Arrays in an .npz or .safetensors, or in a folder of .npy files, which are read as memory maps; or one row per image in
a Parquet table. Everything is checked before it is used, and a message names file and array.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from cftjax import text
from cftjax.data import labels as label_values
from cftjax.data import meaning
from cftjax.data.reading import sheets
from cftjax.data.reading.problems import DataError, Problems, require
from cftjax.embeddings import entries, table
from cftjax.embeddings.entries import Entries
from cftjax.runtime import storage
from cftjax.text import few
from cftjax.types import SPLITS, Embeddings, Heads, Labels

ARRAY_SUFFIXES = (".npz", ".safetensors")
SUFFIXES = (*ARRAY_SUFFIXES, *sheets.PARQUET_SUFFIXES)
PARTS = ("z", "labels", *entries.PARTS, "groups")
# Rows of a memory map that are looked at together.
ROWS_AT_ONCE = 16384
MINUS_ONE = "--minus-one"
# A last layer may keep the names that torch gives it.
KERNEL_NAMES = ("kernel", "weight")


class Bundle(NamedTuple):
    """A file that was read.

    Attributes:
        categories: names, length c.
        embeddings: train, and of validation and test those that the file has.
        heads: the last layer.
        notes: how labels and columns were read, for a person to see.
    """

    categories: tuple[str, ...]
    embeddings: dict[str, Embeddings]
    heads: Heads
    notes: tuple[str, ...] = ()


def read(file: Path, *, head: Path | None = None, minus_one: str = "ask") -> Bundle:
    """Read a bundle and check all of it.

    Args:
        file: .npz or .safetensors with train_z [n d] or [n c d], train_labels [n c] of 1, 0 and NaN, optionally
            train_groups [n], the same of validation and test, kernel [c d], bias [c], and optionally the categories'
            names: an array `categories` in an .npz, a JSON list under `categories` in the metadata of a .safetensors.
            In place of train_labels it may hold the labels that were given: train_label_rows, train_label_columns and
            train_label_values (1, 0), [m] each. Or a folder with an .npy for each of these arrays.
            Or .parquet, one row per image: `split`, `z` (lists) or z_0 to z_(d-1), optionally `group`, and one column
            per category of 1, 0 and blank, in the order of the kernel's rows; a column `path` is not read.
        head: .npz or .safetensors with kernel (or weight) [c d] and bias [c], where `file` has none.
        minus_one: what a label of -1 means, and 0 beside it, as `meaning.parse` takes it.

    Raises:
        DataError: what is missing, of the wrong shape or not finite, by file and array; and where labels hold a -1
            that nothing is said of.
    """
    answer = meaning.parse(minus_one, MINUS_ONE)
    suffix = require(file).suffix.lower()
    if suffix not in SUFFIXES and not file.is_dir():
        raise DataError(f"{file}: ends in none of {', '.join(SUFFIXES)}; save it as one of them.")
    if suffix in sheets.PARQUET_SUFFIXES and not file.is_dir():
        if head is None:
            raise DataError(f"{file}: a table holds no last layer; name one with --head head.npz or head.safetensors.")
        categories, embeddings, notes = table.read(file, answer)
        names, heads = _read_head(head)
        dim = embeddings["train"].z.shape[1]
        if heads.kernel.shape != (len(categories), dim):
            raise DataError(
                f"{head}: its kernel {heads.kernel.shape} must be ({len(categories)}, {dim}), as {file} has the "
                f"categories {few(categories) or 'none'} and embeddings of {dim} numbers."
            )
        _check_order(file, categories, head, names)
        return Bundle(categories, embeddings, heads, notes)
    arrays = _read_arrays(file)
    splits = _check_names(file, arrays, has_head=head is None)
    names, heads = (None, _heads(file, arrays)) if head is None else _read_head(head)
    num = len(heads.bias)
    categories = _categories(file, arrays, num) or names or tuple(map(str, range(num)))
    _check_order(file, categories, head, names)
    problems = Problems(file)
    given = {}
    for split in splits:
        sound = _split(split, {part: arrays.get(f"{split}_{part}") for part in PARTS}, heads, problems)
        if sound is not None:
            given[split] = sound
    problems.raise_if_any()
    labels, notes = _labels(file, {split: told for split, (_, told) in given.items()}, categories, answer)
    embeddings = {
        split: Embeddings.of(z, labels[split], arrays.get(f"{split}_groups")) for split, (z, _) in given.items()
    }
    return Bundle(categories, embeddings, heads, notes)


def fingerprint(file: Path, head: Path | None, minus_one: str) -> str:
    """A hash of all that `read` depends on."""
    # By the word of earlier versions, so that their runs go on.
    minus_one = "refuse" if minus_one in meaning.UNANSWERED else minus_one
    digest = hashlib.sha256()
    for part in _files(file) + ([head] if head else []):
        if part.parent == file:
            digest.update(part.name.encode())
        with part.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    digest.update(minus_one.encode())
    return digest.hexdigest()[:16]


def _files(file: Path) -> list[Path]:
    """The files of a bundle: its arrays where it is a folder."""
    return sorted(file.glob("*.npy")) if file.is_dir() else [file]


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file; the categories among them where the metadata of a .safetensors have them."""
    if file.is_dir():
        return {path.stem: _mapped(path) for path in _files(file)}
    if file.suffix.lower() == ".npz":
        return storage.read_arrays(file)
    arrays, metadata = storage.read_tensors(file)
    if "categories" in metadata:
        try:
            arrays["categories"] = np.array(text.names(json.loads(metadata["categories"]), "the categories"), str)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file}: categories in its metadata is no JSON list ({error}); use json.dumps(names)."
            ) from error
    return arrays


def _mapped(path: Path) -> np.ndarray:
    """An .npy as a memory map."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    # Damaged headers make the reader raise nearly anything.
    except Exception as error:
        raise DataError(f"{path}: is no readable .npy of a plain array ({error}).") from error


def _check_names(file: Path, arrays: Mapping[str, np.ndarray], *, has_head: bool) -> list[str]:
    """The splits of a file whose arrays are all there and all known by name."""
    splits = [split for split in SPLITS if split == "train" or any(f"{split}_{part}" in arrays for part in PARTS)]
    told = {split: _told(split, arrays) for split in splits}
    needed = [f"{split}_{part}" for split in splits for part in ("z", *told[split])]
    optional = [f"{split}_{part}" for split in SPLITS for part in PARTS] + ["categories"]
    problems = Problems(file)
    last_layer = {*KERNEL_NAMES, "bias"}
    for split in splits:
        if told[split] == entries.PARTS and f"{split}_labels" in arrays:
            problems.add(f"holds {split}_labels as well as {split}_label_rows", mend="leave one of them out")
    if has_head:
        needed += ["weight" if "weight" in arrays else "kernel", "bias"]
    elif double := [name for name in arrays if name in last_layer]:
        problems.add(f"holds {' and '.join(double)} as well as --head", mend="leave one of them out")
        optional += double
    if missing := [name for name in needed if name not in arrays]:
        mend = "add the last layer, or name its file with --head" if last_layer.intersection(missing) else None
        problems.add(f"lacks {', '.join(missing)}; it holds {few(list(arrays), 20) or 'nothing'}", mend=mend)
    for name in arrays:
        if name not in needed and name not in optional:
            near = difflib.get_close_matches(name, [*needed, *optional], n=1)
            problems.add(f"{name} is no array of a bundle", mend=f"rename it to {near[0]}" if near else "leave it out")
    problems.raise_if_any()
    return splits


def _told(split: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The arrays that hold a split's labels: one table, or three of entries."""
    return entries.PARTS if any(f"{split}_{part}" in arrays for part in entries.PARTS) else ("labels",)


def _read_head(file: Path) -> tuple[tuple[str, ...] | None, Heads]:
    """The categories, where the file names them, and the last layer of a file of its own."""
    if require(file).suffix.lower() not in ARRAY_SUFFIXES:
        raise DataError(f"{file}: ends in none of {', '.join(ARRAY_SUFFIXES)}; save the last layer as one of them.")
    arrays = _read_arrays(file)
    heads = _heads(file, arrays)
    return _categories(file, arrays, len(heads.bias)), heads


def _heads(file: Path, arrays: Mapping[str, np.ndarray]) -> Heads:
    """Kernel and bias, checked."""
    found = [name for name in KERNEL_NAMES if name in arrays]
    if len(found) != 1 or "bias" not in arrays:
        raise DataError(f"{file}: needs one kernel [c d] and one bias [c]; it holds {few(list(arrays)) or 'nothing'}.")
    kernel, bias = arrays[found[0]], arrays["bias"]
    if kernel.ndim != 2 or bias.shape != kernel.shape[:1] or not kernel.size:
        turned = kernel.ndim == 2 and bias.shape == kernel.shape[1:]
        mend = f"; it is [d c] as Keras and Flax keep it: save {found[0]}.T" if turned else ""
        raise DataError(f"{file}: {found[0]} {kernel.shape} must be [c d] and bias {bias.shape} [c]{mend}.")
    problems = Problems(file)
    heads = Heads(*(_float32(name, array, problems) for name, array in ((found[0], kernel), ("bias", bias))))
    problems.raise_if_any()
    return heads


def _categories(file: Path, arrays: Mapping[str, np.ndarray], num: int) -> tuple[str, ...] | None:
    """The names in the file, if it has any."""
    if "categories" not in arrays:
        return None
    written = arrays["categories"]
    if written.ndim != 1 or written.dtype.kind != "U":
        raise DataError(
            f"{file}: categories is {written.dtype}{list(written.shape)}, which are no names: give [c] texts, one per "
            "row of the kernel."
        )
    names = tuple(map(str, written))
    if len(names) != num or len(set(names)) != num:
        raise DataError(
            f"{file}: categories must be {num} different names, one per row of the kernel; it has {len(set(names))} "
            f"different ones among {len(names)}."
        )
    return names


def _check_order(file: Path, categories: tuple[str, ...], head: Path | None, names: tuple[str, ...] | None) -> None:
    """Refuse a last layer whose rows are named otherwise than the labels' columns."""
    if names is not None and names != categories:
        raise DataError(
            f"{head}: its rows are {few(names)}, the labels' columns of {file} are {few(categories)}; bring both into "
            "one order."
        )


def _split(
    split: str, arrays: Mapping[str, Any], heads: Heads, problems: Problems
) -> tuple[np.ndarray, np.ndarray | Entries] | None:
    """Embeddings and what is told of the labels of a split; None where something is wrong, which is noted."""
    z, values, groups = (arrays[part] for part in ("z", "labels", "groups"))
    num, dim = heads.kernel.shape
    before, n = len(problems), len(z) if z.ndim else 0
    if not n:
        problems.add(f"{split}_z {z.shape} has no rows", mend="leave the split out, or fill it")
        return None
    if z.shape not in ((n, dim), (n, num, dim)):
        problems.add(f"{split}_z {z.shape} must be [n {dim}] or [n {num} {dim}], as the kernel is {heads.kernel.shape}")
    told = values
    if values is None:
        told = entries.check(split, [arrays[part] for part in entries.PARTS], (n, num), problems)
    elif values.shape != (n, num):
        problems.add(f"{split}_labels {values.shape} must be ({n}, {num})")
    if values is not None and not _holds_numbers(values):
        problems.add(f"{split}_labels, of type {values.dtype}, holds no numbers", mend="use 1, 0 and NaN")
    if groups is not None and (groups.shape != (n,) or groups.dtype.kind not in "iuSU"):
        problems.add(f"{split}_groups {groups.shape} of type {groups.dtype} must be ({n},), integers or strings")
    if isinstance(z, np.memmap):
        _check_blocks(f"{split}_z", z, problems)
    else:
        z = _float32(f"{split}_z", z, problems)
    if len(problems) > before or told is None:
        return None
    return z, told if values is None else values.astype(np.float32)


def _check_blocks(name: str, array: np.ndarray, problems: Problems) -> None:
    """Note what `_float32` would, of a memory map that stays on disk."""
    for start in range(0, len(array), ROWS_AT_ONCE):
        before = len(problems)
        _float32(name, np.asarray(array[start : start + ROWS_AT_ONCE]), problems, first=start)
        if len(problems) > before:
            return


def _holds_numbers(array: np.ndarray) -> bool:
    """Whether these are numbers or truth values, those of torch's own formats among them."""
    return array.dtype.kind in "biuf" or array.dtype == ml_dtypes.bfloat16


def _float32(name: str, array: np.ndarray, problems: Problems, first: int = 0) -> Float32[np.ndarray, ...]:
    """Numbers of any width as float32; what is not finite then is a problem, named by its row from `first` on."""
    if not _holds_numbers(array):
        problems.add(f"{name}, of type {array.dtype}, holds no numbers")
        return np.zeros(array.shape, np.float32)
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32, copy=False)
    finite = np.isfinite(converted)
    if not finite.all():
        row = first + int(np.argwhere(~finite)[0][0])
        problems.add(f"{name} has a value that is not finite, first in row {row}")
    return converted


def _labels(
    file: Path, written: Mapping[str, np.ndarray | Entries], categories: Sequence[str], answer: meaning.Answer
) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Labels of all splits, and how they were read; a column is one thing in all splits.

    Raises:
        DataError: where a value is no label, or a -1 is not answered for.
    """
    problems = Problems(file)
    tables = {split: told for split, told in written.items() if not isinstance(told, Entries)}
    for split, values in tables.items():
        wrong = np.argwhere(~(np.isin(values, (1, 0, -1)) | np.isnan(values)))
        if len(wrong):
            row, column = wrong[0]
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            what = f"{split}_labels: labels other than 1, 0, -1 and NaN: {values[row, column]:g}"
            problems.add(f"{what} in row {row}, column {column}{more}", mend="correct them, or write NaN where unknown")
    problems.raise_if_any()
    if len(tables) < len(written):
        each = {split: told if isinstance(told, Entries) else entries.of_table(told) for split, told in written.items()}
        few_labels, told = entries.labels(each, categories, answer, problems)
        problems.raise_if_any()
        return {**few_labels}, told
    everything, told = meaning.read(
        np.concatenate(list(tables.values())), categories, answer, problems, always_ask=True
    )
    problems.raise_if_any()
    ends = np.cumsum([len(values) for values in tables.values()])
    split_values = zip(tables, np.split(everything, ends[:-1]), strict=True)
    return {split: label_values.from_values(values) for split, values in split_values}, tuple(told)
