"""Residual networks: ResNet-18 to -152 in their usual form, and a small one for small images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import convolutions, layers, pretrained
from cftjax.input.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The shape of a residual network.

    Attributes:
        widths: channels of each stage's 3x3 convolutions; every stage after the first halves height and width.
        depths: residual blocks of each stage.
        bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions whose output is four times as wide; two 3x3 otherwise.
        small_stem: a 3x3 convolution of stride 2 in place of 7x7 and max pooling, both of stride 2; the embedding holds
            the features' maxima as well as their means, which small objects need; and blocks start whole instead of as
            their shortcuts, which a short training needs.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    small_stem: bool = False

    @classmethod
    def small(cls) -> ResNetConfig:
        """For images of about 32 pixels: d 192, and fast on a CPU."""
        return cls(widths=(24, 48, 96), depths=(1, 1, 1), small_stem=True)

    @classmethod
    def resnet18(cls) -> ResNetConfig:
        """11 M parameters, d 512."""
        return cls(depths=(2, 2, 2, 2))

    @classmethod
    def resnet34(cls) -> ResNetConfig:
        """21 M parameters, d 512."""
        return cls(depths=(3, 4, 6, 3))

    @classmethod
    def resnet50(cls) -> ResNetConfig:
        """24 M parameters, d 2048."""
        return cls(depths=(3, 4, 6, 3), bottleneck=True)

    @classmethod
    def resnet101(cls) -> ResNetConfig:
        """43 M parameters, d 2048."""
        return cls(depths=(3, 4, 23, 3), bottleneck=True)

    @classmethod
    def resnet152(cls) -> ResNetConfig:
        """58 M parameters, d 2048."""
        return cls(depths=(3, 8, 36, 3), bottleneck=True)

    @property
    def preprocessing(self) -> Preprocessing:
        """What torchvision's weights were trained with; small networks are trained at the images' own size."""
        if self.small_stem:
            return Preprocessing(40, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        return Preprocessing(224, resize="center_crop")

    @property
    def expansion(self) -> int:
        """Channels that leave a block, per channel of its 3x3 convolutions."""
        return 4 if self.bottleneck else 1


class Convolution(nnx.Module):
    """A convolution without bias and its batch normalisation.

    Padding is `kernel_size // 2` on every side, as pretrained weights expect; "SAME" would shift where the stride is 2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        zero: bool = False,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Build; `zero` starts the normalisation's scale at 0."""
        self.conv = layers.Conv(inputs, outputs, kernel_size, stride=stride, dtype=dtype, rngs=rngs)
        scale = nnx.initializers.zeros_init() if zero else nnx.initializers.ones_init()
        self.norm = layers.BatchNorm(outputs, momentum=0.9, epsilon=1e-5, scale_init=scale, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n y x d"]:
        """Convolve and normalise."""
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Two 3x3 convolutions, or the bottleneck of three (v1.5: the stride is in the 3x3), around a shortcut."""

    def __init__(
        self, inputs: int, width: int, stride: int, bottleneck: bool, *, zero: bool = True, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Build; with `zero` the last normalisation starts at 0, so that the block starts as its shortcut."""
        layer = partial(Convolution, dtype=dtype, rngs=rngs)
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [
                layer(inputs, width, 1),
                layer(width, width, 3, stride=stride),
                layer(width, outputs, 1, zero=zero),
            ]
        else:
            layers = [layer(inputs, width, 3, stride=stride), layer(width, outputs, 3, zero=zero)]
        self.layers = nnx.List(layers)
        changes = stride != 1 or inputs != outputs
        self.shortcut = layer(inputs, outputs, 1, stride=stride) if changes else None

    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n y x d"]:
        """Add the convolved input to the shortcut."""
        y = x
        for layer in self.layers[:-1]:
            y = nnx.relu(layer(y))
        y = self.layers[-1](y)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """Images to features and what they pool to."""

    def __init__(
        self,
        config: ResNetConfig,
        *,
        pooling: layers.Pooling | None = None,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Build with random weights.

        Args:
            config: the shape.
            pooling: features to embedding; if None the mean, which is as published, and the maxima in small networks.
            dtype: of the arithmetic; parameters and running statistics are float32.
            remat: keep only the blocks' inputs for the backward pass and compute the rest again.
            rngs: of the initial weights.
        """
        stem = config.widths[0]
        self.small_stem, self.remat = config.small_stem, remat
        kernel_size = 3 if config.small_stem else 7
        self.stem = Convolution(3, stem, kernel_size, stride=2, dtype=dtype, rngs=rngs)
        blocks, inputs = [], stem
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                zero = not config.small_stem
                blocks.append(Block(inputs, width, stride, config.bottleneck, zero=zero, dtype=dtype, rngs=rngs))
                inputs = width * config.expansion
        self.blocks = nnx.List(blocks)
        self.pool = layers.Pool(pooling or ("mean_max" if config.small_stem else "mean"), inputs)
        self.dim = self.pool.dim
        self.strided = ((3, 2),) if config.small_stem else ((7, 2), (3, 2))
        self.strided += ((3, 2),) * (len(config.widths) - 1)

    def grid(self, image_size: int) -> tuple[int, float]:
        """Pixels between two places of the features, and the pixel at the middle of the first."""
        return convolutions.grid(image_size, self.strided, "symmetric")

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x d"]:
        """Feature maps, which `embed` pools over height and width."""
        x = nnx.relu(self.stem(images))
        if not self.small_stem:
            x = convolutions.max_pool_3x3(x)
        call = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for block in self.blocks:
            x = call(block, x)
        return x

    def depth_groups(self) -> tuple[tuple[str, ...], ...]:
        """The stem, every residual block, and the pooling after them."""
        return ("stem",), *((f"blocks.{i}",) for i in range(len(self.blocks))), ("pool",)

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        return self.pool(self.features(images))


def weight_tables(config: ResNetConfig) -> tuple[pretrained.Table, ...]:
    """The names of torchvision, which are timm's as well."""
    return (pretrained.Table(tuple(_rows(config)), ("fc.weight", "fc.bias")),)


def _rows(config: ResNetConfig) -> Iterator[pretrained.Row]:
    def convolution(conv: str, norm: str, path: str) -> Iterator[pretrained.Row]:
        yield pretrained.Row(f"{conv}.weight", f"{path}.conv.kernel", pretrained.convolution)
        yield from pretrained.batch_norm(norm, f"{path}.norm")

    yield from convolution("conv1", "bn1", "stem")
    number, inputs = 0, config.widths[0]
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for index in range(depth):
            name, path = f"layer{stage + 1}.{index}", f"blocks.{number}"
            for layer in range(3 if config.bottleneck else 2):
                yield from convolution(f"{name}.conv{layer + 1}", f"{name}.bn{layer + 1}", f"{path}.layers.{layer}")
            if index == 0 and (stage > 0 or inputs != width * config.expansion):
                yield from convolution(f"{name}.downsample.0", f"{name}.downsample.1", f"{path}.shortcut")
            number, inputs = number + 1, width * config.expansion
