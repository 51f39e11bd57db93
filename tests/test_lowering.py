"""Programs of the pipeline lower for TPUs and GPUs, which no test machine has; compiling them takes more."""

import functools
import itertools
import re

import jax
import jax.export
import jax.numpy as jnp
import pytest
from flax import nnx

from cftjax import backbones, metrics, types
from cftjax.backbones import convolutions, dinov3, siglip, vit
from cftjax.cft import evolution, packing, polish
from cftjax.config import BackboneConfig, GAConfig, PolishConfig, TrainingConfig, TuningConfig, with_recipe
from cftjax.embeddings import embed
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import devices
from cftjax.training import classifier
from cftjax.training import state as states
from cftjax.training import step as steps
from cftjax.training.classifier import Architecture

PLATFORMS = ["tpu", "cuda"]
PAPER = with_recipe(TuningConfig(), "paper")
NORMALISATION = Preprocessing(32).normalisation


def array(shape, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def lowered(program, *arguments):
    """The program's text for both platforms; where they differ both branches stand in it."""
    # Optimizer states are trees of types that export would have to be told how to store.
    leaves, tree = jax.tree.flatten(arguments)
    flat = jax.jit(lambda *leaves: jax.tree.leaves(program(*jax.tree.unflatten(tree, leaves))))
    return jax.export.export(flat, platforms=PLATFORMS)(*leaves).mlir_module()


def columns(categories=2, length=64, genes=4):
    """The arrays of `problems.Rows`."""
    kinds = (jnp.float32, jnp.bool, jnp.bool, jnp.int32)
    return [array((categories, length, genes)), *(array((categories, length), kind) for kind in kinds)]


@pytest.fixture(params=["small_resnet", "tiny_vit", "tiny_dinov3", "tiny_siglip"])
def network(request, monkeypatch):
    """A backbone's name, of each kind: convolutions, attention, with rotations, and with a query that sums up."""
    tiny_dinov3, tiny_siglip = dinov3.DINOv3Config(8, 1, 2, hidden=16), siglip.SigLIPConfig(8, 1, 2, 16, image_size=32)
    monkeypatch.setitem(backbones.BACKBONES, "tiny_vit", (backbones.VIT, vit.ViTConfig(8, 1, 2, image_size=32)))
    monkeypatch.setitem(backbones.BACKBONES, "tiny_dinov3", (backbones.DINOV3, tiny_dinov3))
    monkeypatch.setitem(backbones.BACKBONES, "tiny_siglip", (backbones.SIGLIP, tiny_siglip))
    return request.param


def test_a_training_step_lowers_in_bfloat16(network):
    model = classifier.abstract(Architecture(BackboneConfig(network, image_size=32), 3, jnp.bfloat16))
    model = model._replace(normalisation=NORMALISATION)
    spec = states.new_spec(model, TrainingConfig(), 10, devices.mesh(jax.devices()[:1]))
    pixels, hidden = array((2, 32, 32, 3), jnp.uint8), array((2, 4), jnp.int32)
    batch = types.Batch(pixels, array((2, 3)), array((2, 3), jnp.bool), array((2,), jnp.int32), None, hidden)
    state = jax.tree.map(lambda x: array(x.shape, x.dtype), states.abstract_state(spec, model))
    text = lowered(functools.partial(steps.train_step, spec), state, batch)
    assert "bf16" in text
    # Heads are what the search begins with: of the last layer's product, its gradients included, nothing is rounded.
    last = re.findall(r"dot_general.*: \(tensor<[\dx]*xf32>, tensor<[\dx]*xf32>\)", text)
    assert len(last) >= 3
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in last)


def test_the_gradient_of_a_depthwise_convolution_is_a_grouped_convolution_there():
    def total(x, kernel):
        return jnp.sum(convolutions.depthwise_conv(x, kernel))

    text = lowered(jax.grad(total, argnums=(0, 1)), array((2, 8, 8, 16)), array((3, 3, 16)))
    assert "feature_group_count = 16" in text


