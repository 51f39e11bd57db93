"""DINOv3's vision transformers: patches know their places by rotation, not by a table of positions.

Source: O. Siméoni et al., "DINOv3" (arXiv 2508.10104, 2025). Its ConvNeXts are those of convnext.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import layers, pretrained, transformer
from cftjax.input.preprocessing import Preprocessing

EPSILON = 1e-5
BASE = 100.0
"""Periods of the rotations run from 1 to this: the whole image is two long."""
LAYER_SCALE = 1e-5

# Of every patch, by channel of a head.
Rotation = tuple[Float[jax.Array, "p k"], Float[jax.Array, "p k"]]


@dataclasses.dataclass(frozen=True)
class DINOv3Config:
    """The shape of a DINOv3 vision transformer.

    Attributes:
        width: of the tokens, d.
        depth: blocks.
        heads: of the attention; four times their number divides the width.
        hidden: width between the two linear layers of a block.
        gated: one more linear layer, through SiLU, multiplies what lies between those two ("SwiGLU").
        patch: height and width of the squares that become tokens, in pixels.
        registers: tokens that stand for no patch, after the class token.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    gated: bool = False
    patch: int = 16
    registers: int = 4

    @classmethod
    def small(cls) -> DINOv3Config:
        """22 M parameters, d 384."""
        return cls(width=384, heads=6, hidden=1536)

    @classmethod
    def small_plus(cls) -> DINOv3Config:
        """29 M parameters, d 384."""
        return cls(width=384, heads=6, hidden=1536, gated=True)

    @classmethod
    def base(cls) -> DINOv3Config:
        """86 M parameters, d 768."""
        return cls()

    @classmethod
    def large(cls) -> DINOv3Config:
        """303 M parameters, d 1024."""
        return cls(width=1024, depth=24, heads=16, hidden=4096)

    @classmethod
    def huge_plus(cls) -> DINOv3Config:
        """841 M parameters, d 1280."""
        return cls(width=1280, depth=32, heads=20, hidden=5120, gated=True)

    @property
    def preprocessing(self) -> Preprocessing:
        """What transformers does to images before DINOv3."""
        return Preprocessing(224)


