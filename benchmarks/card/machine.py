"""What is there, and its ceilings."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import subprocess
import sys
import time

from card.notes import SMALL, alone, ms, note, seconds

PACKAGES = (
    "cftjax jax jaxlib jax-cuda13-plugin flax optax orbax-checkpoint evosax grain tyro numpy scipy scikit-learn "
    "jaxtyping beartype torch torchvision timm mlcpl pytest pytest-xdist pillow pyarrow"
)


def versions() -> None:
    """Packages, the card, and whether JAX sees it."""
    there = {}
    for name in PACKAGES.split():
        try:
            there[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            there[name] = None
    note("packages", there)
    note("python", sys.version.split()[0])
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem,power.limit"
        asked = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
        note("nvidia-smi", asked.stdout.strip())
    begun = time.perf_counter()
    import jax

    note("devices", [str(device) for device in jax.devices()])
    note("kind", jax.devices()[0].device_kind)
    note("seconds to the first device", time.perf_counter() - begun)
    note("bytes that JAX may take, GiB", (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0) / 2**30)


def peak() -> None:
    """Products, copies, transfers; what a float32 product costs and loses in each precision."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    n = 256 if SMALL else 8192
    a, b = (jax.random.normal(key, (n, n), jnp.float32) for key in jax.random.split(jax.random.key(0)))
    low = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    with alone():
        note("bf16 product, TFLOP/s", 2e-12 * n**3 / seconds(lambda: product(*low), inner=10))
        x = jax.random.bits(jax.random.key(1), (2**16 if SMALL else 2**30,), jnp.uint32)
        copy = functools.partial(jax.jit(lambda x: x ^ jnp.uint32(1)), x)
        note("copy, GB/s", 2e-9 * x.nbytes / seconds(copy, inner=5))
        del x, copy
    few = np.asarray(a[:64], np.float64) @ np.asarray(b, np.float64)
    for name in ("default", "highest", *(() if SMALL else ("TF32_TF32_F32_X3", "BF16_BF16_F32_X6"))):
        way = jax.jit(functools.partial(jnp.matmul, precision=name))
        jax.block_until_ready(way(a, b))
        with alone():
            note(f"float32 product, {name}, TFLOP/s", 2e-12 * n**3 / seconds(lambda way=way: way(a, b), inner=3))
        error = np.linalg.norm(np.asarray(way(a, b)[:64], np.float64) - few) / np.linalg.norm(few)
        note(f"float32 product, {name}, relative error", float(error))
    z = np.ones(2**16 if SMALL else 2**28, np.float32)
    with alone():
        begun = time.perf_counter()
        jax.device_put(z).block_until_ready()
        note("host to device, GB/s", 1e-9 * z.nbytes / (time.perf_counter() - begun))
    rankings, entries = (50, 512) if SMALL else (4000, 10240)
    keys = jax.random.bits(jax.random.key(2), (rankings, entries), jnp.uint32).astype(jnp.int32)
    ways = {
        "sorted": lambda x: jax.lax.sort(x, dimension=1, is_stable=False),
        "summed": lambda x: jax.lax.cumsum(x, axis=1),
        "highest so far": lambda x: jax.lax.cummax(x, axis=1),
    }
    for name, way in ways.items():
        ms(f"{rankings} rows of {entries} {name}", functools.partial(jax.jit(way), keys))
