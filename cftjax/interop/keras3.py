"""CFT on a model of Keras 3, in place: `cftjax.keras.fine_tune(model, (images, labels), (images, labels))`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cftjax import extras
from cftjax.config import TuningConfig
from cftjax.interop import arrays
from cftjax.interop.arrays import Tuned
from cftjax.text import few
from cftjax.types import Embeddings

try:
    import keras  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(f"cftjax.keras needs Keras 3 (and KERAS_BACKEND=jax): {extras.install('keras')}") from error


def fine_tune(
    model: keras.Model,
    train: tuple[Any, Any] | Iterable[Any],
    validation: tuple[Any, Any] | Iterable[Any] | None = None,
    *,
    layer: str | None = None,
    config: TuningConfig | None = None,
) -> Tuned:
    """Fine-tune each category of a model's last Dense layer on its known labels, and put the new weights into it.

    Args:
        model: functional or sequential; its last activation may be a sigmoid, and stays.
        train: (images, labels [n c]), or batches of these; labels 1, 0, and NaN where unknown.
        validation: the same of the images that judge; None cross-validates on the training labels.
        layer: name of the Dense layer; None takes the last layer.
        config: search, polish, choice and decisions; None for the defaults.

    Returns:
        Which candidate each category keeps, and calibration and thresholds for the new logits (before a sigmoid).

    Raises:
        ValueError: where there is no such layer, or labels do not fit.
    """
    dense = find_layer(model, layer)
    seeing = keras.Model(model.inputs, dense.input)
    seen = embed(seeing, train, "train")
    judging = None if validation is None else embed(seeing, validation, "validation")
    kernel, bias = (np.asarray(weights, np.float32) for weights in dense.get_weights())
    tuned = arrays.tune(seen, judging, kernel.T, bias, config)
    dense.set_weights([np.asarray(tuned.chosen.heads.kernel).T, np.asarray(tuned.chosen.heads.bias)])
    return tuned


def find_layer(model: keras.Model, name: str | None) -> keras.layers.Dense:
    """The Dense layer of a name, or the last layer.

    Raises:
        ValueError: with the names of all layers that may be meant.
    """
    dense = {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.Dense)}
    found = dense.get(model.layers[-1].name if name is None else name)
    if found is None:
        asked = "the last layer is no Dense" if name is None else f"no Dense layer {name!r}"
        raise ValueError(f"{asked} in the model: name one with layer=; it has {few(list(dense)) or 'none'}")
    if not found.use_bias:
        raise ValueError(f"the layer {found.name} has no bias, which each category needs: build it with use_bias=True")
    return found


def embed(seeing: keras.Model, data: tuple[Any, Any] | Iterable[Any], split: str) -> Embeddings:
    """What the last layer is given for every image, and the labels.

    Args:
        seeing: the model up to its last layer.
        data: (images, labels), or batches of these.
        split: what messages call it.
    """
    batches = [data] if isinstance(data, tuple) else data
    seen, labels = [], []
    for images, given in batches:
        seen.append(np.asarray(seeing.predict(images, verbose=0), np.float32))
        labels.append(np.asarray(given, np.float32))
    if not seen:
        raise ValueError(f"{split}: there is no batch")
    return arrays.embeddings(np.concatenate(seen), np.concatenate(labels), split)
