"""Vision transformers with a class token, and their DINOv2 form with layer scale and registers.

Sources: A. Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021); M. Oquab et al., "DINOv2" (TMLR 2024);
T. Darcet et al., "Vision Transformers Need Registers" (ICLR 2024).
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

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of a vision transformer.

    Attributes:
        width: of the tokens, d.
        depth: blocks.
        heads: of the attention.
        patch: height and width of the squares that become tokens, in pixels.
        image_size: height and width that the position embeddings were trained for, in pixels; they are interpolated
            to other sizes.
        registers: tokens that stand for no patch, after the class token.
        layer_scale: the start of the factors on each residual branch; None for no factors.
        class_position: the class token has a position embedding as well.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 224
    registers: int = 0
    layer_scale: float | None = None
    class_position: bool = True

    @classmethod
    def small(cls) -> ViTConfig:
        """22 M parameters, d 384."""
        return cls(width=384, heads=6)

    @classmethod
    def base(cls) -> ViTConfig:
        """86 M parameters, d 768."""
        return cls()

    @classmethod
    def large(cls) -> ViTConfig:
        """303 M parameters, d 1024."""
        return cls(width=1024, depth=24, heads=16)

    def dinov2(self, registers: int = 0) -> ViTConfig:
        """As DINOv2 trained it: patches of 14 pixels, images of 518; with registers only patches have positions."""
        return dataclasses.replace(
            self,
            patch=14,
            image_size=518,
            registers=registers,
            layer_scale=1e-5,
            class_position=registers == 0,
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """What torchvision's weights, and DINOv2's linear probes, were trained with, but for the whole image."""
        return Preprocessing(224, interpolation="bilinear" if self.layer_scale is None else "bicubic")


class ViT(transformer.ClassToken):
    """Images to tokens: the class token is the embedding, those of the patches are the features."""

    def __init__(
        self,
        config: ViTConfig,
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
        self.class_token = nnx.Param(jnp.zeros((1, width)))
        self.registers = nnx.Param(init(rngs.params(), (config.registers, width))) if config.registers else None
        grid = config.image_size // config.patch
        self.positions = nnx.Param(init(rngs.params(), (config.class_position + grid**2, width)))
        self.blocks = nnx.List([self._block(dtype, rngs) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.pool = None if pooling is None else layers.Pool(pooling, width)
        self.dim = width if self.pool is None else self.pool.dim

    def _block(self, dtype: Any, rngs: nnx.Rngs) -> transformer.Block:
        config = self.config
        return transformer.Block(
            config.width,
            config.heads,
            hidden=4 * config.width,
            epsilon=EPSILON,
            layer_scale=config.layer_scale,
            dtype=dtype,
            rngs=rngs,
        )

    def tokens(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n t d"]:
        """As `ClassToken` says."""
        grid = transformer.patch_grid(images, self.config.patch)
        x = self.patches(images).reshape(images.shape[0], -1, self.config.width)
        positions = self.positions.get_value()
        first = positions[:1] if self.config.class_position else jnp.zeros_like(positions[:1])
        positions = transformer.resized_positions(positions[self.config.class_position :], *grid)
        x = x + positions[None].astype(self.dtype)
        extra = [self.class_token.get_value() + first]
        if self.registers is not None:
            extra.append(self.registers.get_value())
        extra = jnp.concatenate(extra).astype(self.dtype)
        x = jnp.concatenate([transformer.repeated(extra, x), x], axis=1)
        return self.norm(transformer.run_blocks(self.blocks, x, remat=self.remat))

    def depth_groups(self) -> tuple[tuple[str, ...], ...]:
        """What makes the tokens, every block, and the last normalisation."""
        stem = ("patches", "class_token", "registers", "positions")
        return stem, *((f"blocks.{i}",) for i in range(len(self.blocks))), ("norm", "pool")


class _Names(NamedTuple):
    """What a file calls the layers.

    Attributes:
        qkv: weight and bias of one linear layer, or the names of three.
        class_position: the position embeddings begin with the class token's, even where the network has registers.
    """

    class_token: str
    positions: str
    patches: str
    block: str
    norm1: str
    qkv: tuple[str, ...]
    out: str
    norm2: str
    widen: str
    narrow: str
    norm: str
    classifier: str
    scales: tuple[str, str] = ("ls1.gamma", "ls2.gamma")
    registers: str = "reg_token"
    class_position: bool = False


TORCHVISION = _Names(
    class_token="class_token",
    positions="encoder.pos_embedding",
    patches="conv_proj",
    block="encoder.layers.encoder_layer_{index}",
    norm1="ln_1",
    qkv=("self_attention.in_proj_weight", "self_attention.in_proj_bias"),
    out="self_attention.out_proj",
    norm2="ln_2",
    widen="mlp.0",
    narrow="mlp.3",
    norm="encoder.ln",
    classifier="heads.head",
)
TORCHVISION_FILES = TORCHVISION._replace(widen="mlp.linear_1", narrow="mlp.linear_2")
TIMM = _Names(
    class_token="cls_token",
    positions="pos_embed",
    patches="patch_embed.proj",
    block="blocks.{index}",
    norm1="norm1",
    qkv=("attn.qkv.weight", "attn.qkv.bias"),
    out="attn.proj",
    norm2="norm2",
    widen="mlp.fc1",
    narrow="mlp.fc2",
    norm="norm",
    classifier="head",
)
# The authors of DINOv2 have timm's names, but for the registers.
AUTHORS = TIMM._replace(registers="register_tokens", class_position=True)
TRANSFORMERS = _Names(
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patches="embeddings.patch_embeddings.projection",
    block="encoder.layer.{index}",
    norm1="norm1",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    out="attention.output.dense",
    norm2="norm2",
    widen="mlp.fc1",
    narrow="mlp.fc2",
    norm="layernorm",
    classifier="classifier",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    registers="embeddings.register_tokens",
    class_position=True,
)


def weight_tables(config: ViTConfig) -> tuple[pretrained.Table, ...]:
    """Tables for the names of torchvision, of its files, which it changes while loading, and of timm.

    timm's weights were trained on images in [-1, 1], DINOv2's excepted. DINOv2 has names of timm, its authors, and
    transformers.
    """
    if config.layer_scale is not None:
        dinov2 = (TIMM, AUTHORS, TRANSFORMERS) if config.registers else (TIMM, TRANSFORMERS)
        return tuple(_table(config, names) for names in dinov2)
    centred = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation="bicubic")
    torchvision, files, timm = (_table(config, names) for names in (TORCHVISION, TORCHVISION_FILES, TIMM))
    return torchvision, files, dataclasses.replace(timm, preprocessing=centred)


def _table(config: ViTConfig, names: _Names) -> pretrained.Table:
    # What stood for hidden patches while DINOv2 was trained.
    ignored = ("num_batches_tracked", "mask_token")
    classifier = (f"{names.classifier}.weight", f"{names.classifier}.bias")
    return pretrained.Table(tuple(_rows(config, names)), classifier, ignored)


def _rows(config: ViTConfig, names: _Names) -> Iterator[pretrained.Row]:
    if names.class_position and not config.class_position:
        yield pretrained.Row(names.class_token, "class_token", _placed_class, (names.positions,))
        yield pretrained.Row(names.positions, "positions", lambda positions: positions[0, 1:])
    else:
        yield pretrained.Row(names.class_token, "class_token", pretrained.first)
        yield pretrained.Row(names.positions, "positions", pretrained.first)
    if config.registers:
        yield pretrained.Row(names.registers, "registers", pretrained.first)
    yield from pretrained.with_bias(names.patches, "patches", pretrained.convolution)
    for index in range(config.depth):
        prefix, path = names.block.format(index=index), f"blocks.{index}"
        yield from pretrained.norm(f"{prefix}.{names.norm1}", f"{path}.norm1")
        yield from pretrained.queries(tuple(f"{prefix}.{name}" for name in names.qkv), f"{path}.attention.qkv")
        yield from pretrained.with_bias(f"{prefix}.{names.out}", f"{path}.attention.out", pretrained.linear)
        yield from pretrained.norm(f"{prefix}.{names.norm2}", f"{path}.norm2")
        yield from pretrained.with_bias(f"{prefix}.{names.widen}", f"{path}.widen", pretrained.linear)
        yield from pretrained.with_bias(f"{prefix}.{names.narrow}", f"{path}.narrow", pretrained.linear)
        if config.layer_scale is not None:
            for number, scale in enumerate(names.scales, 1):
                yield pretrained.Row(f"{prefix}.{scale}", f"{path}.scale{number}.scale")
    yield from pretrained.norm(names.norm, "norm")


def _placed_class(token: Float[np.ndarray, "1 1 d"], positions: Float[np.ndarray, "1 t d"]) -> Float[np.ndarray, "1 d"]:
    """The class token with its position, for a network in which only patches have positions."""
    return token[0] + positions[0, :1]
