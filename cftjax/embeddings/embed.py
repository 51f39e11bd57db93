"""Images to embeddings: a split goes through the backbone once, and stays on disk: `z.npy` and, sparse, `labels.npz`.

`z.npy` takes its name when its last row is written; until then `z.npy.part` grows by whole batches, and `progress.json`
says how many of its rows can be trusted, what they are by their digest, and for which settings they were made, so that
an interrupted embedding goes on where it stood.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import math
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float32, Int, Shaped

from cftjax import types
from cftjax.backbones import Embedder
from cftjax.backbones.places import embedding_shape
from cftjax.config import InputConfig
from cftjax.data import sparse
from cftjax.input import pipeline
from cftjax.input.preprocessing import Normalisation, Preprocessing
from cftjax.runtime import devices, digests, storage
from cftjax.runtime.progress import Progress
from cftjax.text import few

LABELS = "labels.npz"
# Its arrays, as `sparse.SparseLabels` has them.
LABEL_ARRAYS = ("starts", "categories", "values", "num_categories")
# Up to format 1 of runs labels were dense, an .npy each.
DENSE_LABELS = ("labels", "known", "uncertain")
UNOPENED = "unopened.json"
# Of embeddings made elsewhere, copied.
ROWS_AT_ONCE = 16384
NAMES = "names.json"
# What an embedding under way goes on from: rows, and how many of them can be trusted.
PART, MARKER = "z.npy.part", "progress.json"


class Embedded(NamedTuple):
    """Consecutive rows of a split after the backbone.

    Attributes:
        z: [m d], or [m c d] where each category has an embedding of its own.
        opened: [m], False where the image could not be opened and z stands for a blank one.
    """

    z: Float32[np.ndarray, "m ..."]
    opened: Bool[np.ndarray, " m"]


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(
    graphdef: nnx.GraphDef[Any],
    variables: Any,
    images: Shaped[jax.Array, "n h w 3"],
    normalisation: Normalisation | None = None,
) -> Float[jax.Array, "n ..."]:
    """Embeddings by running statistics, whatever mode the backbone was left in.

    Args:
        graphdef: structure of a backbone.
        variables: of the backbone.
        images: grey levels in [0, 255], or without a normalisation what the backbone takes.
        normalisation: of the images.
    """
    backbone = nnx.merge(graphdef, variables)
    backbone.eval()
    return backbone.embed(images if normalisation is None else normalisation(images))


def embed_rows(
    backbone: Embedder,
    records: types.Records,
    preprocessing: Preprocessing,
    input_config: InputConfig,
    batch_size: int,
    *,
    mesh: Mesh | None = None,
    first: int = 0,
) -> Generator[Embedded]:
    """Embeddings of a split in file order, a batch for every device at a time, all of it on every host.

    Every device runs the same program on as many images, whatever the number of devices: the image of a row meets the
    same program at the same place of a batch, so that its embedding is the same to the bit.

    Args:
        backbone: with `embed`.
        records: the split.
        preprocessing: of the images.
        input_config: threads, and what happens to images that cannot be opened.
        batch_size: images per step of each device.
        mesh: of the devices; all of them if None.
        first: row that comes first, a multiple of batch_size.

    Raises:
        ValueError: batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"embed.batch_size {batch_size} must be at least 1.")
    mesh = devices.mesh() if mesh is None else mesh
    together = batch_size * mesh.size
    graphdef, variables = nnx.split(backbone)
    variables = devices.replicate(nnx.as_pure(variables), mesh)
    local = pipeline.local_rows(together, devices.host_shard())
    batches = pipeline.eval_batches(
        records, preprocessing, input_config, batch_size=together, first=first, shard=devices.host_shard()
    )
    with contextlib.closing(batches):
        waiting = None
        for start, batch in zip(range(first, len(records), together), batches, strict=True):
            positions = np.arange(start + local.start, start + local.stop)
            image, rows, positions = devices.shard((batch.image, batch.rows, positions), mesh)
            begun = forward(graphdef, variables, image, preprocessing.normalisation), rows, positions
            # One batch late: the devices compute this one while the host writes the one before.
            if waiting is not None:
                yield _in_order(waiting, len(records))
            waiting = begun
        if waiting is not None:
            yield _in_order(waiting, len(records))


def _in_order(parts: Sequence[types.Array], n: int) -> Embedded:
    """The rows that exist, in file order: a mesh may order its devices differently from the hosts."""
    z, rows, positions = devices.gather(parts)
    order = np.argsort(positions)
    order = order[positions[order] < n]
    return Embedded(z[order].astype(np.float32, copy=False), rows[order] >= 0)


