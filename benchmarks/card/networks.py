"""Steps of training and embedding in bfloat16, one network a process: compiled beside others, timed alone."""

from __future__ import annotations

import functools
import time
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from card.notes import CATEGORIES, SMALL, alone, ceilings, guarded, note, seconds


class Network(NamedTuple):
    """What is timed.

    Attributes:
        library: torch's, that has the same network.
        theirs: its name there.
        size: height and width of the images, in pixels.
        batch: images a step.
    """

    library: str
    theirs: str
    size: int
    batch: int


NETWORKS = {
    "resnet50": Network("torchvision", "resnet50", 448, 128),
    "vit_base": Network("timm", "vit_base_patch16_224", 224, 256),
    "efficientnet_b0": Network("torchvision", "efficientnet_b0", 224, 256),
    "convnext_tiny": Network("torchvision", "convnext_tiny", 224, 256),
    "resnet101": Network("torchvision", "resnet101", 448, 128),
    "densenet121": Network("torchvision", "densenet121", 320, 128),
}
if SMALL:
    NETWORKS = {"small_resnet": Network("timm", "resnet18", 32, 4)}


def products_as_convolutions() -> None:
    """Have 1 x 1 convolutions be convolutions, to see which of the two a card likes."""
    from cftjax.backbones import convolutions
    from cftjax.backbones.convolutions import dense

    product = dense.pointwise_conv

    def pointwise(x: Any, kernel: Any) -> Any:
        if x.ndim != 4:
            return product(x, kernel)
        return convolutions.ordinary_conv(x, kernel[None, None], 1, ((0, 0), (0, 0)))

    for module in (convolutions, dense):
        module.pointwise_conv = pointwise  # pyright: ignore[reportAttributeAccessIssue]


def attention_by_xla() -> None:
    """Have attention be XLA's where it would be cuDNN's."""
    from cftjax.backbones import transformer

    transformer.has_flash_attention = lambda dtype: False


# Another way of doing one thing, timed beside the ordinary one.
VARIANTS = {"convolutions": products_as_convolutions, "xla": attention_by_xla}


def network(words: str) -> None:
    """A network's two steps; `words` is its name, or its name and a variant's."""
    name, _, variant = words.partition("+")
    if variant:
        VARIANTS[variant]()
    import lowered

    from cftjax.runtime import devices

    mesh = devices.mesh()
    _, _, size, batch = NETWORKS[name]
    with futures.ThreadPoolExecutor(2) as pool:
        begun = time.perf_counter()
        made = {
            "train": lowered.train(mesh, name, size, batch, CATEGORIES, remat=False),
            "embed": lowered.embed(mesh, name, size, batch),
        }
        note("seconds to trace", time.perf_counter() - begun)
        forward = 1e-9 * forward_flops(name, size)
        note("GFLOP an image, forward", forward)
        waiting = {kind: pool.submit(built, program) for kind, (program, _) in made.items()}
        ready = {kind: guarded(kind, done.result) for kind, done in waiting.items()}
    # Both in one turn, and the process ends: what a network takes of the card's memory it takes alone.
    with alone():
        for kind, found in ready.items():
            if found is not None:
                note(f"{kind}: seconds to compile, beside others", found[1])
                guarded(kind, timed, kind, found[0], made[kind][1], (size, batch, forward))


def built(program: Any) -> tuple[Any, float]:
    """The compiled program, and the seconds that took."""
    begun = time.perf_counter()
    return program.compile(), time.perf_counter() - begun


def forward_flops(name: str, size: int) -> float:
    """Two a multiply-add of convolutions and products, of one image."""
    import backbone_speed
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from cftjax import backbones
    from cftjax.config import BackboneConfig
    from cftjax.embeddings import embed as embedding

    build = functools.partial(backbones.create, BackboneConfig(name, image_size=size), dtype=jnp.bfloat16)
    graphdef, variables = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    forward = functools.partial(embedding.forward, graphdef)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return backbone_speed.flops(jax.make_jaxpr(forward)(nnx.as_pure(variables), image).jaxpr)


def timed(kind: str, compiled: Any, shapes: Any, extents: tuple[int, int, float]) -> None:
    """Images a second, and the share of the card's arithmetic that they are."""
    import jax
    import jax.numpy as jnp

    from cftjax import types
    from cftjax.runtime import devices

    size, batch, forward = extents
    memory = compiled.memory_analysis()
    note(f"{kind}: GiB", (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30)
    rng = np.random.default_rng(0)
    split = devices.sharded(devices.mesh())
    images = jax.device_put(rng.integers(0, 256, (batch, size, size, 3), np.uint8), split)
    state = filled(shapes, rng)
    if kind == "train":
        known = jnp.asarray(rng.random((batch, CATEGORIES)) < 0.5)
        labels = jnp.asarray(rng.random((batch, CATEGORIES)) < 0.1, jnp.float32)
        given = jax.device_put(types.Batch(images, labels, known, jnp.arange(batch, dtype=jnp.int32)), split)

        def call() -> Any:
            nonlocal state
            state, loss = compiled(state, given)
            return loss
    else:

        def call() -> Any:
            return compiled(state, images)

    took = seconds(call, repeats=3, inner=2 if SMALL else 8)
    note(f"{kind}: images/s", batch / took)
    share = (3 if kind == "train" else 1) * 1e-3 * forward * batch / took / ceilings()["bf16"]
    note(f"{kind}: share of the bf16 peak", share)


def filled(shapes: Any, rng: np.random.Generator) -> Any:
    """Random values in place of shapes, without compiling what draws initial weights."""
    import jax
    import jax.numpy as jnp

    from cftjax.runtime import devices

    def value(path: Any, x: Any) -> Any:
        words = "".join(str(key) for key in path)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if x.dtype == jnp.bool:
            return jnp.ones(x.shape, x.dtype)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        near_one = "var" in words or "scale" in words or "nu" in words
        return jnp.asarray(rng.standard_normal(x.shape, np.float32) * 0.02 + near_one, x.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(value, shapes), devices.replicated(devices.mesh()))
