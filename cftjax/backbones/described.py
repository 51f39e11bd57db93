"""What lies beside a file of weights and says what images went through in training: `config.json` and its like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cftjax.backbones import pretrained
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import storage

TIMM, TRANSFORMERS = "config.json", "preprocessor_config.json"
BILINEAR = 2
"""What transformers, after PIL, calls bilinear interpolation."""


def preprocessing(source: str | Path, default: Preprocessing, tables: Sequence[pretrained.Table] = ()) -> Preprocessing:
    """Size, normalisation and interpolation that these weights were trained with.

    Args:
        source: as for `pretrained.load`. A `config.json` beside the file, as timm's repositories have it, decides, or a
            `preprocessor_config.json`, as those of transformers have it.
        default: of the architecture; its `resize` stays in any case.
        tables: of names; for weights that come without such a file, that of the fitting one comes before `default`.
    """
    stored = _beside(source, TIMM)
    stored = stored.get("pretrained_cfg", stored)
    if {"input_size", "mean", "std"} <= stored.keys():
        return Preprocessing(
            image_size=stored["input_size"][-1],
            mean=tuple(stored["mean"]),
            std=tuple(stored["std"]),
            resize=default.resize,
            interpolation="bilinear" if stored.get("interpolation") == "bilinear" else "bicubic",
        )
    stored = _beside(source, TRANSFORMERS)
    if {"size", "image_mean", "image_std"} <= stored.keys():
        return Preprocessing(
            image_size=_size(stored),
            mean=tuple(stored["image_mean"]),
            std=tuple(stored["image_std"]),
            resize=default.resize,
            interpolation="bilinear" if stored.get("resample") == BILINEAR else "bicubic",
        )
    if not any(table.preprocessing for table in tables):
        return default
    arrays = pretrained.without_some_prefix(pretrained.load(source), tables)
    return pretrained.fitting(arrays, tables).preprocessing or default


def architecture(source: str | Path) -> str | None:
    """What timm calls the network that these weights are of, where a `config.json` beside them says it."""
    return _beside(source, TIMM).get("architecture")


def _size(stored: dict[str, Any]) -> int:
    """The height that the network sees, in pixels: of the part cut out, if one is."""
    size = stored["crop_size"] if stored.get("do_center_crop") and "crop_size" in stored else stored["size"]
    return size if isinstance(size, int) else size.get("height") or size["shortest_edge"]


def _beside(source: str | Path, name: str) -> dict[str, Any]:
    """A file of JSON beside a file of weights; empty where there is none."""
    path = pretrained.locate(source)
    if str(source).startswith("hf:"):
        repository = "/".join(str(source).removeprefix("hf:").split("/")[:2])
        # Downloaded, it lies beside the weights.
        pretrained.from_hub(repository, (name,))
    beside = path.with_name(name)
    return storage.read_json(beside) if beside.is_file() else {}
