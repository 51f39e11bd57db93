"""Networks between image and embedding, by name.

`Backbone` is what every one of them is, and `NetworkShape` what its settings are. A new family is a file of this folder
and its lines in `BACKBONES`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from cftjax.backbones import convnext, densenet, described, dinov3, efficientnet, pretrained, resnet, siglip, vit
from cftjax.config import BackboneConfig
from cftjax.input.preprocessing import Preprocessing
from cftjax.types import Heads

# From the image to the embedding: the stem, each block, and last what follows the blocks. A group is a tuple of dotted
# names, each of a parameter or of all those below it, such as `blocks.3`.
DepthGroups = tuple[tuple[str, ...], ...]


@runtime_checkable
class Embedder(Protocol):
    """A flax.nnx module that makes a vector of every image."""

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        ...

    def train(self, **attributes: Any) -> None:
        """Normalise by the batch from here on."""
        ...

    def eval(self, **attributes: Any) -> None:
        """Normalise by running statistics from here on."""
        ...


@runtime_checkable
class Backbone(Embedder, Protocol):
    """A network between image and embedding.

    Its features may lie in the image in other places than the cells of an even division: then it has
    `grid(image_size)` as well, which gives the pixels between two places and the pixel at the middle of the first.

    Attributes:
        dim: the length d of an embedding.
    """

    dim: int

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x _"]:
        """Feature maps, which heatmaps read, and which `embed` pools unless the embedding is a class token."""
        ...

    def depth_groups(self) -> DepthGroups:
        """Which parameters lie how deep, for layer decay: every parameter is in one group."""
        ...


@runtime_checkable
class NetworkShape(Protocol):
    """The settings of a network: a frozen dataclass with a named constructor for each published size."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What images go through where no weights say otherwise."""
        ...


class Family(NamedTuple):
    """One file of this folder.

    Attributes:
        module: called with a shape, pooling, dtype, remat and rngs.
        weight_tables: from a shape to the names that its weights have in files.
    """

    module: Callable[..., Backbone]
    weight_tables: Callable[[Any], Sequence[pretrained.Table]]


RESNET = Family(resnet.ResNet, resnet.weight_tables)
DENSENET = Family(densenet.DenseNet, densenet.weight_tables)
EFFICIENTNET = Family(efficientnet.efficientnet, efficientnet.weight_tables)
CONVNEXT = Family(convnext.ConvNeXt, convnext.weight_tables)
VIT = Family(vit.ViT, vit.weight_tables)
DINOV3 = Family(dinov3.DINOv3, dinov3.weight_tables)
SIGLIP = Family(siglip.SigLIP, siglip.weight_tables)

_resnet, _densenet, _efficientnet = resnet.ResNetConfig, densenet.DenseNetConfig, efficientnet.EfficientNetConfig
_convnext, _vit, _dinov3, _siglip = convnext.ConvNeXtConfig, vit.ViTConfig, dinov3.DINOv3Config, siglip.SigLIPConfig

