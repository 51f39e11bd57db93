"""Whole programs compiled for TPUs on a machine without one: memory, arithmetic, and what bounds each.

    python -m venv tpu && tpu/bin/pip install -c constraints.txt -e . "jax[tpu]"
    tpu/bin/python benchmarks/tpu_compile.py                        # everything, an hour on two cores
    tpu/bin/python benchmarks/tpu_compile.py search polish          # programs whose names contain one of these
    tpu/bin/python benchmarks/tpu_compile.py train --hlo dump/      # and keeps the compiled programs as text
    tpu/bin/python benchmarks/tpu_compile.py --largest              # the largest batches that fit one chip

Nothing runs on a TPU: the compiler of libtpu is given shapes in place of arrays and says what each program needs. Every
line is one program, as one chip of so many sees it:

- GB: arguments, results that reuse none of them, and temporaries, of the 16 GB of a chip;
- GFLOP and GB moved: as the compiler counts them;
- floor: the longer of what arithmetic and memory take at the speed of the data sheet, and which of them it is;
- compiler: what the compiler's own model of every operation adds up to. It knows nothing of sorts (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Before JAX is imported: what a machine without a TPU must pretend, and that only shapes go there.
os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}
os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import lowered
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec
from lowered import array

from cftjax.cft import evolution, extents, packing, polish
from cftjax.config import EmbedConfig, GAConfig, PolishConfig, TuningConfig, with_recipe
from cftjax.runtime import devices

# Of one v5e chip: bfloat16 operations and bytes a second, bytes of memory, cycles a second.
FLOPS, BANDWIDTH, MEMORY, CLOCK = 197e12, 819e9, 16 * 2**30, 1.5e9
NETWORKS = ("resnet101", "vit_base")
PAPER = with_recipe(TuningConfig(), "paper")
COMPILER_OPTIONS: dict[str, Any] = {}
# `gpu_compile.py` compiles the same programs for another.
PLATFORM = "tpu"


class Program(NamedTuple):
    """Something to compile.

    Attributes:
        name: for the table.
        chips: over which it is split.
        lower: mesh -> what `compile` takes.
        times: how often the pipeline runs it, for the last column.
        unit: what one of these times is.
    """

    name: str
    chips: int
    lower: Callable[[Mesh], Any]
    times: int
    unit: str


def rows(mesh: Mesh, categories: int, known: int, genes: int, positives: int) -> packing.Rows:
    """Packed rows of a group of categories, as `problems.rows_of` would make them on a TPU."""
    length, split = extents.padded_length(known), devices.sharded(mesh)
    per_row = (categories, length)
    return packing.Rows(
        array((*per_row, genes), jnp.float32, split),
        array(per_row, jnp.float32, split),
        *(array(per_row, jnp.bool, split) for _ in range(3)),
        slots=extents.positive_slots(positives, length, PLATFORM),
    )


class Group(NamedTuple):
    """Categories that are searched side by side.

    Attributes:
        categories: how many, over all chips.
        known: known training rows of each.
        positives: of them.
        validation: known validation rows of each.
        validation_positives: of them.
    """

    categories: int
    known: int
    positives: int
    validation: int
    validation_positives: int


def generation(mesh: Mesh, config: GAConfig, dim: int, group: Group) -> Any:
    """One generation of the search: of a loop, the compiler would not say how often it runs."""
    genes = config.dimensions or dim
    has_bias = config.dimensions is None
    engine = evolution.Engine(config, genes, has_bias, mesh)
    categories, known, positives, validation, validation_positives = group
    train_rows = rows(mesh, categories, known, genes, positives)
    judging = rows(mesh, categories, validation, genes, validation_positives)
    split, everywhere = devices.sharded(mesh), devices.replicated(mesh)
    key = array((), jax.eval_shape(jax.random.key, 0).dtype, everywhere)
    seeds = array((categories, 1, genes + has_bias), jnp.float32, split)
    state = devices.abstract(jax.eval_shape(engine.start, train_rows, judging, seeds, key), split)
    over, all_of_it = PartitionSpec("data"), PartitionSpec()
    one = jax.shard_map(
        engine._generation, mesh=mesh, in_specs=(over, over, all_of_it, over), out_specs=over, check_vma=False
    )
    return jax.jit(one, donate_argnums=3).lower(train_rows, judging, key, state)


def polishing(mesh: Mesh, config: PolishConfig, dim: int, group: Group) -> Any:
    """The polish of a group of categories, from rows to heads."""
    genes = config.dimensions or dim
    train_rows = dataclasses.replace(rows(mesh, group.categories, group.known, genes, 1), slots=0)
    judging = rows(mesh, group.categories, group.validation, genes, group.validation_positives)
    return polish._program(config, mesh).lower(train_rows, judging)


def training(name: str, chips: int, batch: int, remat: bool) -> Program:
    """A step at 448 pixels and 80 categories."""

    def run(mesh: Mesh) -> Any:
        return lowered.train(mesh, name, 448, batch, 80, remat)[0]

    words = f"train {name} 448 px, batch {batch}{', remat' * remat}"
    return Program(words, chips, run, 82_783 // batch, "epoch of MS-COCO")


def embedded(name: str, chips: int, batch: int) -> Program:
    """A step at 448 pixels."""

    def run(mesh: Mesh) -> Any:
        return lowered.embed(mesh, name, 448, batch)[0]

    return Program(f"embed {name} 448 px, batch {batch}", chips, run, 82_783 // batch, "MS-COCO")


def programs() -> list[Program]:
    """Everything there is, of the published size: ResNet-101 at 448 pixels, MS-COCO with 10 % known, Open Images V3."""
    found = []
    for name in NETWORKS:
        for chips, batch, remat in ((8, 128, False), (8, 1024, False), (8, 1024, True), (1, 64, False)):
            found.append(training(name, chips, batch, remat))
        for chips in (8, 1):
            found.append(embedded(name, chips, EmbedConfig().batch_size * chips))

    coco = Group(80, 8_278, 300, 8_278, 300)
    half = coco._replace(categories=40)
    # 9 M verified labels over 5,000 categories; a fifth of the categories at a time.
    open_images = Group(1_000, 1_800, 400, 512, 32)
    for recipe, config in (("paper", PAPER), ("default", TuningConfig())):
        for words, chips, group in (
            ("COCO, 80 categories", 8, coco),
            ("COCO, 40 categories", 1, half),
            ("Open Images, 1,000 categories", 8, open_images),
        ):
            run = functools.partial(generation, config=config.ga, dim=2048, group=group)
            found.append(
                Program(f"search {recipe}, {words}, a generation", chips, run, config.ga.num_generations, "them")
            )
            # L-BFGS's steps are not counted one by one; of Adam's loop one step is.
            run = functools.partial(polishing, config=config.polish, dim=2048, group=group)
            found.append(Program(f"polish {recipe}, {words}", chips, run, 0, ""))
    return found


def cycles(text: str) -> dict[str, int]:
    """Operation -> the compiler's estimate, from a compiled program as text."""
    found = {}
    for line in text.splitlines():
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        name = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+)", line)
        if estimate and name:
            found[f"{name[1]} {name[2]}"] = int(estimate[1])
    return found


