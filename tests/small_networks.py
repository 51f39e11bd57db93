"""One network of reduced size per family, and what its weights are called where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from drawn_weights import draw
from flax import nnx

from cftjax import backbones
from cftjax.backbones import convnext, densenet, dinov3, efficientnet, pretrained, resnet, siglip, vit

Stage = efficientnet.Stage
EfficientNet = efficientnet.EfficientNetConfig

GOLDEN = Path(__file__).parent / "golden"
# As benchmarks/torch_backbones.py builds them in torch, and saves their logits.
SMALL = {
    "resnet": (backbones.RESNET, resnet.ResNetConfig((64, 8, 8, 8), (1, 1, 1, 1), bottleneck=True)),
    "densenet": (backbones.DENSENET, densenet.DenseNetConfig((2, 2), 4, 8)),
    "efficientnet": (
        backbones.EFFICIENTNET,
        EfficientNet(stages=(Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 4, 16)), stem=8, head=24),
    ),
    "efficientnet_lite": (
        backbones.EFFICIENTNET,
        EfficientNet(
            stages=(Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 4, 16), Stage(1, 3, 1, 4, 24)), stem=8, head=24, lite=True
        ).original(),
    ),
    "efficientnet_v2": (
        backbones.EFFICIENTNET,
        EfficientNet(
            stages=(Stage(1, 3, 1, 1, 8, fused=True), Stage(1, 3, 2, 4, 8, fused=True), Stage(1, 3, 2, 4, 16)),
            stem=8,
            head=24,
        ).original(),
    ),
    "convnext": (backbones.CONVNEXT, convnext.ConvNeXtConfig((8, 16), (1, 1))),
    "vit": (backbones.VIT, vit.ViTConfig(16, 2, 2, patch=8, image_size=24)),
    "dinov2": (
        backbones.VIT,
        vit.ViTConfig(16, 2, 2, patch=8, image_size=24, registers=2, layer_scale=1e-5, class_position=False),
    ),
    # By the names of transformers and torchxrayvision, and timm's of what has other layers there.
    "densenet_xrv": (backbones.DENSENET, densenet.DenseNetConfig((2, 2), 4, 8, grey=True)),
    "convnext_transformers": (backbones.CONVNEXT, convnext.ConvNeXtConfig((8, 8, 16, 16), (1, 1, 1, 1))),
    "dinov2_transformers": (backbones.VIT, vit.ViTConfig(16, 2, 2, patch=8, image_size=24, layer_scale=1e-5)),
    "dinov2_registers_transformers": (
        backbones.VIT,
        vit.ViTConfig(16, 2, 2, patch=8, image_size=24, registers=2, layer_scale=1e-5, class_position=False),
    ),
    "dinov3": (backbones.DINOV3, dinov3.DINOv3Config(16, 2, 2, hidden=64, patch=8, registers=2)),
    "dinov3_gated": (backbones.DINOV3, dinov3.DINOv3Config(16, 2, 2, hidden=64, gated=True, patch=8, registers=2)),
    "siglip": (backbones.SIGLIP, siglip.SigLIPConfig(16, 2, 2, hidden=40, patch=8, image_size=24)),
    "siglip_timm": (backbones.SIGLIP, siglip.SigLIPConfig(16, 2, 2, hidden=40, patch=8, image_size=24)),
}


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def small(name, **options):
    """A small network with torch's weights, and the classifier among them."""
    family, config = SMALL[name]
    # Shapes only: drawing real ones layer by layer would take most of the tests' time.
    net = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0), **options))
    for variable in jax.tree.leaves(nnx.state(net), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        assert variable.get_value().dtype == jnp.float32
    arrays = {array: draw(array, shape) for array, shape in golden(name)["shapes"].items()}
    heads = pretrained.apply(net, arrays, pretrained.fitting(arrays, family.weight_tables(config)))
    net.eval()
    return net, heads


def same_variables(one, other):
    for got, value in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(got, value)
