"""CFT on a model of PyTorch, in place: `cftjax.torch.fine_tune(model, train_loader, validation_loader, layer="fc")`."""

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
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(f"cftjax.torch needs PyTorch: {extras.install('torch')}") from error


def fine_tune(
    model: nn.Module,
    train_loader: Iterable[Any],
    validation_loader: Iterable[Any] | None = None,
    *,
    layer: str | None = None,
    config: TuningConfig | None = None,
) -> Tuned:
    """Fine-tune each category of a model's last layer on its known labels, and put the new layer into the model.

    Args:
        model: gives logits [n c]; may be wrapped in DataParallel. Its mode and everything but the layer stay.
        train_loader: batches of (images, labels [n c]), labels 1, 0, and NaN where unknown; transformed as in
            validation, without augmentation, in any order.
        validation_loader: the same of the images that judge; None cross-validates on the training labels.
        layer: name of the last torch.nn.Linear, such as "fc" or "head"; None asks a timm model, or takes the only one.
        config: search, polish, choice and decisions; None for the defaults.

    Returns:
        Which candidate each category keeps, and calibration and thresholds for the new logits.

    Raises:
        ValueError: where there is no such layer, or it is not the last one, or labels do not fit.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    last = find_layer(model, layer)
    train = embed(model, last, train_loader, "train")
    validation = None if validation_loader is None else embed(model, last, validation_loader, "validation")
    kernel = last.weight.detach().float().cpu().numpy()
    bias = np.zeros(len(kernel), np.float32) if last.bias is None else last.bias.detach().float().cpu().numpy()
    tuned = arrays.tune(train, validation, kernel, bias, config)
    put_back(last, tuned.chosen.heads.kernel, tuned.chosen.heads.bias)
    return tuned


def find_layer(model: nn.Module, name: str | None) -> nn.Linear:
    """The last layer of a model, by its name or by what the model says of itself.

    Raises:
        ValueError: with the names of all layers that may be meant.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    if name is not None:
        if name.removeprefix("module.") in layers:
            return layers[name.removeprefix("module.")]
        raise ValueError(f"no torch.nn.Linear {name!r} in the model; it has {few(list(layers)[-5:]) or 'none'}")
    asked: Any = getattr(model, "get_classifier", lambda: None)()  # timm
    if isinstance(asked, nn.Linear):
        return asked
    if len(layers) == 1:
        return next(iter(layers.values()))
    raise ValueError(f"which layer is the last? Name it with layer=: the model has {few(list(layers)[-5:]) or 'none'}")


@torch.no_grad()
def embed(model: nn.Module, last: nn.Linear, loader: Iterable[Any], split: str) -> Embeddings:
    """What the last layer is given for every image of a loader, and the labels.

    Args:
        model: the whole.
        last: its last layer.
        loader: batches of images and labels.
        split: what messages call it.
    """
    given: list[torch.Tensor] = []
    seen, labels = [], []
    device, training = last.weight.device, model.training
    hook = last.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.eval()
    try:
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise ValueError(f"{split}: the loader gives {type(batch).__name__}: give (images, labels)")
            given.clear()
            model(batch[0].to(device))
            if len(given) != 1:
                raise ValueError(f"{split}: the layer is called {len(given)} times for a batch: name the last layer")
            seen.append(given[0].float().cpu().numpy())
            labels.append(np.asarray(batch[1], np.float32))
    finally:
        hook.remove()
        model.train(training)
    if not seen:
        raise ValueError(f"{split}: the loader is empty")
    return arrays.embeddings(np.concatenate(seen), np.concatenate(labels), split)


@torch.no_grad()
def put_back(last: nn.Linear, kernel: Any, bias: Any) -> None:
    """Give the layer new weights where it is, and a bias if it had none."""
    last.weight.copy_(torch.from_numpy(np.array(kernel)))
    if last.bias is None:
        last.bias = nn.Parameter(torch.zeros_like(last.weight[:, 0]))
    last.bias.copy_(torch.from_numpy(np.array(bias)))
