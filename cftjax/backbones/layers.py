"""Layers that the families share: convolutions that are fast on every platform, and pooling."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jaxtyping import Float

from cftjax.backbones import convolutions

Pooling = Literal["mean", "max", "mean_max", "attention"]


class Conv(nnx.Module):
    """A k x k convolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: convolutions.Padding = "symmetric",
        bias: bool = False,
        init: Initializer | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Build; `init` is He's normal distribution unless another is given."""
        init = nnx.initializers.he_normal() if init is None else init
        self.stride, self.dtype = stride, dtype
        self.padding: convolutions.Padding = padding
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[jax.Array, "n h w i"]) -> Float[jax.Array, "n y x o"]:
        """Convolve."""
        x, kernel = x.astype(self.dtype), self.kernel.get_value().astype(self.dtype)
        y = convolutions.conv(x, kernel, stride=self.stride, padding=self.padding)
        return _plus(y, self.bias)


class Pointwise(nnx.Module):
    """A linear layer on every pixel, or token: a 1x1 convolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        init: Initializer | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Build; `init` is He's normal distribution unless another is given."""
        init = nnx.initializers.he_normal() if init is None else init
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[jax.Array, "*n i"]) -> Float[jax.Array, "*n o"]:
        """Project."""
        kernel = self.kernel.get_value().astype(self.dtype)
        return _plus(convolutions.pointwise_conv(x.astype(self.dtype), kernel), self.bias)


class Depthwise(nnx.Module):
    """A convolution of every channel with a filter of its own."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: convolutions.Padding = "symmetric",
        bias: bool = False,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Build with random weights."""
        self.stride, self.dtype = stride, dtype
        self.padding: convolutions.Padding = padding
        init = nnx.initializers.normal(math.sqrt(2) / kernel_size)
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels)) if bias else None

    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n y x c"]:
        """Convolve."""
        x, kernel = x.astype(self.dtype), self.kernel.get_value().astype(self.dtype)
        y = convolutions.depthwise_conv(x, kernel, stride=self.stride, padding=self.padding)
        return _plus(y, self.bias)


class Statistics(NamedTuple):
    """Moments of a batch, per channel, in float32."""

    mean: Float[jax.Array, " c"]
    square: Float[jax.Array, " c"]


def statistics(x: Float[jax.Array, "*n c"]) -> Statistics:
    """Mean and mean square over images and pixels."""
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    return Statistics(jnp.mean(x, axes), jnp.mean(jnp.square(x), axes))


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation as one factor and one term per channel: one pass over the maps instead of two or three."""

    def __call__(self, x: Float[jax.Array, "*n c"], batch: Statistics | None = None) -> Float[jax.Array, "*n c"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise by the batch, and remember its statistics, or after `eval()` by those remembered.

        Args:
            x: the maps.
            batch: their statistics, where the caller has them already.
        """
        mean, variance = self.mean.get_value(), self.var.get_value()
        if not self.use_running_average:
            new, square = statistics(x) if batch is None else batch
            new_variance = jnp.maximum(0, square - jnp.square(new))
            self.mean.set_value(self.momentum * mean + (1 - self.momentum) * new)
            self.var.set_value(self.momentum * variance + (1 - self.momentum) * new_variance)
            mean, variance = new, new_variance
        assert self.scale is not None
        assert self.bias is not None
        factor = self.scale.get_value() * jax.lax.rsqrt(variance + self.epsilon)
        term = self.bias.get_value() - mean * factor
        return (x * _over_channels(factor, x.ndim) + _over_channels(term, x.ndim)).astype(self.dtype)


class Scale(nnx.Module):
    """A factor per channel ("layer scale")."""

    def __init__(self, channels: int, start: float, *, dtype: Any) -> None:
        """Build with all factors at `start`."""
        self.dtype = dtype
        self.scale = nnx.Param(jnp.full(channels, start))

    def __call__(self, x: Float[jax.Array, "*n c"]) -> Float[jax.Array, "*n c"]:
        """Scale every channel."""
        return x * _over_channels(self.scale.get_value(), x.ndim).astype(self.dtype)


class Pool(nnx.Module):
    """Feature maps to one vector per image, in float32.

    `attention` weighs the positions by softmax(features @ query) before summing them; its query starts at zero, where
    it is the mean, and learns with the rest. `mean_max` is the means followed by the maxima.
    """

    def __init__(self, pooling: Pooling, channels: int) -> None:
        """Build for features of so many channels."""
        self.pooling = pooling
        self.dim = 2 * channels if pooling == "mean_max" else channels
        self.query = nnx.Param(jnp.zeros(channels)) if pooling == "attention" else None

    def __call__(self, features: Float[jax.Array, "n y x c"]) -> Float[jax.Array, "n d"]:
        """Pool over height and width."""
        if self.query is not None:
            features = features.astype(jnp.float32)
            # Accelerators would round to bfloat16, or to TF32.
            highest = jax.lax.Precision.HIGHEST
            weights = jax.nn.softmax(jnp.matmul(features, self.query.get_value(), precision=highest), axis=(1, 2))
            return jnp.einsum("nyxc,nyx->nc", features, weights, precision=highest)
        pooled = []
        if self.pooling in ("mean", "mean_max"):
            pooled.append(jnp.mean(features, axis=(1, 2), dtype=jnp.float32))
        if self.pooling in ("max", "mean_max"):
            pooled.append(jnp.max(features, axis=(1, 2)).astype(jnp.float32))
        return jnp.concatenate(pooled, axis=1)


def gelu(x: Float[jax.Array, "*n"]) -> Float[jax.Array, "*n"]:
    """Every x times the normal distribution function of x, in float32.

    By erf, as torch has it. By erfc, as `jax.nn.gelu` has it, far negative values keep their digits, and a CPU takes
    twice as long.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def gelu_tanh(x: Float[jax.Array, "*n"]) -> Float[jax.Array, "*n"]:
    """GELU with the distribution function approximated by a hyperbolic tangent, in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def _plus(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return x if bias is None else x + _over_channels(bias.get_value(), x.ndim).astype(x.dtype)


def _over_channels(vector: jax.Array, rank: int) -> jax.Array:
    return vector.reshape((1,) * (rank - 1) + vector.shape)
