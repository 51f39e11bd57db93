"""Densely connected networks: every layer sees what all layers before it in its block have made.

Source: G. Huang et al., "Densely Connected Convolutional Networks" (CVPR 2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import convolutions, layers, pretrained
from cftjax.input.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class DenseNetConfig:
    """The shape of a densely connected network.

    Attributes:
        depths: layers of each block; height and width halve between blocks.
        growth: channels that each layer adds.
        stem: channels of the first convolution.
        grey: the first convolution sees one channel, the mean of the image's three.
    """

    depths: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: int = 64
    grey: bool = False

    @classmethod
    def densenet121(cls) -> DenseNetConfig:
        """7.0 M parameters, d 1024."""
        return cls()

    @classmethod
    def densenet161(cls) -> DenseNetConfig:
        """26 M parameters, d 2208."""
        return cls(depths=(6, 12, 36, 24), growth=48, stem=96)

    @classmethod
    def densenet169(cls) -> DenseNetConfig:
        """12 M parameters, d 1664."""
        return cls(depths=(6, 12, 32, 32))

    @classmethod
    def densenet201(cls) -> DenseNetConfig:
        """18 M parameters, d 1920."""
        return cls(depths=(6, 12, 48, 32))

    def xrv(self) -> DenseNetConfig:
        """As torchxrayvision trained it on radiographs."""
        return dataclasses.replace(self, grey=True)

    @property
    def preprocessing(self) -> Preprocessing:
        """What torchvision's weights were trained with, but for the whole image; torchxrayvision's in [-1024, 1024]."""
        if self.grey:
            # From black, -1024, to white, 1024.
            step = 1 / 2048
            return Preprocessing(224, mean=(0.5, 0.5, 0.5), std=(step, step, step), resize="center_crop")
        return Preprocessing(224)


class Layer(nnx.Module):
    """New channels from all channels so far: 1x1 to four times the growth, then 3x3."""

    def __init__(self, inputs: int, growth: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        self.norm1 = _norm(inputs, dtype, rngs)
        self.conv1 = layers.Conv(inputs, 4 * growth, 1, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(4 * growth, dtype, rngs)
        self.conv2 = layers.Conv(4 * growth, growth, 3, dtype=dtype, rngs=rngs)

    def __call__(
        self, made: tuple[Float[jax.Array, "n h w _"], ...], batch: tuple[layers.Statistics, ...]
    ) -> Float[jax.Array, "n h w g"]:
        """The channels to add. Joined only in here, so that `remat` keeps no channel twice.

        Args:
            made: all maps so far.
            batch: the statistics of each.
        """
        x = jnp.concatenate(made, axis=-1)
        x = self.conv1(nnx.relu(self.norm1(x, _join(batch))))
        return self.conv2(nnx.relu(self.norm2(x)))


class Transition(nnx.Module):
    """Half the channels, half the height and width."""

    def __init__(self, inputs: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        self.norm = _norm(inputs, dtype, rngs)
        self.conv = layers.Conv(inputs, inputs // 2, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[jax.Array, "n h w c"], batch: layers.Statistics) -> Float[jax.Array, "n y x d"]:
        """Shrink. Means are taken before the 1x1 convolution, which is linear, for a quarter of its products."""
        return self.conv(nnx.avg_pool(nnx.relu(self.norm(x, batch)), (2, 2), strides=(2, 2)))


def _norm(channels: int, dtype: Any, rngs: nnx.Rngs) -> layers.BatchNorm:
    return layers.BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def _join(parts: tuple[layers.Statistics, ...]) -> layers.Statistics:
    return layers.Statistics(*(jnp.concatenate(values) for values in zip(*parts, strict=True)))


class DenseNet(nnx.Module):
    """Images to features and what they pool to."""

    def __init__(
        self,
        config: DenseNetConfig,
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
            dtype: of the arithmetic; parameters and running statistics are float32.
            remat: keep only what each layer adds for the backward pass and compute the rest again: memory then grows
                with the number of layers, not with its square.
            rngs: of the initial weights.
        """
        self.grey = config.grey
        self.stem = layers.Conv(1 if config.grey else 3, config.stem, 7, stride=2, dtype=dtype, rngs=rngs)
        self.stem_norm = _norm(config.stem, dtype, rngs)
        blocks, transitions, channels = [], [], config.stem
        for depth in config.depths:
            if blocks:
                transitions.append(Transition(channels, dtype=dtype, rngs=rngs))
                channels //= 2
            inputs = range(channels, channels + depth * config.growth, config.growth)
            blocks.append(nnx.List([Layer(n, config.growth, dtype=dtype, rngs=rngs) for n in inputs]))
            channels += depth * config.growth
        self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
        self.norm = _norm(channels, dtype, rngs)
        self.pool = layers.Pool(pooling or "mean", channels)
        self.dim, self.remat = self.pool.dim, remat

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x d"]:
        """Feature maps, which `embed` pools over height and width."""
        if self.grey:
            images = jnp.mean(images, axis=-1, keepdims=True)
        x = convolutions.max_pool_3x3(nnx.relu(self.stem_norm(self.stem(images))))
        call = nnx.remat(Layer.__call__) if self.remat else Layer.__call__
        batch = None
        for number, block in enumerate(self.blocks):
            if number:
                x = self.transitions[number - 1](x, batch)
            # Every later layer of the block normalises the same maps: their statistics are taken once.
            made, parts = (x,), (layers.statistics(x),)
            for layer in block:
                new = call(layer, made, parts)
                made, parts = (*made, new), (*parts, layers.statistics(new))
            x, batch = jnp.concatenate(made, axis=-1), _join(parts)
        return nnx.relu(self.norm(x, batch))

    def depth_groups(self) -> tuple[tuple[str, ...], ...]:
        """The stem, every dense block with the transition before it, and the last normalisation.

        Not every layer: of the 58 in DenseNet-121 the first would hardly learn under any decay.
        """
        blocks = [(f"transitions.{i - 1}", f"blocks.{i}") for i in range(1, len(self.blocks))]
        return ("stem", "stem_norm"), ("blocks.0",), *blocks, ("norm", "pool")

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        return self.pool(self.features(images))