BACKBONES: dict[str, tuple[Family, NetworkShape]] = {
    "small_resnet": (RESNET, _resnet.small()),
    "resnet18": (RESNET, _resnet.resnet18()),
    "resnet34": (RESNET, _resnet.resnet34()),
    "resnet50": (RESNET, _resnet.resnet50()),
    "resnet101": (RESNET, _resnet.resnet101()),
    "resnet152": (RESNET, _resnet.resnet152()),
    "densenet121": (DENSENET, _densenet.densenet121()),
    "densenet161": (DENSENET, _densenet.densenet161()),
    "densenet169": (DENSENET, _densenet.densenet169()),
    "densenet201": (DENSENET, _densenet.densenet201()),
    "xrv_densenet121": (DENSENET, _densenet.densenet121().xrv()),
    "efficientnet_lite0": (EFFICIENTNET, _efficientnet.lite0()),
    "efficientnet_lite1": (EFFICIENTNET, _efficientnet.lite1()),
    "efficientnet_lite2": (EFFICIENTNET, _efficientnet.lite2()),
    "timm_efficientnet_lite0": (EFFICIENTNET, _efficientnet.lite0().retrained()),
    "efficientnet_b0": (EFFICIENTNET, _efficientnet.b0()),
    "efficientnet_b1": (EFFICIENTNET, _efficientnet.b1()),
    "efficientnet_b2": (EFFICIENTNET, _efficientnet.b2()),
    "efficientnet_b3": (EFFICIENTNET, _efficientnet.b3()),
    "efficientnet_b4": (EFFICIENTNET, _efficientnet.b4()),
    "efficientnet_v2_s": (EFFICIENTNET, _efficientnet.v2_s()),
    "tf_efficientnet_b0": (EFFICIENTNET, _efficientnet.b0().original()),
    "tf_efficientnet_b1": (EFFICIENTNET, _efficientnet.b1().original()),
    "tf_efficientnet_b2": (EFFICIENTNET, _efficientnet.b2().original()),
    "tf_efficientnet_b3": (EFFICIENTNET, _efficientnet.b3().original()),
    "tf_efficientnet_b4": (EFFICIENTNET, _efficientnet.b4().original()),
    "tf_efficientnet_v2_s": (EFFICIENTNET, _efficientnet.v2_s().original()),
    "convnext_tiny": (CONVNEXT, _convnext.tiny()),
    "convnext_small": (CONVNEXT, _convnext.small()),
    "convnext_base": (CONVNEXT, _convnext.base()),
    "convnext_large": (CONVNEXT, _convnext.large()),
    "vit_small": (VIT, _vit.small()),
    "vit_base": (VIT, _vit.base()),
    "vit_large": (VIT, _vit.large()),
    "dinov2_small": (VIT, _vit.small().dinov2()),
    "dinov2_base": (VIT, _vit.base().dinov2()),
    "dinov2_large": (VIT, _vit.large().dinov2()),
    "dinov2_small_registers": (VIT, _vit.small().dinov2(registers=4)),
    "dinov2_base_registers": (VIT, _vit.base().dinov2(registers=4)),
    "dinov2_large_registers": (VIT, _vit.large().dinov2(registers=4)),
    "dinov3_small": (DINOV3, _dinov3.small()),
    "dinov3_small_plus": (DINOV3, _dinov3.small_plus()),
    "dinov3_base": (DINOV3, _dinov3.base()),
    "dinov3_large": (DINOV3, _dinov3.large()),
    "dinov3_huge_plus": (DINOV3, _dinov3.huge_plus()),
    "siglip2_base_patch16_224": (SIGLIP, _siglip.base(224)),
    "siglip2_base_patch16_256": (SIGLIP, _siglip.base(256)),
    "siglip2_base_patch16_384": (SIGLIP, _siglip.base(384)),
    "siglip2_base_patch16_512": (SIGLIP, _siglip.base(512)),
    "siglip2_large_patch16_256": (SIGLIP, _siglip.large(256)),
    "siglip2_large_patch16_384": (SIGLIP, _siglip.large(384)),
    "siglip2_large_patch16_512": (SIGLIP, _siglip.large(512)),
    "siglip2_so400m_patch14_224": (SIGLIP, _siglip.so400m(224, patch=14)),
    "siglip2_so400m_patch14_378": (SIGLIP, _siglip.so400m(378, patch=14)),
    "siglip2_so400m_patch16_256": (SIGLIP, _siglip.so400m(256)),
    "siglip2_so400m_patch16_384": (SIGLIP, _siglip.so400m(384)),
    "siglip2_so400m_patch16_512": (SIGLIP, _siglip.so400m(512)),
}


# Weights that people call by a name of their own, by its beginning, and how they are had.
KNOWN_AS = {
    "rad_dino": "RAD-DINO is a DINOv2: use --backbone.name dinov2_base --backbone.weights hf:microsoft/rad-dino",
    "dinov3_convnext": "DINOv3's ConvNeXts are ConvNeXts: use --backbone.name convnext_tiny, small, base or large with "
    "--backbone.weights hf:facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    "torchxrayvision": "torchxrayvision's DenseNet is --backbone.name xrv_densenet121; docs/backbones.md has the three "
    "lines that make a file of weights of it",
}