def compiled_for(program: Program, topology: Any) -> Any:
    """The compiled program, or the compiler's words where it does not fit."""
    mesh = devices.mesh(topology.devices[: program.chips])
    try:
        return program.lower(mesh).compile(COMPILER_OPTIONS)
    except Exception as error:
        # Too large a program is an answer.
        used = re.search(r"Used ([\d.]+[MG]) of ([\d.]+[MG])", str(error)) or re.search(
            r"temporaries \(([\d.]+[MG])\) exceeds available HBM \(([\d.]+[MG])\)", str(error)
        )
        if used is None:
            raise
        return f"{used[1]} of {used[2]}: does not fit"


def largest(make: Callable[[int], Program], topology: Any, step: int = 16) -> int:
    """The largest multiple of `step` images that fits, 0 if none does, by doubling and bisection."""

    def fits(batch: int) -> bool:
        found = compiled_for(make(batch), topology)
        print(f"    {make(batch).name}: {found if isinstance(found, str) else 'fits'}", flush=True)
        return not isinstance(found, str)

    good, bad = 0, 4 * step
    while fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > step:
        middle = (good + bad) // (2 * step) * step
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def describe(program: Program, topology: Any, folder: Path | None, longest: int) -> str:
    """A line of the table."""
    begun = time.process_time()
    compiled = compiled_for(program, topology)
    if isinstance(compiled, str):
        return f"| {program.name} | {program.chips} | {compiled} | | | | | | |"
    took, text = time.process_time() - begun, compiled.as_text()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / (re.sub(r"\W+", "-", f"{program.name} {program.chips}") + ".hlo")).write_text(text)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    arithmetic, moved = cost["flops"] / FLOPS, cost["bytes accessed"] / BANDWIDTH
    floor, bound = max((arithmetic, "flops"), (moved, "bytes"))
    estimates = cycles(text)
    estimate = sum(estimates.values()) / CLOCK
    for name, each in sorted(estimates.items(), key=lambda item: -item[1])[:longest]:
        print(f"    {each / CLOCK * 1e3:10.3f} ms  {name}", flush=True)
    cells = (
        program.name,
        f"{program.chips}",
        f"{used / 2**30:.2f}",
        f"{cost['flops'] / 1e9:,.1f}",
        f"{cost['bytes accessed'] / 1e9:,.2f}",
        f"{1e3 * floor:,.3f} ({bound})",
        f"{1e3 * estimate:,.3f}",
        f"{estimate * program.times:.0f} s for {program.unit}" if program.times else "",
        f"{took:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Compile, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="words that occur in the names of the programs wanted")
    parser.add_argument("--chips", type=int, help="only programs for so many")
    parser.add_argument("--hlo", type=Path, help="a folder for the compiled programs as text")
    parser.add_argument(
        "--largest", action="store_true", help="print what fits one chip, training with and without remat"
    )
    parser.add_argument("--longest", type=int, default=0, help="print so many operations of each that take longest")
    arguments = parser.parse_args()
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    if arguments.largest:
        for name, remat in itertools.product(NETWORKS, (False, True)):
            if not arguments.names or any(word in name for word in arguments.names):
                found = largest(functools.partial(training, name, 1, remat=remat), topology)
                print(f"{name}{', remat' * remat}: {found} images of 448 pixels a chip", flush=True)
        return
    print(
        "| program | chips | GB a chip | GFLOP | GB moved | floor, ms | compiler, ms | all of it | compiled in, CPU s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for program in programs():
        wanted = not arguments.names or any(word in program.name for word in arguments.names)
        if wanted and arguments.chips in (None, program.chips):
            print(describe(program, topology, arguments.hlo, arguments.longest), flush=True)


if __name__ == "__main__":
    main()
