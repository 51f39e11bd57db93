"""The search and the whole fine-tuning at MS-COCO's size, and what a generation is made of."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from card.notes import CATEGORIES, DIM, POPULATION, ROWS, SMALL, ceilings, guarded, ms, note


def pieces() -> None:
    """Scores of a population, their ranking, and one candidate's validation, each in several ways."""
    import jax
    import jax.numpy as jnp

    from cftjax.cft import extents, packing

    length = extents.padded_length(ROWS)
    z = jax.jit(lambda key: jnp.maximum(jax.random.normal(key, (CATEGORIES, length, DIM)), 0))(jax.random.key(0))
    genes = 0.02 * jax.random.normal(jax.random.key(1), (CATEGORIES, POPULATION, DIM))
    note("one split read once, ms", 1e-6 * z.nbytes / ceilings()["copy"])
    ways: dict[str, Any] = {"HIGHEST": jax.lax.Precision.HIGHEST}
    if not SMALL:
        ways |= {name: jax.lax.DotAlgorithmPreset[name] for name in ("TF32_TF32_F32_X3", "BF16_BF16_F32_X6")}
    scores: Any = None

    def product(name: str) -> Any:
        program = jax.jit(functools.partial(jnp.einsum, "gpr,gkr->gpk", precision=ways[name]))
        ms(f"scores, {name}", lambda: program(genes, z))
        found = program(genes, z)
        if scores is not None:
            error = jnp.linalg.norm(found - scores) / jnp.linalg.norm(scores)
            note(f"scores, {name}: difference from HIGHEST", float(error))
        return found

    for name in ways:
        found = guarded(f"scores, {name}", product, name)
        scores = found if scores is None else scores

    def ranked(metric: Any, positives: int, slots: int) -> None:
        place = jnp.arange(length)[None]
        labels = jnp.broadcast_to(place < positives, (CATEGORIES, length))
        where = jnp.broadcast_to(place < ROWS, (CATEGORIES, length))
        program = jax.jit(functools.partial(packing.ranking_scores, metric, slots=slots))
        way = f"counted, {slots} slots" if slots else "sorted"
        ms(
            f"{metric} of {POPULATION} x {CATEGORIES}, {positives} positives, {way}",
            lambda: program(scores, labels, where),
        )

    few, many = (60, 200) if SMALL else (300, 2000)
    cases = (
        ("AP", few, 0),
        ("AUROC", few, 0),
        ("AP", many, 0),
        ("AP", 120, 128),
        ("AP", few, 384),
        ("AUROC", few, 384),
    )
    for case in cases:
        guarded(f"ranking {case}", ranked, *case)
    vector = jax.jit(functools.partial(jnp.einsum, "gpr,gkr->gpk", precision="highest"))
    ms("scores of one candidate", lambda: vector(genes[:, :1], z))


def search() -> None:
    """The published search: packing, transfers, all shapes, compilation, then generations."""
    import generated
    import jax
    import numpy as np

    from cftjax.cft import search as searching
    from cftjax.config import TuningConfig, with_recipe

    counted = compilations()
    generations = 50 if SMALL else 300
    paper = with_recipe(TuningConfig(), "paper").ga
    config = dataclasses.replace(paper, num_generations=generations, patience=generations)
    rng = np.random.default_rng(0)
    z, labels = generated.features(2 * ROWS, DIM, CATEGORIES, rng, (0.0015 if not SMALL else 0.05, 0.55))
    # Known rows alone: those that are not known cost the search nothing.
    train, validation = (generated.split(z[rows], labels[rows], 2.0, rng) for rows in (slice(ROWS), slice(ROWS, None)))
    heads = generated.negative_heads(train)
    stamps = [(time.perf_counter(), 0)]

    def progress(done: int, total: int, score: float) -> None:
        stamps.append((time.perf_counter(), done))

    result = searching.search(heads, train, validation, key=jax.random.key(0), config=config, progress=progress)
    note("seconds, all", time.perf_counter() - stamps[0][0])
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(stamps)]
    # The first chunk of a group packs, copies and compiles.
    steady = sorted(took / number for took, number in gaps if number)
    note("ms a generation of all categories, steady", 1e3 * CATEGORIES * statistics.median(steady))
    note("floor: both splits read once, ms", 2e-6 * 4 * CATEGORIES * ROWS * DIM / ceilings()["copy"])
    note("validation AP before and after", [float(np.nanmean(x)) for x in (result.before, result.after)])
    note("programs compiled, and their seconds", [len(counted), sum(counted)])
    note("longest", sorted(counted)[-6:])
    note("GiB at most", peak_memory())


def fine_tuning() -> None:
    """The whole default recipe on 82,783 x 2048 embeddings, 80 categories, 10 % known: by stages."""
    import search_at_coco_size as coco

    counted = compilations()
    size = coco.Size(600, 48, 5) if SMALL else coco.Size()
    with tempfile.TemporaryDirectory() as folder:
        train, validation, heads = coco.make(size, Path(folder))
        begun = time.perf_counter()
        seconds, _ = coco.tune(train, validation, heads)
        note("seconds, all", time.perf_counter() - begun)
    note("seconds by stage", seconds)
    note("programs compiled, and their seconds", [len(counted), sum(counted)])
    note("longest", sorted(counted)[-6:])
    note("GiB at most", peak_memory())


def compilations() -> list[float]:
    """A list that grows by the seconds of every program that XLA compiles from now on."""
    import jax

    seconds: list[float] = []

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)
    return seconds


def peak_memory() -> float:
    """GiB that JAX had at most on the first device; 0 where it does not say."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