def read_by_products(text):
    """The operations that a lowered program's matrix products read through nothing but changes of shape."""
    made = dict(re.findall(r"(%\w+) = \"?stablehlo\.(\w+)", text))
    inputs = dict(re.findall(r"(%\w+) = stablehlo\.(?:reshape|convert) (%\w+)", text))
    # What the branch of a choice of platform returns; those that choose the branch return constants.
    inputs |= dict(re.findall(r"(%\w+) = \"stablehlo\.case\".*\n(?:.* = .*\n)*? *stablehlo\.return (%\w+)", text))
    # The whole array's turn for a kernel's gradient is part of the product.
    inputs |= dict(re.findall(r"(%\w+) = stablehlo\.transpose (%\w+), dims = \[1, 0\]", text))
    found = set()
    for operand in itertools.chain(*re.findall(r"stablehlo\.dot_general (%\w+), (%\w+),", text)):
        while operand in inputs:
            operand = inputs[operand]
        found.add(made.get(operand, "argument"))
    return found


@pytest.mark.parametrize(("kernel", "padding"), [(1, "symmetric"), (2, "none")], ids=["strided", "tiled"])
def test_no_product_on_a_gpu_reads_pixels_that_were_cut_or_reordered(kernel, padding):
    def total(x, weights):
        return jnp.sum(convolutions.conv(x, weights, stride=2, padding=padding) ** 2)

    program = jax.jit(jax.grad(total, argnums=(0, 1)))
    arguments = array((2, 8, 8, 4)), array((kernel, kernel, 4, 6))
    texts = {name: jax.export.export(program, platforms=[name])(*arguments).mlir_module() for name in PLATFORMS}
    assert all("dot_general" in text for text in texts.values())
    moved = {"slice", "transpose"}
    assert not read_by_products(texts["cuda"]) & moved
    assert read_by_products(texts["cuda"]) >= {"optimization_barrier"}
    assert read_by_products(texts["tpu"]) & moved


def test_embedding_lowers_in_bfloat16(network):
    config = BackboneConfig(network, image_size=32)
    build = functools.partial(backbones.create, config, dtype=jnp.bfloat16)
    graphdef, variables = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    forward = functools.partial(embed.forward.__wrapped__, graphdef, normalisation=NORMALISATION)
    text = lowered(forward, nnx.as_pure(variables), array((2, 32, 32, 3), jnp.uint8))
    products = re.findall(
        r"stablehlo.(?:dot_general|convolution).*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text
    )
    assert set(products) == {("bf16", "bf16")}


@pytest.mark.parametrize("slots", [0, 16], ids=["sorting", "counting"])
@pytest.mark.parametrize("config", [GAConfig(dimensions=4, row_share=0.5), PAPER.ga], ids=["default", "paper"])
def test_the_search_lowers(config, slots):
    whole = config.dimensions is None
    engine = evolution.Engine(config, 4, whole, None)

    def program(train, validation, seeds, words, limit):
        train, validation = (packing.Rows(*rows, slots=slots) for rows in (train, validation))
        key = jax.random.wrap_key_data(words)
        return engine.advance(engine.start(train, validation, seeds, key), train, validation, key, limit)

    seeds, words = array((2, 1, 4 + whole)), array((2,), jnp.uint32)
    text = lowered(program, columns(), columns(), seeds, words, array((), jnp.int32))
    # Scores are ranked by XLA's own sort where there are no slots, and parents by one where the best of them breed.
    assert ("stablehlo.sort" in text) == (slots == 0 or config.selection == "truncation")
    # What counts on a TPU is a product of whole numbers.
    assert bool(re.search(r"dot_general.*xi8>.*xi32>", text)) == (slots > 0)


@pytest.mark.parametrize("config", [PolishConfig(dimensions=4), PAPER.polish], ids=["lbfgs", "adam"])
def test_the_polish_lowers(config):
    def program(train, validation):
        return polish._program(config, None)(packing.Rows(*train, slots=0), packing.Rows(*validation, slots=16))

    text = lowered(program, columns(), columns())
    assert "stablehlo.while" in text
    products = re.findall(r"dot_general.*xf32>.*", text)
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products if "i32" not in product)


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_metrics_lower(metric):
    scores, labels = array((64, 3)), array((64, 3), jnp.bool)
    assert "stablehlo.sort" in lowered(functools.partial(metrics._score, metric=metric), scores, labels, labels)