def embed(
    backbone: Embedder,
    records: types.Records,
    preprocessing: Preprocessing,
    input_config: InputConfig,
    batch_size: int,
    folder: Path,
    *,
    mesh: Mesh | None = None,
    key: str = "",
) -> None:
    """Embed a split into a folder, from where an interrupted call of the same arguments left it, on any devices.

    Images that could not be opened keep their row, with no label known. On several hosts the folder must be one that
    all of them see; the first one writes it.

    Args:
        backbone: with `embed`, and `dim` or the shape of an embedding.
        records: the split.
        preprocessing: of the images.
        input_config: threads, and what happens to images that cannot be opened.
        batch_size: images per step of each device.
        folder: of this split's embeddings.
        mesh: of the devices; all of them if None.
        key: of the settings; what was begun under another one is begun anew.
    """
    if (folder / "z.npy").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    primary, part, marker = devices.is_primary(), folder / PART, folder / MARKER
    done = _begun(folder, key)
    n, shape = len(records), embedding_shape(backbone)
    # Everyone has read where to go on before the first host writes on.
    devices.barrier("embedding begins")
    with contextlib.ExitStack() as stack:
        appended = _append(part, (n, *shape), np.dtype(np.float32), done.rows)
        file = stack.enter_context(appended) if primary else None
        written = _digest_of_rows(part, (n, *shape), done) if primary else hashlib.sha256()
        shown = stack.enter_context(Progress(f"Embed {folder.name}", unit="images"))
        shown.say("waiting for its first batch")
        rows = embed_rows(
            backbone,
            records,
            preprocessing,
            input_config,
            batch_size,
            mesh=mesh,
            first=done.rows,
        )
        for z, opened in stack.enter_context(contextlib.closing(rows)):
            unopened = (done.rows + np.flatnonzero(~opened)).tolist()
            done = Begun(key, done.rows + len(z), [*done.unopened, *unopened])
            if file is not None:
                content = z.tobytes()
                file.write(content)
                written.update(content)
                # The marker must never be ahead of the data.
                file.flush()
                os.fsync(file.fileno())
                done = dataclasses.replace(done, digest=written.hexdigest())
                storage.write_json(marker, digests.sealed(dataclasses.asdict(done)))
            shown.update(done.rows, n)
    if primary:
        names = describe(folder, records, np.asarray(done.unopened, int))
        part.replace(folder / "z.npy")
        marker.unlink()
        if names:
            print(f"{folder.name}: left out, since they could not be opened: {few(names)}", flush=True)
    devices.barrier("embedding ends")


@dataclasses.dataclass(frozen=True)
class Begun:
    """How far an embedding is.

    Attributes:
        key: of the settings.
        rows: that are written.
        unopened: of them, those whose images could not be opened.
        digest: of their numbers.
    """

    key: str = ""
    rows: int = 0
    unopened: Sequence[int] = ()
    digest: str = ""


def _begun(folder: Path, key: str) -> Begun:
    """Where an embedding with these settings goes on.

    Raises:
        ValueError: where the marker is damaged.
    """
    marker = folder / MARKER
    if not marker.is_file() or not (folder / PART).is_file():
        return Begun(key)
    content = storage.read_json(marker)
    # Older versions wrote neither key nor digest: their rows are embedded again.
    stored = digests.unsealed(marker, content, ("rows", "unopened")) if isinstance(content, dict) else {}
    return Begun(**stored) if stored.get("key") == key and "digest" in stored else Begun(key)


def _digest_of_rows(part: Path, shape: tuple[int, ...], begun: Begun) -> Any:
    """The digest of the rows that are written, to be gone on with.

    Raises:
        ValueError: where they are not what was written.
    """
    digest, header = hashlib.sha256(), len(_header(shape, np.dtype(np.float32)))
    with part.open("rb") as file:
        file.seek(header)
        left = begun.rows * math.prod(shape[1:]) * 4
        while left and (content := file.read(min(left, 2**22))):
            digest.update(content)
            left -= len(content)
    if begun.rows and digest.hexdigest() != begun.digest:
        raise digests.Damaged(f"{part} is damaged (it is not what was written): {digests.mend(part)}")
    return digest


def describe(folder: Path, records: types.Records, unopened: Int[np.ndarray, " m"]) -> list[str]:
    """Write what stands beside the embeddings of a split: labels, groups and names; the names of rows not opened."""
    _write_labels(folder, records.labels, unopened)
    if records.groups is not None:
        _write(folder / "groups.npy", records.groups)
    storage.write_json(folder / NAMES, [str(name) for name in records.names])
    names = [str(records.names[row]) for row in unopened]
    _write_unopened(folder, names)
    return names


