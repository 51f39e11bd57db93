"""The commands' programs, lowered on shapes: what the compilers' and the card's benchmarks have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cftjax import backbones, types
from cftjax.config import BackboneConfig, TrainingConfig
from cftjax.embeddings import embed as embedding
from cftjax.runtime import devices
from cftjax.training import classifier
from cftjax.training import state as states
from cftjax.training import step as steps
from cftjax.training.classifier import Architecture


def array(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
    """A shape in place of an array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def train(mesh: Mesh, name: str, size: int, batch: int, categories: int, remat: bool) -> tuple[Any, Any]:
    """One step of training in bfloat16, Adam: the lowered program, and its state as shapes."""
    config = BackboneConfig(name, remat=remat, image_size=size)
    model = classifier.abstract(Architecture(config, categories, jnp.bfloat16))
    model = model._replace(normalisation=backbones.preprocessing(config).normalisation)
    spec = states.new_spec(model, TrainingConfig(), 1000, mesh)
    split = devices.sharded(mesh)
    given = types.Batch(
        array((batch, size, size, 3), jnp.uint8, split),
        array((batch, categories), jnp.float32, split),
        array((batch, categories), jnp.bool, split),
        array((batch,), jnp.int32, split),
    )
    step: Any = steps.compiled(spec)
    state = states.abstract_state(spec, model)
    return step.lower(state, given), state


def embed(mesh: Mesh, name: str, size: int, batch: int) -> tuple[Any, Any]:
    """Images to embeddings in bfloat16: the lowered program, and the network's variables as shapes."""
    config = BackboneConfig(name, image_size=size)
    backbone = nnx.eval_shape(lambda: backbones.create(config, nnx.Rngs(0), jnp.bfloat16))
    graphdef, variables = nnx.split(backbone)
    variables = devices.abstract(nnx.as_pure(variables), devices.replicated(mesh))
    images = array((batch, size, size, 3), jnp.uint8, devices.sharded(mesh))
    normalisation = backbones.preprocessing(config).normalisation
    return embedding.forward.lower(graphdef, variables, images, normalisation), variables
