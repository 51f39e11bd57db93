"""A finished run as a model: images in, calibrated probabilities out, and maps of where they come from."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Num, UInt8

from cftjax import types
from cftjax.backbones.places import LikeliestPlaces, embedding_shape
from cftjax.config import InputConfig
from cftjax.data.reading import images
from cftjax.decisions import Decisions
from cftjax.embeddings import embed
from cftjax.inference import heatmaps
from cftjax.input import augment
from cftjax.input.preprocessing import Box, Preprocessing
from cftjax.runs import Run
from cftjax.runtime import digests
from cftjax.text import closest
from cftjax.training import classifier
from cftjax.types import Heads

# Of feature maps, which are a hundred times larger than embeddings.
MAPPED_AT_ONCE = 64

Images = np.ndarray | Sequence[np.ndarray | str | os.PathLike[str]]
Opener = Callable[[int], UInt8[np.ndarray, "h w 3"]]
View = Literal["mirror", "shift"]


class Views(nnx.Module):
    """A backbone that looks several times and takes the mean of its embeddings, and so of its logits."""

    def __init__(self, backbone: Any, views: Sequence[View]) -> None:
        """Look at images and, by `views`, at their mirror images and at images moved a little to the four sides."""
        self.backbone, self.views = backbone, tuple(views)

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n ..."]:
        """The mean over all views of the embeddings z."""
        seen = [images]
        if "shift" in self.views:
            # Half of what training moves an image by at most.
            by = max(round(augment.SHIFT / 2 * images.shape[1]), 1)
            size = images.shape[1]
            wide = jnp.pad(images, ((0, 0), (by, by), (by, by), (0, 0)), mode="edge")
            for top, left in ((0, by), (2 * by, by), (by, 0), (by, 2 * by)):
                seen.append(wide[:, top : top + size, left : left + size])
        if "mirror" in self.views:
            seen += [view[:, :, ::-1] for view in seen]
        total = self.backbone.embed(seen[0])
        for view in seen[1:]:
            total += self.backbone.embed(view)
        return total / len(seen)


class Features(nnx.Module):
    """A backbone without its pooling, in the place of one."""

    def __init__(self, backbone: Any) -> None:
        """Of this backbone."""
        self.backbone = backbone

    def embed(self, images: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n d"]:
        """All features of an image in one row."""
        return self.backbone.features(images).astype(jnp.float32).reshape(len(images), -1)


class Seen(NamedTuple):
    """What is said of consecutive images.

    Attributes:
        probs: [m c] calibrated.
        opened: [m] whether the image could be opened; else what is said of it means nothing.
    """

    probs: Float[np.ndarray, "m c"]
    opened: Bool[np.ndarray, " m"]


@dataclasses.dataclass(frozen=True)
class Given:
    """Opens the image of a row, be it given as pixels or as a file."""

    images: Images

    def __call__(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image of a row."""
        image = self.images[row]
        return image if isinstance(image, np.ndarray) else images.open_image(image)


