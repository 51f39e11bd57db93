"""The network behind EfficientNet, EfficientNet-Lite and EfficientNetV2: inverted residual blocks, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import convolutions, layers

ACTIVATIONS = {"silu": nnx.silu, "relu6": nnx.relu6}
Activation = Literal["silu", "relu6"]


class BlockShape(NamedTuple):
    """One block, after scaling.

    Attributes:
        stage: its number.
        place: within the stage.
        inputs: channels.
        outputs: channels.
        expansion: channels of the inside, as a multiple of `inputs`.
        kernel: taps along each axis.
        stride: of the k x k convolution.
        squeeze: channels that the weights of the inside's channels are computed from; 0 for no such weights.
        fused: widen by an ordinary k x k convolution, in place of 1x1 and depthwise.
    """

    stage: int
    place: int
    inputs: int
    outputs: int
    expansion: int
    kernel: int
    stride: int
    squeeze: int = 0
    fused: bool = False


class Build(NamedTuple):
    """What all layers share.

    Attributes:
        padding: of strided convolutions, `same` as TensorFlow pads or `symmetric` as torch does.
        epsilon: of the batch normalisations.
        activation: between them.
        dtype: of the arithmetic.
        rngs: of the initial weights.
    """

    padding: convolutions.Padding
    epsilon: float
    activation: Activation
    dtype: Any
    rngs: nnx.Rngs


class Normalised(nnx.Module):
    """A convolution, its batch normalisation, and an activation or none."""

    def __init__(
        self,
        kind: Literal["conv", "depthwise"],
        inputs: int,
        outputs: int,
        kernel: int,
        build: Build,
        *,
        stride: int = 1,
        active: bool = True,
    ) -> None:
        """Build with random weights."""
        if kind == "depthwise":
            self.conv = layers.Depthwise(
                inputs, kernel, stride=stride, padding=build.padding, dtype=build.dtype, rngs=build.rngs
            )
        else:
            init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
            self.conv = layers.Conv(
                inputs,
                outputs,
                kernel,
                stride=stride,
                padding=build.padding,
                init=init,
                dtype=build.dtype,
                rngs=build.rngs,
            )
        self.norm = layers.BatchNorm(outputs, momentum=0.99, epsilon=build.epsilon, dtype=build.dtype, rngs=build.rngs)
        self.activation = build.activation if active else None

    def __call__(self, x: Float[jax.Array, "n h w i"]) -> Float[jax.Array, "n y x o"]:
        """Convolve, normalise, activate."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else ACTIVATIONS[self.activation](x)


class SqueezeExcitation(nnx.Module):
    """Weights in (0, 1) for the channels of an image, from their means."""

    def __init__(self, channels: int, squeeze: int, build: Build) -> None:
        """Build with random weights."""
        self.activation: Activation = build.activation
        self.reduce = layers.Pointwise(channels, squeeze, bias=True, dtype=build.dtype, rngs=build.rngs)
        self.expand = layers.Pointwise(squeeze, channels, bias=True, dtype=build.dtype, rngs=build.rngs)

    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n h w c"]:
        """Weigh the channels."""
        mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)
        weights = nnx.sigmoid(self.expand(ACTIVATIONS[self.activation](self.reduce(mean))))
        return x * weights[:, None, None]


class Block(nnx.Module):
    """Widen, filter every channel, weigh the channels, narrow; the input is added where the shape allows."""

    def __init__(self, shape: BlockShape, build: Build) -> None:
        """Build with random weights."""
        inputs, outputs, kernel, stride = shape.inputs, shape.outputs, shape.kernel, shape.stride
        middle = inputs * shape.expansion
        # Without expansion the k x k convolution is the whole of a fused block.
        whole = shape.fused and shape.expansion == 1
        expand = depthwise = squeeze = None
        if shape.fused:
            expand = Normalised("conv", inputs, outputs if whole else middle, kernel, build, stride=stride)
        else:
            if shape.expansion > 1:
                expand = Normalised("conv", inputs, middle, 1, build)
            depthwise = Normalised("depthwise", middle, middle, kernel, build, stride=stride)
            squeeze = SqueezeExcitation(middle, shape.squeeze, build) if shape.squeeze else None
        self.expand, self.depthwise, self.squeeze = expand, depthwise, squeeze
        self.project = None if whole else Normalised("conv", middle, outputs, 1, build, active=False)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: Float[jax.Array, "n h w i"]) -> Float[jax.Array, "n y x o"]:
        """Transform features."""
        y = x
        for layer in (self.expand, self.depthwise, self.squeeze, self.project):
            y = y if layer is None else layer(y)
        return x + y if self.residual else y


class InvertedResiduals(nnx.Module):
    """Images to features and what they pool to."""

    def __init__(
        self,
        stem: int,
        shapes: Sequence[BlockShape],
        head: int,
        build: Build,
        *,
        pooling: layers.Pooling | None,
        remat: bool,
    ) -> None:
        """Build with random weights.

        Args:
            stem: channels of the first convolution.
            shapes: of the blocks, in call order.
            head: channels of the last convolution.
            build: what all layers share.
            pooling: features to embedding; the mean, which is as published, if None.
            remat: keep only the blocks' inputs for the backward pass and compute the rest again.
        """
        self.stem = Normalised("conv", 3, stem, 3, build, stride=2)
        self.blocks = nnx.List([Block(shape, build) for shape in shapes])
        self.head = Normalised("conv", shapes[-1].outputs, head, 1, build)
        self.pool = layers.Pool(pooling or "mean", head)
        self.dim, self.remat = self.pool.dim, remat
        self.padding: convolutions.Padding = build.padding
        self.strided = ((3, 2), *((shape.kernel, shape.stride) for shape in shapes))

    def grid(self, image_size: int) -> tuple[int, float]:
        """Pixels between two places of the features, and the pixel at the middle of the first."""
        return convolutions.grid(image_size, self.strided, self.padding)

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x d"]:
        """Feature maps, which `embed` pools over height and width."""
        x = self.stem(images)
        call = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for block in self.blocks:
            x = call(block, x)
        return self.head(x)

    def depth_groups(self) -> tuple[tuple[str, ...], ...]:
        """The stem, every block, and the last convolution with the pooling after it."""
        return ("stem",), *((f"blocks.{i}",) for i in range(len(self.blocks))), ("head", "pool")

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        return self.pool(self.features(images))