def save(folder: Path, embeddings: types.Embeddings) -> None:
    """Write embeddings made elsewhere, to be read by `load`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_labels(folder, embeddings.given, np.empty(0, int))
    if embeddings.groups is not None:
        _write(folder / "groups.npy", embeddings.groups)
    _write_unopened(folder, embeddings.unopened)
    # Last: a folder with z is complete.
    _write_z(folder / "z.npy", embeddings.z)


def load(folder: Path, mmap: bool = True) -> types.Embeddings:
    """Read a split's embeddings.

    Args:
        folder: that `embed` or `save` wrote.
        mmap: leave the arrays on disk, and read what is used when it is used.

    Raises:
        FileNotFoundError: where they are not complete.
    """
    if not (folder / "z.npy").is_file():
        raise FileNotFoundError(f"{folder} has no complete embeddings: run the training command again to finish them.")
    z, given = _read(folder / "z.npy", mmap), _read_labels(folder, mmap)
    if z.dtype != np.float32 or len(z) != given.shape[0]:
        raise ValueError(f"{folder} holds arrays that do not belong together: delete the folder to make them anew.")
    groups, unopened = folder / "groups.npy", folder / UNOPENED
    return types.Embeddings.of(
        z,
        given,
        _read(groups, mmap=False) if groups.is_file() else None,
        tuple(storage.read_json(unopened)) if unopened.is_file() else (),
    )


def _read_labels(folder: Path, mmap: bool) -> types.Labels:
    """What `_write_labels` wrote, or the dense arrays of older versions."""
    path = folder / LABELS
    if not path.is_file() and (folder / f"{DENSE_LABELS[0]}.npy").is_file():
        dense = [_read(folder / f"{name}.npy", mmap) for name in DENSE_LABELS]
        if any(part.dtype != bool or part.shape != dense[0].shape for part in dense):
            raise ValueError(f"{folder} holds arrays that do not belong together: delete the folder to make them anew.")
        return types.Labels(*dense)
    arrays = storage.read_arrays(path, LABEL_ARRAYS)
    starts, categories, values, num = (arrays[name] for name in LABEL_ARRAYS)
    try:
        return sparse.from_arrays(starts, categories, values, int(num))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete the folder {folder} to make it anew.") from error


def _read(path: Path, mmap: bool) -> np.ndarray:
    """One array, or ValueError naming the file."""
    # All of it, memory map or not: who reads a map later is not asked. It is read once more in the time of a `wc`.
    digests.check(path)
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    # Damaged headers make the reader raise nearly anything.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({error}): delete the folder {path.parent} to make it anew."
        ) from error


def load_names(folder: Path) -> list[str] | None:
    """What each row is called; None where nothing says, as of embeddings made elsewhere."""
    path = folder / NAMES
    return storage.read_json(path) if path.is_file() else None


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What an .npy file begins with."""
    head = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(head, description)
    return head.getvalue()


@contextlib.contextmanager
def _append(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], rows: int = 0) -> Iterator[BinaryIO]:
    """An .npy file of a known final shape, open for writing after its first `rows` rows.

    Not a memory map: on a full disk a write to one ends the process without a message.
    """
    header = _header(shape, dtype)
    with storage.named(path), path.open("r+b" if rows else "wb") as file:
        if rows:
            end = len(header) + rows * math.prod(shape[1:]) * dtype.itemsize
            if file.read(len(header)) != header or file.seek(0, os.SEEK_END) < end:
                raise ValueError(f"{path} is not what progress.json beside it says: delete the folder {path.parent}.")
            file.truncate(end)
            file.seek(end)
        else:
            file.write(header)
        yield file


def _write_z(path: Path, z: types.Array) -> None:
    """Embeddings of any width as float32, some rows at a time: they may be a memory map."""
    part = path.with_name(path.name + ".part")
    with _append(part, z.shape, np.dtype(np.float32)) as file:
        for start in range(0, len(z), ROWS_AT_ONCE):
            file.write(
                np.ascontiguousarray(z[start : start + ROWS_AT_ONCE], np.float32).reshape(-1).view(np.uint8).data
            )
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _write(path: Path, array: np.ndarray) -> None:
    """A whole array, seen complete or not at all."""
    # Strings as objects would have to be pickled.
    array = array.astype(str) if array.dtype == object else array
    part = path.with_name(path.name + ".part")
    # Not np.save: on a full disk it says how many bytes it wrote, and not why no more.
    with _append(part, array.shape, array.dtype) as file:
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _write_labels(folder: Path, labels: types.Labels, unopened: Int[np.ndarray, " m"]) -> None:
    """What is known of each image, sparse; nothing is known of images that could not be opened."""
    entries = sparse.of(labels)
    if len(unopened):
        entries = entries.keep(~np.isin(entries.rows(), unopened))
    storage.write_arrays(folder / LABELS, {name: getattr(entries, name) for name in LABEL_ARRAYS})


def _write_unopened(folder: Path, names: Sequence[str]) -> None:
    """The names of the images that could not be opened, where there are any."""
    if names:
        storage.write_json(folder / UNOPENED, list(names))
