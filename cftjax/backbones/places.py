"""Places that count twice: what an image's likeliest places show of a category, added to what all of them show.

An object covers a few places of an image, and the mean over all of them dilutes it. With the logit of a place, which is
the category's head at the features of that place, the logit of an image is the mean over all places, plus a multiple of
the mean over the likeliest ones. Its embedding of a category is the same mean of features, so that the logit is a
linear head of it and may be tuned as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from cftjax.config import ClassifierConfig

if TYPE_CHECKING:
    from cftjax.backbones import Backbone


class LikeliestPlaces(nnx.Module):
    """A backbone with an embedding for every category, in the place of one with an embedding for all.

    Which places of an image are the likeliest is decided by the head that the backbone was trained with, whatever
    becomes of it later: embeddings stay what they are.
    """

    def __init__(self, backbone: Backbone, kernel: Float[jax.Array, "c d"], config: ClassifierConfig) -> None:
        """Look through this backbone.

        Args:
            backbone: whose embedding is the mean of its features.
            kernel: that it was trained with.
            config: how many places count twice, and how much.
        """
        self.backbone, self.kernel = backbone, nnx.Param(jnp.asarray(kernel))
        self.config = config
        self.shape: tuple[int, ...] = kernel.shape

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n c d"]:
        """Embeddings z in float32, one for each category."""
        features = of_places(self.backbone.features(images))
        some = likeliest(features, self.kernel.get_value(), self.config.places)
        shares = chosen(some, features.shape[1]).astype(jnp.float32) / self.config.places
        top = jnp.einsum("ncp,npd->ncd", shares, features, precision=jax.lax.Precision.HIGHEST)
        return jnp.mean(features, axis=1)[:, None] + self.config.places_weight * top


def embedding_shape(backbone: Any) -> tuple[int, ...]:
    """The shape of an image's embedding: [d], or [c d] where each category has its own."""
    return backbone.shape if isinstance(backbone, LikeliestPlaces) else (backbone.dim,)


def of_places(features: Float[jax.Array, "n y x d"]) -> Float[jax.Array, "n p d"]:
    """Feature maps with all places in one axis, in float32."""
    n, height, width, dim = features.shape
    return features.reshape(n, height * width, dim).astype(jnp.float32)


def likeliest(
    features: Float[jax.Array, "n p d"], kernel: Float[jax.Array, "c d"], num: int
) -> Int[jax.Array, "n c k"]:
    """The places where a category's logit is largest; of equal ones the first."""
    logits = jnp.einsum("npd,cd->ncp", features, kernel, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(logits, num)[1]


def chosen(places: Int[jax.Array, "n c k"], num: int) -> Bool[jax.Array, "n c p"]:
    """Which of `num` places are among them."""
    return jnp.any(places[..., None] == jnp.arange(num)[None, None, None], axis=2)


def pooled_logits(
    features: Float[jax.Array, "n y x d"],
    kernel: Float[jax.Array, "d c"],
    bias: Float[jax.Array, " c"],
    config: ClassifierConfig,
) -> Float[jax.Array, "n c"]:
    """The logits of `LikeliestPlaces` embeddings under the head that picks the places, without making them."""
    logits = jnp.einsum("npd,dc->ncp", of_places(features), kernel, precision=jax.lax.Precision.HIGHEST)
    top = jax.lax.top_k(logits, config.places)[0]
    return jnp.mean(logits, axis=2) + config.places_weight * jnp.mean(top, axis=2) + bias[None]


def check(backbone: Backbone, config: ClassifierConfig, image_size: int) -> None:
    """Refuse a backbone without places, or without more of them than count twice.

    Args:
        backbone: the network; shapes are enough.
        config: how many places count twice.
        image_size: of the images, in pixels.

    Raises:
        ValueError: with the mend.
    """
    pool = getattr(backbone, "pool", None)
    if pool is None or pool.pooling != "mean":
        what = "not pooled from places" if pool is None else f"pooled by {pool.pooling}"
        raise ValueError(
            f"--classifier.places {config.places} adds to the mean over places, and this backbone's embedding is "
            f"{what}: add --backbone.pooling mean"
        )
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    _, height, width, _ = nnx.eval_shape(lambda module, given: module.features(given), backbone, images).shape
    if config.places >= height * width:
        raise ValueError(
            f"--classifier.places {config.places} are not fewer than the {height} x {width} places that the backbone "
            f"sees at {image_size} pixels: use fewer, or a larger --data.image-size"
        )
