"""Networks between image and embedding, by name.

Every backbone is a flax.nnx module with `features(images [n h w 3]) -> [n y x d]`, `embed(images) -> z [n d]` in
float32, which is the mean of the features over height and width (followed, in `small_resnet`, by their maxima), and
`dim`, the number d. `train()` and `eval()` switch it. `grid(image_size)` says where the places of the features lie in
the image; without it they are the cells of an even division.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from cftjax.backbones import efficientnet_lite, pretrained, resnet
from cftjax.config import BackboneConfig
from cftjax.data.preprocessing import Preprocessing
from cftjax.types import Heads


class Family(NamedTuple):
    """One file of this folder.

    Attributes:
        module: called with a shape, dtype, remat and rngs.
        weight_tables: from a shape to the names that its weights have in files.
    """

    module: Callable[..., nnx.Module]
    weight_tables: Callable[[Any], Sequence[pretrained.Table]]


RESNET = Family(resnet.ResNet, resnet.weight_tables)
EFFICIENTNET_LITE = Family(efficientnet_lite.EfficientNetLite, efficientnet_lite.weight_tables)

BACKBONES: dict[str, tuple[Family, Any]] = {
    "small_resnet": (RESNET, resnet.ResNetConfig.small()),
    "resnet18": (RESNET, resnet.ResNetConfig.resnet18()),
    "resnet34": (RESNET, resnet.ResNetConfig.resnet34()),
    "resnet50": (RESNET, resnet.ResNetConfig.resnet50()),
    "resnet101": (RESNET, resnet.ResNetConfig.resnet101()),
    "resnet152": (RESNET, resnet.ResNetConfig.resnet152()),
    "efficientnet_lite0": (EFFICIENTNET_LITE, efficientnet_lite.EfficientNetLiteConfig.lite0()),
    "efficientnet_lite1": (EFFICIENTNET_LITE, efficientnet_lite.EfficientNetLiteConfig.lite1()),
    "efficientnet_lite2": (EFFICIENTNET_LITE, efficientnet_lite.EfficientNetLiteConfig.lite2()),
}


def _find(name: str) -> tuple[Family, Any]:
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(BACKBONES)}."
        raise ValueError(f"no backbone is named {name!r}: {hint}")
    return BACKBONES[name]


def create(config: BackboneConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> Any:
    """A backbone with random weights.

    Args:
        config: its name, and whether it computes activations again in the backward pass.
        rngs: of the initial weights.
        dtype: of the arithmetic; parameters are float32.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    family, shape = _find(config.name)
    return family.module(shape, dtype=dtype, remat=config.remat, rngs=rngs)


def load_weights(backbone: nnx.Module, config: BackboneConfig) -> Heads | None:
    """Replace a backbone's weights by the pretrained ones, where the configuration names some.

    Returns:
        The classifier that came with them, if one did.

    Raises:
        ValueError: where they cannot be read or are those of another architecture.
    """
    if config.weights is None:
        return None
    family, shape = _find(config.name)
    return pretrained.load_into(backbone, config.weights, family.weight_tables(shape))


def preprocessing(config: BackboneConfig) -> Preprocessing:
    """What images go through before this backbone: as its weights were trained, or as is usual for it."""
    default: Preprocessing = _find(config.name)[1].preprocessing
    return default if config.weights is None else pretrained.preprocessing(config.weights, default)