@dataclasses.dataclass(frozen=True)
class Model:
    """Backbone, final heads and decisions of a run.

    Every method takes images as uint8 [n h w 3], or a list of uint8 [h w 3] of any sizes and of paths. They go the way
    of the run's own validation and test images: large JPEGs are decoded at reduced scale where they are given as paths,
    so that their pixels, read elsewhere, give slightly different numbers.

    Attributes:
        backbone: images to embeddings.
        heads: embeddings to logits.
        decisions: logits to probabilities and decisions.
        preprocessing: of the images.
        augmented: what training did to images.
        batch_size: images per step of each device, at most.
    """

    backbone: Any
    heads: Heads
    decisions: Decisions
    preprocessing: Preprocessing
    augmented: InputConfig
    batch_size: int = 128

    @property
    def categories(self) -> tuple[str, ...]:
        """The names, in the order of every [... c] axis."""
        return self.decisions.categories

    def __call__(self, images: Images) -> Float[np.ndarray, "n c"]:
        """Calibrated probabilities.

        Raises:
            ValueError: images that are not uint8 [h w 3], or files that cannot be read.
        """
        return self.decisions.probabilities(self.logits(images))

    def decide(self, probs: Num[types.Array, "n c"]) -> Bool[np.ndarray, "n c"]:
        """Which categories are present, by the thresholds of the run."""
        return self.decisions.decide(probs)

    def logits(self, images: Images) -> Float[np.ndarray, "n c"]:
        """Raw logits of the final heads, before calibration.

        Raises:
            ValueError: where one is not finite.
        """
        return self.finite(np.asarray(self.heads(self.embed(images))))

    def finite(self, logits: Float[np.ndarray, "n c"], names: Sequence[str] | None = None) -> Float[np.ndarray, "n c"]:
        """The logits, which are refused where one is not finite: no image makes weights that are sound say that."""
        if not np.isfinite(logits).all():
            row, column = np.argwhere(~np.isfinite(logits))[0]
            image = row if names is None else names[row]
            raise ValueError(
                f"the logit of {self.categories[column]} is not finite for image {image}: `cftjax verify RUN` "
                "says whether the run is damaged"
            )
        return logits

    def embed(self, images: Images) -> Float[np.ndarray, "n ..."]:
        """Embeddings z, [n d], or [n c d] where each category has its own."""
        none = np.empty((0, *embedding_shape(self._looking_once)), np.float32)
        return np.concatenate([none, *self._rows(self.backbone, images, self.batch_size)])

    def rows(
        self, image: Opener, names: Sequence[str], settings: InputConfig, size: int, first: int = 0
    ) -> Generator[Seen]:
        """Probabilities of images in their order, some at a time.

        Args:
            image: opens the image of a row.
            names: of the rows.
            settings: threads, and what happens to images that cannot be opened.
            size: images per step of each device.
            first: row that comes first, a multiple of a step's.
        """
        records = records_of(image, names)
        embedded = embed.embed_rows(self.backbone, records, self.preprocessing, settings, size, first=first)
        with contextlib.closing(embedded):
            start = first
            for part in embedded:
                stop = start + len(part.z)
                logits = self.finite(np.asarray(self.heads(part.z)), names[start:stop])
                yield Seen(self.decisions.probabilities(logits), part.opened)
                start = stop

    def heatmaps(self, images: Images, categories: Sequence[str] | None = None) -> Float[np.ndarray, "n y x c"]:
        """Where categories are seen: logits by place; their mean over all places is the logit.

        `box` says where the y by x places lie in an image.

        Args:
            images: as everywhere.
            categories: names of those wanted; None for all, in order.

        Raises:
            ValueError: for a category that there is not, or a network whose embedding is not pooled from places.
        """
        if not self.has_heatmaps:
            raise ValueError(
                "the embedding is a class token or a query's answer, to which places do not add up: there are no "
                "heatmaps; a network trained with --backbone.pooling mean has them"
            )
        if categories is not None and (unknown := [name for name in categories if name not in self.categories]):
            raise ValueError(f"there is no category {unknown[0]!r}; the model {closest(unknown[0], self.categories)}")
        some = [self.categories.index(name) for name in (self.categories if categories is None else categories)]
        heads = Heads(np.asarray(self.heads.kernel)[some], np.asarray(self.heads.bias)[some])
        size = self.preprocessing.image_size
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        _, *shape = jax.eval_shape(self._plain.features, image).shape
        blocks = self._rows(Features(self._plain), images, min(self.batch_size, MAPPED_AT_ONCE))
        pool = self._plain.pool
        query = None if pool.query is None else np.asarray(pool.query.get_value())
        found = []
        for block in blocks:
            features = block.reshape(-1, *shape)
            shown = heatmaps.maps(heatmaps.places(features, pool.pooling, query), heads)
            if isinstance(self._looking_once, LikeliestPlaces):
                shown += heatmaps.likeliest(features, self._looking_once, heads, some)
            found.append(shown)
        return np.concatenate([np.empty((0, *shape[:2], len(some)), np.float32), *found])

    def box(self, height: int, width: int) -> Box:
        """What of an image of this size a heatmap covers, in its pixels; it may end before the image or beyond it."""
        size = self.preprocessing.image_size
        low, high = 0.0, float(size)
        if hasattr(self._plain, "grid"):
            between, first = self._plain.grid(size)
            places = -(-size // between)
            low = first + 0.5 - between / 2
            high = low + places * between
        left, top, right, bottom = self.preprocessing.box(height, width)
        x, y = (right - left) / size, (bottom - top) / size  # pixels of the image per pixel of the square
        return left + low * x, top + low * y, left + high * x, top + high * y

    @property
    def has_heatmaps(self) -> bool:
        """Whether the embedding is pooled from places; that of a vision transformer may be its class token instead."""
        return self._plain.pool is not None

    @property
    def _looking_once(self) -> Any:
        """What embeds one view."""
        return self.backbone.backbone if isinstance(self.backbone, Views) else self.backbone

    @property
    def _plain(self) -> Any:
        """The backbone itself."""
        once = self._looking_once
        return once.backbone if isinstance(once, LikeliestPlaces) else once

    def looking(self, views: Sequence[View]) -> Model:
        """The same model that takes the mean of the logits of several views of an image.

        Args:
            views: `mirror` for mirror images, `shift` for images moved by a twenty-fifth of their side to the four
                sides.

        Raises:
            ValueError: for a view that the model was not trained on.
        """
        if "mirror" in views and not self.augmented.flip:
            raise ValueError(
                "view mirror: this model was trained without mirror images (--input.no-flip), which may mean something "
                "else; leave it out"
            )
        if "shift" in views and self.augmented.augment == "none":
            raise ValueError("view shift: this model was trained on images that were not moved; leave it out")
        return dataclasses.replace(self, backbone=Views(self.backbone, views)) if views else self

    def _rows(self, backbone: Any, given: Images, most: int) -> Iterator[np.ndarray]:
        """Images through a module with `embed`, a batch at a time."""
        check(given)
        if not len(given):
            return
        records = records_of(Given(given), [str(i) for i in range(len(given))])
        size = batch_size(len(given), most)
        for part in embed.embed_rows(backbone, records, self.preprocessing, InputConfig(), size):
            yield part.z


def records_of(image: Any, names: Sequence[str]) -> types.Records:
    """Images of which nothing is known."""
    nothing = np.zeros((len(names), 0), bool)
    return types.Records(image, types.Labels(nothing, nothing, nothing), names)


def batch_size(num_images: int, most: int) -> int:
    """Images per step of each device: `most`, and less where fewer images are there.

    Only doublings, so that few sizes are compiled.
    """
    size = 1
    while size < most and size * jax.device_count() < num_images:
        size *= 2
    return min(size, most)


def check(given: Images) -> None:
    """Refuse what is no list of images, before a thread does.

    Raises:
        ValueError: with the mend.
    """
    if isinstance(given, str | os.PathLike):
        raise ValueError(f"give a list of images: [{os.fspath(given)!r}]")
    if isinstance(given, np.ndarray) and given.ndim != 4:
        raise ValueError(f"images {given.shape} must be [n h w 3]; for one image give image[None]")
    # Of one array all images are alike.
    for row, image in enumerate(given[:1] if isinstance(given, np.ndarray) else given):
        if isinstance(image, str | os.PathLike):
            continue
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            what = f"has shape {image.shape}" if isinstance(image, np.ndarray) else f"is a {type(image).__name__}"
            raise ValueError(f"image {row} {what}: give uint8 arrays [h w 3] in RGB, or paths")
        if image.dtype != np.uint8:
            raise ValueError(f"image {row} is {image.dtype}: give uint8, grey levels from 0 to 255")


def no_backbone(folder: str | os.PathLike[str]) -> str:
    """What is said of a run that knows embeddings and no images."""
    return (
        f"{folder} was made from embeddings and has no backbone to see images with: embed them as before, and use "
        "cftjax.open_run(...).heads('final') and .decisions()"
    )


def load(folder: str | os.PathLike[str]) -> Model:
    """The model of a finished run, from its folder alone.

    Args:
        folder: the --workdir of `cftjax train`.

    Raises:
        ValueError: for a run of `cftjax finetune`, which has no backbone.
        FileNotFoundError: where there is no run, or an unfinished one.
    """
    if (Path(folder) / "ensemble.json").is_file():
        raise ValueError(f"{folder} is an ensemble: cftjax.inference.ensemble.load opens it, or name a member")
    run = Run(Path(folder))
    stored = run.config["preprocessing"]
    if stored is None:
        raise ValueError(no_backbone(folder))
    if not (run.folder / "heads" / "final" / "heads.npz").is_file():
        raise FileNotFoundError(f"{folder} is not finished: the command that began it goes on with it")
    decisions = run.decisions()
    backbone, _ = classifier.load(run.folder / "backbone")
    settings, heads = run.config["settings"], run.heads("final")
    with digests.describing(run.folder / "config.json"):
        preprocessing, augmented = Preprocessing.from_json(stored), InputConfig(**settings["input"])
        return Model(backbone, heads, decisions, preprocessing, augmented, settings["embed"]["batch_size"])
