"""What vision transformers share: attention, a block, and tokens that stand where patches of the image stand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import layers


def has_flash_attention(dtype: jnp.dtype) -> bool:
    """Whether cuDNN's flash attention serves: in bfloat16, on NVIDIA cards from Ampere on (speed: docs/gpu.md)."""
    if dtype != jnp.bfloat16 or jax.default_backend() != "gpu":
        return False
    # AMD's cards name their architecture, `gfx942`, where NVIDIA's give a number.
    capabilities = [str(getattr(device, "compute_capability", "")) for device in jax.local_devices()]
    return all(re.fullmatch(r"\d+\.\d+", capability) and float(capability) >= 8 for capability in capabilities)


def padded_attention(
    query: Float[jax.Array, "n t h k"],
    key: Float[jax.Array, "n t h k"],
    value: Float[jax.Array, "n t h k"],
    implementation: Literal["xla", "cudnn"],
) -> Float[jax.Array, "n t h k"]:
    """Attention over tokens padded to a multiple of eight, which cuDNN asks for; padding is not attended to."""
    tokens = query.shape[1]
    query, key, value = (jnp.pad(x, ((0, 0), (0, -tokens % 8), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.full(query.shape[0], tokens, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
    return mixed[:, :tokens]


def attend(
    query: Float[jax.Array, "n t h k"], key: Float[jax.Array, "n t h k"], value: Float[jax.Array, "n t h k"]
) -> Float[jax.Array, "n t h k"]:
    """Attention of h heads among t tokens, by the fastest way that there is."""
    if has_flash_attention(query.dtype):
        return padded_attention(query, key, value, implementation="cudnn")
    return jax.nn.dot_product_attention(query, key, value)


class Attention(nnx.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        init = nnx.initializers.xavier_uniform()
        self.heads = heads
        self.qkv = layers.Pointwise(width, 3 * width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.out = layers.Pointwise(width, width, bias=True, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[jax.Array, "n t d"]) -> Float[jax.Array, "n t d"]:
        """Mix tokens."""
        n, t, d = x.shape
        query, key, value = jnp.moveaxis(self.qkv(x).reshape(n, t, 3, self.heads, -1), 2, 0)
        return self.out(attend(query, key, value).reshape(n, t, d))


class Block(nnx.Module):
    """Attention, then two linear layers, each on normalised tokens and added to them."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int,
        epsilon: float,
        layer_scale: float | None = None,
        activation: Callable[[jax.Array], jax.Array] = layers.gelu,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Build with random weights.

        Args:
            width: of the tokens, d.
            heads: of the attention.
            hidden: width between the two linear layers.
            epsilon: of the normalisations.
            layer_scale: the start of the factors on each residual branch; None for no factors.
            activation: between the two linear layers.
            dtype: of the arithmetic.
            rngs: of the initial weights.
        """
        init = nnx.initializers.xavier_uniform()
        self.activation = activation
        self.norm1 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.widen = layers.Pointwise(width, hidden, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.narrow = layers.Pointwise(hidden, width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.scale1 = None if layer_scale is None else layers.Scale(width, layer_scale, dtype=dtype)
        self.scale2 = None if layer_scale is None else layers.Scale(width, layer_scale, dtype=dtype)

    def __call__(self, x: Float[jax.Array, "n t d"]) -> Float[jax.Array, "n t d"]:
        """Transform tokens."""
        y = self.attention(self.norm1(x))
        x = x + (y if self.scale1 is None else self.scale1(y))
        y = self.narrow(self.activation(self.widen(self.norm2(x))))
        return x + (y if self.scale2 is None else self.scale2(y))


class ClassToken(nnx.Module):
    """What a network does whose class token stands first, then registers, then the patches row by row.

    Attributes:
        config: with `patch`, `registers` and `width`.
        blocks: of the network.
        pool: of the patches' tokens to the embedding; the class token if None.
    """

    config: Any
    blocks: nnx.List
    pool: layers.Pool | None

    def tokens(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n t d"]:
        """Normalised tokens of the last block: class, registers, patches row by row.

        Raises:
            ValueError: the images are no whole number of patches high or wide.
        """
        raise NotImplementedError

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x d"]:
        """The patches' tokens, where they stand in the image."""
        return self._maps(self.tokens(images), images)

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        tokens = self.tokens(images)
        return tokens[:, 0].astype(jnp.float32) if self.pool is None else self.pool(self._maps(tokens, images))

    def _maps(
        self, tokens: Float[jax.Array, "n t d"], images: Float[jax.Array, "n h w 3"]
    ) -> Float[jax.Array, "n y x d"]:
        grid = patch_grid(images, self.config.patch)
        return tokens[:, 1 + self.config.registers :].reshape(images.shape[0], *grid, self.config.width)


def patch_grid(images: Float[jax.Array, "n h w 3"], patch: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ValueError: the images are no whole number of patches high or wide.
    """
    _, height, width, _ = images.shape
    if height % patch or width % patch:
        raise ValueError(
            f"images of {height} x {width} pixels are not whole patches of {patch} x {patch}: "
            f"use --data.image-size {max(round(height / patch), 1) * patch}"
        )
    return height // patch, width // patch


def resized_positions(positions: Float[jax.Array, "g d"], rows: int, columns: int) -> Float[jax.Array, "t d"]:
    """Position embeddings of a square grid for another grid: bicubic and antialiased, Keys' a = -1/2, as in timm."""
    grid, width = round(len(positions) ** 0.5), positions.shape[1]
    if (rows, columns) == (grid, grid):
        return positions
    return jax.image.resize(positions.reshape(grid, grid, width), (rows, columns, width), "cubic").reshape(-1, width)


def repeated(tokens: Float[jax.Array, "t d"], images: Float[jax.Array, "n ..."]) -> Float[jax.Array, "n t d"]:
    """The same tokens for each of the images."""
    return jnp.broadcast_to(tokens[None], (images.shape[0], *tokens.shape))


def run_blocks(
    blocks: Iterable[nnx.Module], x: Float[jax.Array, "n t d"], *rest: Any, remat: bool
) -> Float[jax.Array, "n t d"]:
    """Tokens through blocks; with `remat` only what goes into each is kept for the backward pass."""
    for block in blocks:
        call = nnx.remat(type(block).__call__) if remat else type(block).__call__
        x = call(block, x, *rest)
    return x
