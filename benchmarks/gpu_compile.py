"""Whole programs compiled for an H100 on a machine without one: memory, and how many seconds of a core that takes.

    python -m venv gpu && gpu/bin/pip install -e . "jax[cuda13]"      # 4.4 GB
    gpu/bin/python benchmarks/gpu_compile.py                          # everything
    gpu/bin/python benchmarks/gpu_compile.py search polish            # programs whose names contain one of these
    gpu/bin/python benchmarks/gpu_compile.py train --hlo dump/        # and keeps the compiled programs as text

Nothing runs on a GPU: XLA is given the card as it describes one itself (h100.txtpb, values from XLA, Apache-2.0).
Nothing is autotuned either, so that on a card compiling takes longer and chooses among more kernels, and no time can be
told from it. What ends the compiler's process here ends it on the card.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import lowered
import tpu_compile
from jax.experimental import topologies
from jax.sharding import Mesh

from cftjax.backbones import transformer
from cftjax.cft import extents, regressions
from cftjax.config import TuningConfig
from cftjax.runtime import devices

CARD = Path(__file__).with_name("h100.txtpb")
# Pixels and images a step.
NETWORKS = {
    "resnet50": (448, 128),
    "resnet101": (448, 128),
    "densenet121": (320, 128),
    "convnext_tiny": (224, 256),
    "vit_base": (224, 256),
    "efficientnet_b0": (224, 256),
    "efficientnet_lite0": (128, 64),
}
# Calls of libraries, by what XLA names them.
LIBRARIES = {"cudnn": "of cuDNN", "cublas": "of cuBLAS", "cusolver": "of cuSOLVER"}


def programs() -> dict[str, Callable[[Mesh], Any]]:
    """Everything, by name."""
    tpu_compile.PLATFORM = "gpu"
    # What is asked of the card, which is not there to answer.
    transformer.has_flash_attention = lambda dtype: dtype == jnp.bfloat16
    coco = tpu_compile.Group(80, 8_278, 300, 8_278, 300)
    found: dict[str, Callable[[Mesh], Any]] = {}
    for recipe, config in (("paper", tpu_compile.PAPER), ("default", TuningConfig())):
        search = functools.partial(tpu_compile.generation, config=config.ga, dim=2048, group=coco)
        found[f"search {recipe}, COCO, 80 categories, a generation"] = search
        polish = functools.partial(tpu_compile.polishing, config=config.polish, dim=2048, group=coco)
        found[f"polish {recipe}, COCO, 80 categories"] = polish
    found["regressions default, COCO, a category"] = functools.partial(regression, known=2 * coco.known)
    found["eigenvectors of 2,048 dimensions"] = functools.partial(eigenvectors, dim=2048)
    for name, (size, batch) in NETWORKS.items():
        words = f"{name} {size} px, batch {batch}"
        found[f"embed {words}"] = lambda mesh, each=(name, size, batch): lowered.embed(mesh, *each)[0]
        found[f"train {words}"] = lambda mesh, each=(name, size, batch): lowered.train(mesh, *each, 80, False)[0]
    return found


def regression(mesh: Mesh, known: int) -> Any:
    """All regressions of one category of the default fine-tuning, learning and judging images together."""
    polish, split, length = TuningConfig().polish, devices.sharded(mesh), extents.padded_length(known)
    # With both spreads, with known labels alone, and towards the start; one lane for each fold, and one for all.
    each = 4 * len(polish.l2) * (polish.folds + 1)
    rows, genes = (1, each, length), polish.dimensions or 2048
    return regressions._program(polish.num_steps, mesh).lower(
        lowered.array((1, length, genes), jnp.float32, split),
        lowered.array((1, length), jnp.bool, split),
        lowered.array(rows, jnp.float32, split),
        lowered.array(rows, jnp.float32, split),
        lowered.array((1, each, genes), jnp.float32, split),
    )


def eigenvectors(mesh: Mesh, dim: int) -> Any:
    """Those of a covariance, from which the discriminant comes in closed form; the commands have NumPy find them."""
    covariance = lowered.array((dim, dim), jnp.float32, devices.replicated(mesh))
    return jax.jit(jnp.linalg.eigh).lower(covariance)


def describe(name: str, lower: Callable[[Mesh], Any], mesh: Mesh, folder: Path | None) -> str:
    """A line of the table."""
    begun = time.process_time()
    program = lower(mesh)
    traced = time.process_time()
    compiled = program.compile()
    took, text = time.process_time() - traced, compiled.as_text()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / (re.sub(r"\W+", "-", name) + ".hlo")).write_text(text)
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    # `__cudnn$convForward`, or `cusolver_syevd_ffi`.
    calls = collections.Counter(re.findall(rf'custom_call_target="_*({"|".join(LIBRARIES)})[$_]', text))
    libraries = ", ".join(f"{number} {LIBRARIES[each]}" for each, number in calls.items())
    fused, sorts = len(re.findall(r" fusion\(", text)), len(re.findall(r" sort\(", text))
    cells = f"{arguments:.2f}", f"{temporaries:.2f}", f"{fused}", f"{sorts}", libraries, f"{traced - begun:.0f}"
    return f"| {' | '.join((name, *cells, f'{took:.0f}'))} |"


def main() -> None:
    """Compile, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="words that occur in the names of the programs wanted")
    parser.add_argument("--hlo", type=Path, help="a folder for the compiled programs as text")
    given = parser.parse_args()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="H100", topology="1x1x1", target_config=CARD.read_text()
    )
    mesh = devices.mesh(topology.devices)
    print("| program | GiB of arguments | of temporaries | kernels | sorts | calls | traced, CPU s | compiled, CPU s |")
    print("|---|---:|---:|---:|---:|---|---:|---:|", flush=True)
    for name, lower in programs().items():
        if not given.names or any(word in name for word in given.names):
            print(describe(name, lower, mesh, given.hlo), flush=True)


if __name__ == "__main__":
    main()
