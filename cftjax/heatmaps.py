"""Where in an image a category is seen: its logit, shared out over the places of the feature map.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016), extended to maxima.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from cftjax.types import Heads


def places(features: Float[np.ndarray, "n y x k"], dim: int) -> Float[np.ndarray, "n y x d"]:
    """What every place gives to the embedding: the mean over all places is the embedding z.

    Where z is the mean of the features, a place gives its features. Where their maxima follow, a channel's maximum is
    given by the place where it stands alone (the first of equals), times the number of places.

    Args:
        features: of n images.
        dim: d, of the embedding.

    Raises:
        ValueError: where the embedding is neither.
    """
    n, y, x, k = features.shape
    features = features.astype(np.float32)
    if dim == k:
        return features
    if dim != 2 * k:
        raise ValueError(f"embeddings of {dim} numbers are no pooled features of {k} channels: they have no heatmaps")
    flat = features.reshape(n, y * x, k)
    highest = np.zeros_like(flat)
    first = flat.argmax(axis=1, keepdims=True)
    np.put_along_axis(highest, first, y * x * np.take_along_axis(flat, first, axis=1), axis=1)
    return np.concatenate([features, highest.reshape(features.shape)], axis=-1)


def maps(features: Float[np.ndarray, "n y x k"], heads: Heads) -> Float[np.ndarray, "n y x c"]:
    """The heads at every place; the mean over all places is the logit.

    Above 0 a place speaks for the category, below 0 against it.
    """
    kernel, bias = np.asarray(heads.kernel), np.asarray(heads.bias)
    return places(features, kernel.shape[1]) @ kernel.T + bias
