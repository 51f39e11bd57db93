"""Where arrays live: one mesh over all devices of all hosts, batches split over it, everything else copied to each."""

from __future__ import annotations

import ctypes
import io
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"

T = TypeVar("T")

# With 3 GB small runs end as they should, with 2 the libraries crash (docs/reliability.md).
LEAST_ADDRESS_SPACE = 3_000_000_000
# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that XLA frees, instead of giving it back to the system after every call.

    On a CPU the first touch of fresh pages is a good part of a network's time (docs/backbones.md). A process then holds
    as much as it ever needed.

    Returns:
        Whether the C library has the setting: glibc does.
    """
    mallopt = _of_the_c_library("mallopt")
    largest = 2**31 - 1
    return mallopt is not None and all(mallopt(each, largest) for each in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def give_back_freed_memory() -> None:
    """Have the C library give back what it keeps, where what follows needs other sizes and would lie beside it."""
    trim = _of_the_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_the_c_library(name: str) -> Any:
    """A function that glibc has and others may not; None where there is none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def refuse_small_memory() -> None:
    """Refuse to begin where a limit leaves less address space than the libraries take: they would end without a word.

    Raises:
        ValueError: with the mend.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise ValueError(
            f"this shell allows {limit / 1e9:.1f} GB of address space, and JAX and its threads take more than 2: allow "
            f"{LEAST_ADDRESS_SPACE / 1e9:.0f} or more (ulimit -v {LEAST_ADDRESS_SPACE // 1024}, or ulimit -v unlimited)"
        )


def says_full(error: Exception) -> bool:
    """Whether an error is what the host or a device says that has no memory left."""
    full = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return full or isinstance(error, MemoryError)


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices, or of those given, with the one axis `data`."""
    devices = jax.devices() if devices is None else devices
    # Auto: the compiler places what is computed. Explicit, JAX's default, refuses random choices on a sharded axis.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def abstract(tree: T, sharding: NamedSharding) -> T:
    """Shapes, dtypes and one sharding in place of the arrays of a pytree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def replicate(tree: T, mesh: Mesh) -> T:
    """Copy a pytree, the same on every host, to every device."""
    return jax.device_put(tree, replicated(mesh))


def shard(batch: T, mesh: Mesh) -> T:
    """Split a pytree of NumPy arrays along the leading axis; every host brings its own part of the batch."""
    sharding = sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def gather(tree: Any) -> Any:
    """Whole arrays on this host as NumPy arrays, whichever devices of whichever hosts hold their parts."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def local(whole: Mesh) -> Mesh:
    """The part of a mesh that this host holds."""
    own = [device for device in whole.devices.flat if device.process_index == jax.process_index()]
    return whole if len(own) == whole.size else mesh(own)


def share(items: Sequence[T]) -> list[T]:
    """This host's part of a list: every host takes one in turn."""
    index, count = host_shard()
    return list(items[index::count])


def exchange(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What every host brought, on every host, in their order; shapes may differ from one to the next."""
    if jax.process_count() == 1:
        return [dict(arrays)]
    # As bytes, which may be of any number and come through as they are.
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    content = np.frombuffer(file.getvalue(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(content)], np.int32)).reshape(-1)
    padded = np.pad(content, (0, int(lengths.max()) - len(content)))
    found = []
    for length, one in zip(lengths, multihost_utils.process_allgather(padded), strict=True):
        with np.load(io.BytesIO(one[:length].tobytes()), allow_pickle=False) as parts:
            found.append({name: parts[name] for name in parts.files})
    return found


def host_shard() -> tuple[int, int]:
    """(index of this host, number of hosts)."""
    return jax.process_index(), jax.process_count()


def is_primary() -> bool:
    """Whether this host is the one that writes and prints."""
    return jax.process_index() == 0


def any_host(flag: bool) -> bool:
    """Whether the flag is set on any host; all hosts must ask at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def barrier(name: str) -> None:
    """Wait until all hosts are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def compute_dtype(name: str) -> Any:
    """The dtype of the backbone's arithmetic; `auto` is bfloat16 where the hardware multiplies it faster."""
    if name == "auto":
        return jnp.bfloat16 if jax.default_backend() in ("gpu", "tpu") else jnp.float32
    return jnp.dtype(name).type


def check_batch_size(option: str, batch_size: int, mesh: Mesh) -> None:
    """Refuse a batch that cannot be split evenly.

    Raises:
        ValueError: naming the option and the nearest sizes that can.
    """
    num = mesh.size
    if batch_size >= 1 and batch_size % num == 0:
        return
    below = batch_size // num * num
    fitting = f"{below} or {below + num}" if below >= num else f"{num}"
    raise ValueError(f"{option} {batch_size} does not divide over {num} devices: use {fitting}.")
