"""ConvNeXt: blocks of a 7x7 depthwise convolution and two linear layers, layer-normalised.

Source: Z. Liu et al., "A ConvNet for the 2020s" (CVPR 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import layers, pretrained
from cftjax.input.preprocessing import Preprocessing

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """The shape of a ConvNeXt.

    Attributes:
        widths: channels of each stage; the first sees a quarter of the image's height and width, the others half of
            the stage before.
        depths: blocks of each stage.
        kernel: taps of the depthwise convolutions along each axis.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    kernel: int = 7

    @classmethod
    def tiny(cls) -> ConvNeXtConfig:
        """28 M parameters, d 768."""
        return cls()

    @classmethod
    def small(cls) -> ConvNeXtConfig:
        """49 M parameters, d 768."""
        return cls(depths=(3, 3, 27, 3))

    @classmethod
    def base(cls) -> ConvNeXtConfig:
        """88 M parameters, d 1024."""
        return cls(widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3))

    @classmethod
    def large(cls) -> ConvNeXtConfig:
        """196 M parameters, d 1536."""
        return cls(widths=(192, 384, 768, 1536), depths=(3, 3, 27, 3))

    @property
    def preprocessing(self) -> Preprocessing:
        """What torchvision's weights were trained with, but for the whole image."""
        return Preprocessing(224)


