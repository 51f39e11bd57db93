"""SigLIP's and SigLIP 2's vision towers: patches without a class token, summed up by one learnt query.

Source: M. Tschannen et al., "SigLIP 2" (arXiv 2502.14786, 2025); X. Zhai et al., "Sigmoid Loss for Language Image
Pre-Training" (ICCV 2023), whose towers have the same shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from cftjax.backbones import layers, pretrained, transformer
from cftjax.input.preprocessing import Preprocessing

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    """The shape of a vision tower.

    Attributes:
        width: of the tokens, d.
        depth: blocks.
        heads: of the attention.
        hidden: width between the two linear layers of a block.
        patch: height and width of the squares that become tokens, in pixels.
        image_size: height and width that the position embeddings were trained for, in pixels; they are interpolated
            to other sizes.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    image_size: int = 224

    @classmethod
    def base(cls, image_size: int) -> SigLIPConfig:
        """93 M parameters, d 768."""
        return cls(image_size=image_size)

    @classmethod
    def large(cls, image_size: int) -> SigLIPConfig:
        """316 M parameters, d 1024."""
        return cls(width=1024, depth=24, heads=16, hidden=4096, image_size=image_size)

    @classmethod
    def so400m(cls, image_size: int, patch: int = 16) -> SigLIPConfig:
        """428 M parameters, d 1152."""
        return cls(width=1152, depth=27, heads=16, hidden=4304, image_size=image_size, patch=patch)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the authors did to images, which is to squeeze them."""
        return Preprocessing(self.image_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Summary(nnx.Module):
    """One learnt query attends to all tokens ("multihead attention pooling"), then two linear layers."""

    def __init__(self, config: SigLIPConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        width, hidden, init = config.width, config.hidden, nnx.initializers.xavier_uniform()
        self.heads, self.dtype = config.heads, dtype
        self.probe = nnx.Param(init(rngs.params(), (1, width)))
        self.query = layers.Pointwise(width, width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.key_value = layers.Pointwise(width, 2 * width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.out = layers.Pointwise(width, width, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.widen = layers.Pointwise(width, hidden, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.narrow = layers.Pointwise(hidden, width, bias=True, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[jax.Array, "n t d"]) -> Float[jax.Array, "n d"]:
        """One vector per image."""
        n, t, d = tokens.shape
        query = transformer.repeated(self.query(self.probe.get_value()), tokens).reshape(n, 1, self.heads, -1)
        key, value = jnp.moveaxis(self.key_value(tokens).reshape(n, t, 2, self.heads, -1), 2, 0)
        x = self.out(jax.nn.dot_product_attention(query, key, value).reshape(n, d))
        return x + self.narrow(layers.gelu_tanh(self.widen(self.norm(x))))


class SigLIP(nnx.Module):
    """Images to tokens: their summary is the embedding, they themselves are the features."""

    def __init__(
        self,
        config: SigLIPConfig,
        *,
        pooling: layers.Pooling | None = None,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Build with random weights.

        Args:
            config: the shape.
            pooling: of the patches' tokens to the embedding; their summary, which is as published, if None. Otherwise
                the summary's weights are there and rest.
            dtype: of the arithmetic; parameters are float32.
            remat: keep only the blocks' inputs for the backward pass and compute the rest again.
            rngs: of the initial weights.
        """
        width, init = config.width, nnx.initializers.truncated_normal(0.02)
        self.config, self.dtype, self.remat = config, dtype, remat
        self.patches = layers.Conv(
            3, width, config.patch, stride=config.patch, padding="none", bias=True, dtype=dtype, rngs=rngs
        )
        grid = config.image_size // config.patch
        self.positions = nnx.Param(init(rngs.params(), (grid**2, width)))
        self.blocks = nnx.List([self._block(dtype, rngs) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.summary = Summary(config, dtype=dtype, rngs=rngs)
        self.pool = None if pooling is None else layers.Pool(pooling, width)
        self.dim = width if self.pool is None else self.pool.dim

    def _block(self, dtype: Any, rngs: nnx.Rngs) -> transformer.Block:
        config = self.config
        return transformer.Block(
            config.width,
            config.heads,
            hidden=config.hidden,
            epsilon=EPSILON,
            activation=layers.gelu_tanh,
            dtype=dtype,
            rngs=rngs,
        )

    def features(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n y x d"]:
        """Normalised tokens of the last block, where they stand in the image.

        Raises:
            ValueError: the images are no whole number of patches high or wide.
        """
        grid = transformer.patch_grid(images, self.config.patch)
        x = self.patches(images).reshape(images.shape[0], -1, self.config.width)
        positions = transformer.resized_positions(self.positions.get_value(), *grid)
        x = transformer.run_blocks(self.blocks, x + positions[None].astype(self.dtype), remat=self.remat)
        return self.norm(x).reshape(images.shape[0], *grid, self.config.width)

    def depth_groups(self) -> tuple[tuple[str, ...], ...]:
        """What makes the tokens, every block, and what sums them up."""
        blocks = ((f"blocks.{i}",) for i in range(len(self.blocks)))
        return ("patches", "positions"), *blocks, ("norm", "summary", "pool")

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """Embeddings z in float32."""
        maps = self.features(images)
        if self.pool is not None:
            return self.pool(maps)
        return self.summary(maps.reshape(images.shape[0], -1, self.config.width)).astype(jnp.float32)


class _Names(NamedTuple):
    """What a file calls the layers."""

    positions: str
    patches: str
    block: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    out: str
    norm: str
    summary: str
    classifier: str


TIMM = _Names(
    positions="pos_embed",
    patches="patch_embed.proj",
    block="blocks.{index}",
    norms=("norm1", "norm2"),
    qkv=("attn.qkv.weight", "attn.qkv.bias"),
    out="attn.proj",
    norm="norm",
    summary="attn_pool",
    classifier="head",
)
TRANSFORMERS = _Names(
    positions="embeddings.position_embedding.weight",
    patches="embeddings.patch_embedding",
    block="encoder.layers.{index}",
    norms=("layer_norm1", "layer_norm2"),
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    norm="post_layernorm",
    summary="head",
    classifier="classifier",
)


def weight_tables(config: SigLIPConfig) -> tuple[pretrained.Table, ...]:
    """Tables for the names of transformers, whose files may hold the text's network as well, and of timm."""
    bicubic = dataclasses.replace(config.preprocessing, interpolation="bicubic")
    return tuple(
        pretrained.Table(
            tuple(_rows(config, names)),
            (f"{names.classifier}.weight", f"{names.classifier}.bias"),
            ignored=("position_ids",),
            preprocessing=preprocessing,
            others=("text_model.", "logit_scale", "logit_bias"),
        )
        for names, preprocessing in ((TRANSFORMERS, None), (TIMM, bicubic))
    )


def _rows(config: SigLIPConfig, names: _Names) -> Iterator[pretrained.Row]:
    positions = pretrained.first if names is TIMM else pretrained.unchanged
    yield pretrained.Row(names.positions, "positions", positions)
    yield from pretrained.with_bias(names.patches, "patches", pretrained.convolution)
    for index in range(config.depth):
        prefix, path = names.block.format(index=index), f"blocks.{index}"
        yield from pretrained.norm(f"{prefix}.{names.norms[0]}", f"{path}.norm1")
        yield from pretrained.queries(tuple(f"{prefix}.{name}" for name in names.qkv), f"{path}.attention.qkv")
        yield from pretrained.with_bias(f"{prefix}.{names.out}", f"{path}.attention.out", pretrained.linear)
        yield from pretrained.norm(f"{prefix}.{names.norms[1]}", f"{path}.norm2")
        yield from pretrained.with_bias(f"{prefix}.mlp.fc1", f"{path}.widen", pretrained.linear)
        yield from pretrained.with_bias(f"{prefix}.mlp.fc2", f"{path}.narrow", pretrained.linear)
    yield from pretrained.norm(names.norm, "norm")
    yield from (_timm_summary if names is TIMM else _transformers_summary)(names.summary)


def _timm_summary(name: str) -> Iterator[pretrained.Row]:
    yield pretrained.Row(f"{name}.latent", "summary.probe", pretrained.first)
    yield from pretrained.with_bias(f"{name}.q", "summary.query", pretrained.linear)
    yield from pretrained.with_bias(f"{name}.kv", "summary.key_value", pretrained.linear)
    yield from _after(name, "proj", "norm")


def _transformers_summary(name: str) -> Iterator[pretrained.Row]:
    def part(start: int, end: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: np.concatenate(np.split(array, 3)[start:end]).T

    yield pretrained.Row(f"{name}.probe", "summary.probe", pretrained.first)
    for kind, ours in (("weight", "kernel"), ("bias", "bias")):
        joint = f"{name}.attention.in_proj_{kind}"
        yield pretrained.Row(joint, f"summary.query.{ours}", part(0, 1))
        yield pretrained.Row(joint, f"summary.key_value.{ours}", part(1, 3))
    yield from _after(name, "attention.out_proj", "layernorm")


def _after(name: str, out: str, norm: str) -> Iterator[pretrained.Row]:
    """What follows the attention in the summary."""
    yield from pretrained.with_bias(f"{name}.{out}", "summary.out", pretrained.linear)
    yield from pretrained.norm(f"{name}.{norm}", "summary.norm")
    yield from pretrained.with_bias(f"{name}.mlp.fc1", "summary.widen", pretrained.linear)
    yield from pretrained.with_bias(f"{name}.mlp.fc2", "summary.narrow", pretrained.linear)