def rotation(rows: int, columns: int, channels: int) -> Rotation:
    """Cosines and sines by which queries and keys of each patch are turned.

    A quarter of the channels is turned with the patch's height in the image, a quarter with its place along the width,
    both in [-1, 1] whatever the image's size; the other half are their partners in the turn.

    Args:
        rows: of patches.
        columns: of patches.
        channels: of one head.
    """
    periods = BASE ** (np.arange(channels // 4) / (channels // 4))
    y, x = (2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, columns))
    places = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = np.tile((2 * np.pi * places / periods).reshape(rows * columns, channels // 2), 2)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotated(x: Float[jax.Array, "n t h k"], turn: Rotation, first: int) -> Float[jax.Array, "n t h k"]:
    """Queries or keys, those of the tokens from `first` on turned, in float32."""
    cos, sin = (part[None, :, None] for part in turn)
    patches = x[:, first:].astype(jnp.float32)
    one, other = jnp.split(patches, 2, axis=-1)
    patches = patches * cos + jnp.concatenate([-other, one], axis=-1) * sin
    return jnp.concatenate([x[:, :first], patches.astype(x.dtype)], axis=1)


class Attention(nnx.Module):
    """Self-attention in which patches meet turned by their places; keys have no bias."""

    def __init__(self, width: int, heads: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        init = nnx.initializers.xavier_uniform()
        self.heads = heads
        self.qkv = layers.Pointwise(width, 3 * width, init=init, dtype=dtype, rngs=rngs)
        self.query_bias, self.value_bias = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.zeros(width))
        self.out = layers.Pointwise(width, width, bias=True, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[jax.Array, "n t d"], turn: Rotation) -> Float[jax.Array, "n t d"]:
        """Mix tokens."""
        n, t, d = x.shape
        query_bias, value_bias = self.query_bias.get_value(), self.value_bias.get_value()
        bias = jnp.concatenate([query_bias, jnp.zeros(d), value_bias])
        qkv = self.qkv(x) + bias[None, None].astype(x.dtype)
        query, key, value = jnp.moveaxis(qkv.reshape(n, t, 3, self.heads, -1), 2, 0)
        first = t - len(turn[0])
        query, key = rotated(query, turn, first), rotated(key, turn, first)
        return self.out(transformer.attend(query, key, value).reshape(n, t, d))


class Block(nnx.Module):
    """Attention, then two linear layers, each on normalised tokens, scaled and added to them."""

    def __init__(self, config: DINOv3Config, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        width, hidden, init = config.width, config.hidden, nnx.initializers.xavier_uniform()
        self.norm1 = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, config.heads, dtype=dtype, rngs=rngs)
        self.scale1 = layers.Scale(width, LAYER_SCALE, dtype=dtype)
        self.norm2 = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.widen = layers.Pointwise(width, hidden, bias=True, init=init, dtype=dtype, rngs=rngs)
        gate = layers.Pointwise(width, hidden, bias=True, init=init, dtype=dtype, rngs=rngs) if config.gated else None
        self.gate = gate
        self.narrow = layers.Pointwise(hidden, width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.scale2 = layers.Scale(width, LAYER_SCALE, dtype=dtype)

    def __call__(self, x: Float[jax.Array, "n t d"], turn: Rotation) -> Float[jax.Array, "n t d"]:
        """Transform tokens."""
        x = x + self.scale1(self.attention(self.norm1(x), turn))
        y = self.norm2(x)
        y = layers.gelu(self.widen(y)) if self.gate is None else nnx.silu(self.gate(y)) * self.widen(y)
        return x + self.scale2(self.narrow(y))


class DINOv3(transformer.ClassToken):
    """Images to tokens: the class token is the embedding, those of the patches are the features."""

    def __init__(
        self,
        config: DINOv3Config,
        *,
        pooling: layers.Pooling | None = None,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Build with random weights.

        Args:
            config: the shape.
            pooling: of the patches' tokens to the embedding; the class token, which is as published, if None.
            dtype: of the arithmetic; parameters are float32.
            remat: keep only the blocks' inputs for the backward pass and compute the rest again.
            rngs: of the initial weights.
        """
        width, init = config.width, nnx.initializers.truncated_normal(0.02)
        self.config, self.dtype, self.remat = config, dtype, remat
        self.patches = layers.Conv(
            3, width, config.patch, stride=config.patch, padding="none", bias=True, dtype=dtype, rngs=rngs
        )
        self.class_token = nnx.Param(init(rngs.params(), (1, width)))
        self.registers = nnx.Param(init(rngs.params(), (config.registers, width)))
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.pool = None if pooling is None else layers.Pool(pooling, width)
        self.dim = width if self.pool is None else self.pool.dim

    def tokens(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n t d"]:
        """As `ClassToken` says."""
        config = self.config
        turn = rotation(*transformer.patch_grid(images, config.patch), config.width // config.heads)
        extra = jnp.concatenate([self.class_token.get_value(), self.registers.get_value()]).astype(self.dtype)
        x = self.patches(images).reshape(images.shape[0], -1, config.width)
        x = jnp.concatenate([transformer.repeated(extra, x), x], axis=1)
        return self.norm(transformer.run_blocks(self.blocks, x, turn, remat=self.remat))

    def depth_groups(self) -> tuple[tuple[str, ...], ...]:
        """What makes the tokens, every block, and the last normalisation."""
        stem = ("patches", "class_token", "registers")
        return stem, *((f"blocks.{i}",) for i in range(len(self.blocks))), ("norm", "pool")


class _Names(NamedTuple):
    """What a file calls the layers.

    Attributes:
        kernels: of queries, keys and values: one or three.
        biases: of queries and of values, or none.
        gated: the three linear layers of a gated block: `widen`, the gate, `narrow`.
    """

    class_token: str
    registers: str
    patches: str
    block: str
    kernels: tuple[str, ...]
    biases: tuple[str, ...]
    out: str
    scales: tuple[str, str]
    widen: str
    narrow: str
    gated: tuple[str, str, str]
    classifier: str


TIMM = _Names(
    class_token="cls_token",
    registers="reg_token",
    patches="patch_embed.proj",
    block="blocks.{index}",
    kernels=("attn.qkv.weight",),
    biases=(),
    out="attn.proj",
    scales=("gamma_1", "gamma_2"),
    widen="mlp.fc1",
    narrow="mlp.fc2",
    gated=("mlp.fc1_x", "mlp.fc1_g", "mlp.fc2"),
    classifier="head",
)
TIMM_WITH_BIAS = TIMM._replace(biases=("attn.q_bias", "attn.v_bias"))
AUTHORS = TIMM._replace(
    registers="storage_tokens",
    biases=("attn.qkv.bias", "attn.qkv.bias"),
    scales=("ls1.gamma", "ls2.gamma"),
    gated=("mlp.w2", "mlp.w1", "mlp.w3"),
)
TRANSFORMERS = _Names(
    class_token="embeddings.cls_token",
    registers="embeddings.register_tokens",
    patches="embeddings.patch_embeddings",
    block="layer.{index}",
    kernels=("attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight"),
    biases=("attention.q_proj.bias", "attention.v_proj.bias"),
    out="attention.o_proj",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    widen="mlp.up_proj",
    narrow="mlp.down_proj",
    gated=("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"),
    classifier="classifier",
)


def weight_tables(config: DINOv3Config) -> tuple[pretrained.Table, ...]:
    """Tables for the names of transformers, of timm, without and with biases, and of DINOv3's authors.

    timm and the authors take larger images than transformers.
    """
    larger = Preprocessing(256)
    bicubic = dataclasses.replace(larger, interpolation="bicubic")
    kinds = {TRANSFORMERS: None, TIMM: bicubic, TIMM_WITH_BIAS: bicubic, AUTHORS: larger}
    return tuple(_table(config, names, preprocessing) for names, preprocessing in kinds.items())


def _table(config: DINOv3Config, names: _Names, preprocessing: Preprocessing | None) -> pretrained.Table:
    zeros = [f"blocks.{i}.attention.{kind}_bias" for i in range(config.depth) for kind in ("query", "value")]
    return pretrained.Table(
        tuple(_rows(config, names)),
        (f"{names.classifier}.weight", f"{names.classifier}.bias"),
        # What stood for hidden patches in training, the mask of the keys' bias, and the periods, which are ours too.
        ignored=("mask_token", "qkv.bias_mask", "rope_embed.periods"),
        preprocessing=preprocessing,
        zeros=tuple(zeros) if names is TIMM else (),
    )


def _rows(config: DINOv3Config, names: _Names) -> Iterator[pretrained.Row]:
    yield pretrained.Row(names.class_token, "class_token", pretrained.first)
    yield pretrained.Row(names.registers, "registers", pretrained.first)
    yield from pretrained.with_bias(names.patches, "patches", pretrained.convolution)
    for index in range(config.depth):
        prefix, path = names.block.format(index=index), f"blocks.{index}"
        yield from pretrained.norm(f"{prefix}.norm1", f"{path}.norm1")
        yield from _attention(prefix, f"{path}.attention", names)
        yield from pretrained.with_bias(f"{prefix}.{names.out}", f"{path}.attention.out", pretrained.linear)
        yield pretrained.Row(f"{prefix}.{names.scales[0]}", f"{path}.scale1.scale")
        yield from pretrained.norm(f"{prefix}.norm2", f"{path}.norm2")
        ours = ("widen", "gate", "narrow") if config.gated else ("widen", "narrow")
        theirs = names.gated if config.gated else (names.widen, names.narrow)
        for layer, name in zip(ours, theirs, strict=True):
            yield from pretrained.with_bias(f"{prefix}.{name}", f"{path}.{layer}", pretrained.linear)
        yield pretrained.Row(f"{prefix}.{names.scales[1]}", f"{path}.scale2.scale")
    yield from pretrained.norm("norm", "norm")


def _attention(prefix: str, path: str, names: _Names) -> Iterator[pretrained.Row]:
    """Queries, keys and values; a bias of all three holds one of the keys as well, which is masked."""
    kernel, *more = (f"{prefix}.{name}" for name in names.kernels)
    yield pretrained.Row(kernel, f"{path}.qkv.kernel", pretrained.joined_linear, tuple(more))
    shared = len(set(names.biases)) == 1
    for kind, place, name in zip(("query", "value"), (0, 2), names.biases, strict=bool(names.biases)):
        layout = pretrained.third(place) if shared else pretrained.unchanged
        yield pretrained.Row(f"{prefix}.{name}", f"{path}.{kind}_bias", layout)