class Block(nnx.Module):
    """Filter every channel, widen four times, narrow, add."""

    def __init__(self, width: int, kernel: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        init = nnx.initializers.truncated_normal(0.02)
        self.depthwise = layers.Depthwise(width, kernel, bias=True, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.widen = layers.Pointwise(width, 4 * width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.narrow = layers.Pointwise(4 * width, width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.scale = layers.Scale(width, EPSILON, dtype=dtype)

    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n h w c"]:
        """Transform features."""
        y = self.norm(self.depthwise(x))
        y = layers.gelu(self.widen(y))
        return x + self.scale(self.narrow(y))


class Downsampling(nnx.Module):
    """Normalise, then one output per square of pixels."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        init = nnx.initializers.truncated_normal(0.02)
        self.norm = nnx.LayerNorm(inputs, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.conv = layers.Conv(
            inputs, outputs, 2, stride=2, padding="none", bias=True, init=init, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n y x d"]:
        """Halve height and width."""
        return self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
    """Images to features and what they pool to."""

    def __init__(
        self,
        config: ConvNeXtConfig,
        *,
        pooling: layers.Pooling | None = None,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Build with random weights.

        Args:
            config: the shape.
            pooling: features to embedding; the mean, which is as published, if None.
            dtype: of the arithmetic; parameters are float32.
            remat: keep only the blocks' inputs for the backward pass and compute the rest again.
            rngs: of the initial weights.
        """
        init = nnx.initializers.truncated_normal(0.02)
        stem, *_, last = config.widths
        self.stem = layers.Conv(3, stem, 4, stride=4, padding="none", bias=True, init=init, dtype=dtype, rngs=rngs)
        self.stem_norm = nnx.LayerNorm(stem, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        stages, inputs = [], stem
        for width, depth in zip(config.widths, config.depths, strict=True):
            between = [] if not stages else [Downsampling(inputs, width, dtype=dtype, rngs=rngs)]
            blocks = [Block(width, config.kernel, dtype=dtype, rngs=rngs) for _ in range(depth)]
            stages.append(nnx.List(between + blocks))
            inputs = width
        self.stages = nnx.List(stages)
        self.norm = nnx.LayerNorm(last, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.pool = layers.Pool(pooling or "mean", last)
        self.dim, self.remat = self.pool.dim, remat

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x d"]:
        """Feature maps, whose mean over height and width is the published embedding.

        The network normalises the mean. Here the same normalisation, by the standard deviation of the mean, is applied
        to every position, which is the same sum in another order.
        """
        x = self.stem_norm(self.stem(images))
        call = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for stage in self.stages:
            for layer in stage:
                x = call(layer, x) if isinstance(layer, Block) else layer(x)
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        inverse = jax.lax.rsqrt(jnp.var(mean, axis=-1, keepdims=True) + EPSILON)
        assert self.norm.scale is not None
        assert self.norm.bias is not None
        scale, bias = self.norm.scale.get_value(), self.norm.bias.get_value()
        centred = x - jnp.mean(x, axis=-1, keepdims=True, dtype=jnp.float32)
        return (centred * (inverse * scale[None, None, None]) + bias[None, None, None]).astype(x.dtype)

    def depth_groups(self) -> tuple[tuple[str, ...], ...]:
        """The stem, every block, to which the downsampling before it belongs, and the last normalisation."""
        groups = [("stem", "stem_norm")]
        for number, stage in enumerate(self.stages):
            names = [f"stages.{number}.{i}" for i in range(len(stage))]
            if number:
                # The first layer of a later stage is its downsampling.
                groups.append((names.pop(0), names.pop(0)))
            groups += [(name,) for name in names]
        return (*groups, ("norm", "pool"))

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        return self.pool(self.features(images))


class _Names(NamedTuple):
    """What a file calls the layers."""

    stem: tuple[str, str]
    norm: str
    classifier: str
    downsampling: str
    block: str
    depthwise: str
    block_norm: str
    widen: str
    narrow: str
    scale: str


TORCHVISION = _Names(
    stem=("features.0.0", "features.0.1"),
    norm="classifier.0",
    classifier="classifier.2",
    downsampling="features.{twice}",
    block="features.{twice_and_one}.{index}",
    depthwise="block.0",
    block_norm="block.2",
    widen="block.3",
    narrow="block.5",
    scale="layer_scale",
)
TIMM = _Names(
    stem=("stem.0", "stem.1"),
    norm="head.norm",
    classifier="head.fc",
    downsampling="stages.{stage}.downsample",
    block="stages.{stage}.blocks.{index}",
    depthwise="conv_dw",
    block_norm="norm",
    widen="mlp.fc1",
    narrow="mlp.fc2",
    scale="gamma",
)
AUTHORS = _Names(
    stem=("downsample_layers.0.0", "downsample_layers.0.1"),
    norm="norm",
    classifier="head",
    downsampling="downsample_layers.{stage}",
    block="stages.{stage}.{index}",
    depthwise="dwconv",
    block_norm="norm",
    widen="pwconv1",
    narrow="pwconv2",
    scale="gamma",
)
TRANSFORMERS = _Names(
    stem=("stages.0.downsample_layers.0", "stages.0.downsample_layers.1"),
    norm="layer_norm",
    classifier="classifier",
    downsampling="stages.{stage}.downsample_layers",
    block="stages.{stage}.layers.{index}",
    depthwise="depthwise_conv",
    block_norm="layer_norm",
    widen="pointwise_conv1",
    narrow="pointwise_conv2",
    scale="gamma",
)


def weight_tables(config: ConvNeXtConfig) -> tuple[pretrained.Table, ...]:
    """Tables for the names of torchvision, of timm, whose images were resized differently, and of DINOv3's files.

    Those are its authors', who call the last normalisation by two names, and transformers'.
    """
    torchvision, timm, authors, transformers = (
        pretrained.Table(
            tuple(_rows(config, names)),
            (f"{names.classifier}.weight", f"{names.classifier}.bias"),
            ignored=("norms.3.weight", "norms.3.bias"),
        )
        for names in (TORCHVISION, TIMM, AUTHORS, TRANSFORMERS)
    )
    bicubic = dataclasses.replace(config.preprocessing, interpolation="bicubic")
    return torchvision, dataclasses.replace(timm, preprocessing=bicubic), authors, transformers


def _rows(config: ConvNeXtConfig, names: _Names) -> Iterator[pretrained.Row]:
    yield from pretrained.with_bias(names.stem[0], "stem", pretrained.convolution)
    yield from pretrained.norm(names.stem[1], "stem_norm")
    for stage, depth in enumerate(config.depths):
        if stage:
            prefix = names.downsampling.format(stage=stage, twice=2 * stage)
            yield from pretrained.norm(f"{prefix}.0", f"stages.{stage}.0.norm")
            yield from pretrained.with_bias(f"{prefix}.1", f"stages.{stage}.0.conv", pretrained.convolution)
        for index in range(depth):
            prefix = names.block.format(stage=stage, twice_and_one=2 * stage + 1, index=index)
            path = f"stages.{stage}.{index + (stage > 0)}"
            yield from pretrained.with_bias(f"{prefix}.{names.depthwise}", f"{path}.depthwise", pretrained.depthwise)
            yield from pretrained.norm(f"{prefix}.{names.block_norm}", f"{path}.norm")
            yield from pretrained.with_bias(f"{prefix}.{names.widen}", f"{path}.widen", pretrained.linear)
            yield from pretrained.with_bias(f"{prefix}.{names.narrow}", f"{path}.narrow", pretrained.linear)
            yield pretrained.Row(f"{prefix}.{names.scale}", f"{path}.scale.scale", pretrained.vector)
    yield from pretrained.norm(names.norm, "norm")
