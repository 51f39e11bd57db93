"""Programs of the pipeline lower for TPUs and GPUs, which no test machine has; compiling them needs the vendor's compiler."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import pytest
from flax import nnx

from cftjax import backbones, devices, embedding, metrics, types
from cftjax import train_step as steps
from cftjax.cft import polish, problems, search
from cftjax.config import BackboneConfig, GAConfig, PolishConfig, TrainingConfig, TuningConfig, with_recipe

PLATFORMS = ["tpu", "cuda"]
PAPER = with_recipe(TuningConfig(), "paper")


def array(shape, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def lowered(program, *arguments):
    """The program's text for both platforms; where they differ both branches stand in it."""
    # Keys, optimizer states and rows are trees of types that export would have to be told how to store.
    leaves, tree = jax.tree.flatten(arguments)
    flat = jax.jit(lambda *leaves: jax.tree.leaves(program(*jax.tree.unflatten(tree, leaves))))
    return jax.export.export(flat, platforms=PLATFORMS)(*leaves).mlir_module()


def rows(categories, length, genes, slots):
    kinds = [array((categories, length), kind) for kind in (jnp.float32, jnp.bool, jnp.bool, jnp.bool)]
    return problems.Rows(array((categories, length, genes)), *kinds, slots=slots)


@pytest.mark.parametrize("name", ["small_resnet", "efficientnet_lite0"])
def test_a_training_step_lowers_in_bfloat16(name):
    graphdef, *shapes = steps.abstract_classifier(BackboneConfig(name), 3, jnp.bfloat16)
    spec = steps.new_spec(graphdef, TrainingConfig(), 10, devices.mesh(jax.devices()[:1]))
    batch = types.Batch(array((2, 32, 32, 3)), array((2, 3)), array((2, 3), jnp.bool), array((2,), jnp.int32))
    state = jax.tree.map(lambda x: array(x.shape, x.dtype), steps.abstract_state(spec, *shapes))
    assert "bf16" in lowered(functools.partial(steps.train_step, spec), state, batch)


def test_embedding_lowers():
    build = functools.partial(backbones.create, BackboneConfig("small_resnet"), dtype=jnp.bfloat16)
    graphdef, variables = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    forward = functools.partial(embedding.forward, graphdef)
    assert "convolution" in lowered(forward, nnx.as_pure(variables), array((2, 32, 32, 3)))


@pytest.mark.parametrize("slots", [0, 16], ids=["sorting", "counting"])
@pytest.mark.parametrize("config", [GAConfig(dimensions=4), PAPER.ga], ids=["default", "paper"])
def test_a_chunk_of_the_search_lowers(config, slots):
    num_genes = config.dimensions or 4
    engine = search._Engine(config, num_genes, config.dimensions is None, None)
    train, validation = rows(2, 64, num_genes, slots), rows(2, 64, num_genes, slots)
    key = jax.eval_shape(jax.random.key, 0)
    seeds = array((2, 1, num_genes + (config.dimensions is None)))
    state = jax.eval_shape(engine.start, train, validation, seeds, key)
    text = lowered(engine.advance, state, train, validation, key, array((), jnp.int32))
    # XLA's own sort, and not the network that is a CPU's.
    assert ("stablehlo.sort" in text) == (slots == 0 or config.selection == "truncation")


@pytest.mark.parametrize("config", [PolishConfig(dimensions=4), PAPER.polish], ids=["newton", "adam"])
def test_the_polish_lowers(config):
    assert "while" in lowered(polish._program(config, None), rows(2, 64, 4, 0), rows(2, 64, 4, 16))


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_metrics_lower(metric):
    scores, labels = array((64, 3)), array((64, 3), jnp.bool)
    assert "stablehlo.sort" in lowered(functools.partial(metrics._score, metric=metric), scores, labels, labels)