def weight_tables(config: DenseNetConfig) -> tuple[pretrained.Table, ...]:
    """The names of torchvision and timm, and those in torchvision's files, which it changes while loading."""
    # torchxrayvision keeps the operating points of its categories beside the weights.
    ignored = ("num_batches_tracked", "op_threshs")
    return tuple(
        pretrained.Table(tuple(_rows(config, dot)), ("classifier.weight", "classifier.bias"), ignored)
        for dot in ("", ".")
    )


def _rows(config: DenseNetConfig, dot: str) -> Iterator[pretrained.Row]:
    def convolution(name: str, path: str) -> pretrained.Row:
        return pretrained.Row(f"features.{name}.weight", f"{path}.kernel", pretrained.convolution)

    yield convolution("conv0", "stem")
    yield from pretrained.batch_norm("features.norm0", "stem_norm")
    for block, depth in enumerate(config.depths):
        for index in range(depth):
            name, path = f"denseblock{block + 1}.denselayer{index + 1}", f"blocks.{block}.{index}"
            for number in (1, 2):
                yield from pretrained.batch_norm(f"features.{name}.norm{dot}{number}", f"{path}.norm{number}")
                yield convolution(f"{name}.conv{dot}{number}", f"{path}.conv{number}")
        if block < len(config.depths) - 1:
            name, path = f"transition{block + 1}", f"transitions.{block}"
            yield from pretrained.batch_norm(f"features.{name}.norm", f"{path}.norm")
            yield convolution(f"{name}.conv", f"{path}.conv")
    yield from pretrained.batch_norm("features.norm5", "norm")
