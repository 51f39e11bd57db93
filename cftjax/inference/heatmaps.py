"""Where in an image a category is seen: its logit, shared out over the places of the feature map.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016);
extended to maxima, weights and likeliest places.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import special

from cftjax.backbones import places as likeliest_places
from cftjax.backbones.layers import Pooling
from cftjax.backbones.places import LikeliestPlaces
from cftjax.types import Heads


def places(
    features: Float[np.ndarray, "n y x k"], pooling: Pooling, query: Float[np.ndarray, " k"] | None = None
) -> Float[np.ndarray, "n y x d"]:
    """What every place gives to the embedding: the mean over all places is the embedding z.

    Where z is the mean of the features, a place gives its features; where the mean is weighted, times the number of
    places and its weight. A channel's maximum is given by the place where it stands alone (the first of equals), times
    the number of places.

    Args:
        features: of n images.
        pooling: of the backbone.
        query: of `attention`.
    """
    n, y, x, k = features.shape
    features = features.astype(np.float32)
    if query is not None:
        weights = special.softmax(features @ query, axis=(1, 2))
        return features * (y * x * weights)[..., None]
    parts = [features] if pooling in ("mean", "mean_max") else []
    if pooling in ("max", "mean_max"):
        flat = features.reshape(n, y * x, k)
        highest = np.zeros_like(flat)
        first = flat.argmax(axis=1, keepdims=True)
        np.put_along_axis(highest, first, y * x * np.take_along_axis(flat, first, axis=1), axis=1)
        parts.append(highest.reshape(features.shape))
    return np.concatenate(parts, axis=-1)


def maps(readable: Float[np.ndarray, "n y x d"], heads: Heads) -> Float[np.ndarray, "n y x c"]:
    """The heads at every place; the mean over all places is the logit.

    Above 0 a place speaks for the category, below 0 against it.

    Args:
        readable: by the places to the embedding, see `places`.
        heads: of the categories.
    """
    return readable @ np.asarray(heads.kernel).T + np.asarray(heads.bias)


def likeliest(
    features: Float[np.ndarray, "n y x d"], backbone: LikeliestPlaces, heads: Heads, some: Sequence[int]
) -> Float[np.ndarray, "n y x c"]:
    """What the likeliest places add to `maps`, where they count twice: with it, the mean over all places is the logit.

    Args:
        features: of n images.
        backbone: which says what the likeliest places are.
        heads: of some categories.
        some: which they are.
    """
    n, y, x, _ = features.shape
    flat = likeliest_places.of_places(jnp.asarray(features))
    kernel = backbone.kernel.get_value()[np.asarray(some)]
    few = likeliest_places.likeliest(flat, kernel, backbone.config.places)
    picked = np.moveaxis(np.asarray(likeliest_places.chosen(few, y * x)), 1, 2).reshape(n, y, x, len(some))
    share = backbone.config.places_weight * y * x / backbone.config.places
    return np.float32(share) * picked * (features.astype(np.float32) @ np.asarray(heads.kernel).T)