def _find(name: str) -> tuple[Family, NetworkShape]:
    if name not in BACKBONES:
        plain = name.lower().replace("-", "_")
        if told := [text for beginning, text in KNOWN_AS.items() if plain.startswith(beginning)]:
            raise ValueError(f"no backbone is named {name!r}: {told[0]}.")
        near = difflib.get_close_matches(name, BACKBONES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(BACKBONES)}."
        raise ValueError(f"no backbone is named {name!r}: {hint}")
    return BACKBONES[name]


def create(config: BackboneConfig, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> Backbone:
    """A backbone with random weights.

    Args:
        config: its name, pooling, and whether it computes activations again in the backward pass.
        rngs: of the initial weights.
        dtype: of the arithmetic; parameters are float32.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    family, shape = _find(config.name)
    pooling = None if config.pooling == "published" else config.pooling
    return family.module(shape, pooling=pooling, dtype=dtype, remat=config.remat, rngs=rngs)


def load_weights(backbone: Backbone, config: BackboneConfig) -> Heads | None:
    """Replace a backbone's weights by the pretrained ones, where the configuration names some.

    Returns:
        The classifier that came with them, if one did.

    Raises:
        ValueError: where they cannot be read or are those of another architecture.
    """
    if config.weights is None:
        return None
    family, shape = _find(config.name)
    stated = described.architecture(config.weights)
    if (
        stated is not None
        and isinstance(shape, _efficientnet)
        and stated.startswith("tf_") != (shape.padding == "same")
    ):
        other = next(
            name
            for name, (_, other) in BACKBONES.items()
            if isinstance(other, _efficientnet) and other != shape and other.original() == shape.original()
        )
        raise ValueError(f"{config.weights} are weights of {stated}: use --backbone.name {other}.")
    assert isinstance(backbone, nnx.Module)
    try:
        return pretrained.load_into(backbone, config.weights, family.weight_tables(shape))
    except pretrained.NoFit as error:
        near = nearest(error.shapes)
        hint = "" if near in (None, config.name) else f"\n  The names are those of {near}: use --backbone.name {near}."
        raise ValueError(f"{error}{hint}") from None


def nearest(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The architecture that weights of these names and shapes are most likely of.

    Returns:
        The one whose weights have names most like these, of several the one of whose variables most have the right
        shape; None where none has half of the names.
    """
    given, shares = set(shapes), {}
    for name, (family, shape) in BACKBONES.items():
        known = [table.names for table in family.weight_tables(shape)]
        shares[name] = max(len(given & names) / max(len(given | names), 1) for names in known)
    most = max(shares.values())
    if most < 0.5:
        return None
    alike = [name for name, share in shares.items() if share == most]
    return alike[0] if len(alike) == 1 else max(alike, key=lambda name: _fitting(name, shapes))


def _fitting(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many variables of an architecture arrays of these shapes become."""
    family, shape = BACKBONES[name]
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    state = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: create(BackboneConfig(name), nnx.Rngs(0)))))
    wanted = {".".join(map(str, path)): variable.get_value().shape for path, variable in state}
    rows = pretrained.fitting(shapes, family.weight_tables(shape)).rows
    laid_out = ((pretrained.laid_out(row, arrays), wanted[row.path]) for row in rows if row.name in arrays)
    return sum(value is not None and value.shape == shape for value, shape in laid_out)


def preprocessing(config: BackboneConfig, scene_size: int | None = None) -> Preprocessing:
    """What images go through before this backbone, as its weights were trained, or as is usual for it.

    Args:
        config: its image_size comes before all others.
        scene_size: of images that are drawn on the spot; networks without weights take it.
    """
    family, shape = _find(config.name)
    usual = shape.preprocessing
    if config.weights is not None:
        usual, scene_size = described.preprocessing(config.weights, usual, family.weight_tables(shape)), None
    return dataclasses.replace(usual, image_size=config.image_size or scene_size or usual.image_size)
