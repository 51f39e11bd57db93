"""Records to batches on grain: opened, resized and augmented in threads, in an order that can be resumed.

A unit of grain's work is a whole batch, not an image: the random numbers of a batch come from its number alone, so the
state of an iterator is one integer, and small images are augmented by vectorised arithmetic, many thousand a second.
Batches hold grey levels, for they are normalised by the device: a quarter of the bytes go there where they are uint8.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import get_args

import grain
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image

from cftjax import config, types, unknowns
from cftjax.data import labels
from cftjax.data.reading import images
from cftjax.input import augment, cache
from cftjax.input.preprocessing import Preprocessing

# Several hosts: (index of this one, number of them).
Shard = tuple[int, int]

# Steps of a training without end.
ENDLESS = 2**60


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Batches that `train_batches` makes of one pass over the images."""
    return num_images // batch_size


def train_batches(
    records: types.Records,
    labels_config: config.LabelsConfig,
    preprocessing: Preprocessing,
    input_config: config.InputConfig,
    *,
    batch_size: int,
    seed: int,
    shard: Shard = (0, 1),
    bad_images: set[str] | None = None,
) -> grain.IterDataset[types.Batch]:
    """Endless shuffled and augmented batches; every epoch has its own order and drops its last partial batch.

    The images of a step, their order and their augmentation do not depend on the number of hosts: each host makes its
    consecutive part of every batch. An iterator's `get_state()` is a dict of one integer; `set_state` goes on with
    exactly the batch that would have come next. `close()` ends the threads.

    Args:
        records: the training split.
        labels_config: what unknown and uncertain labels become.
        preprocessing: for its geometry.
        input_config: threads, augmentation, cache and the treatment of images that cannot be opened.
        batch_size: images per step over all hosts.
        seed: of order, augmentation and soft targets.
        shard: (index of this host, number of hosts).
        bad_images: names of images that could not be opened are added to it, where `on_bad_image` is `skip`.

    Raises:
        ValueError: batch_size is larger than the split, or does not divide over the hosts.
    """
    local = local_rows(batch_size, shard)
    check_size(batch_size, len(records))
    opener = Opener(cache.cached(records, preprocessing, input_config), preprocessing, input_config, bad_images)
    make = TrainBatch(opener, labels_config, batch_size, seed, local)
    return in_threads(grain.MapDataset.range(ENDLESS).seed(seed).random_map(make), input_config)


def eval_batches(
    records: types.Records,
    preprocessing: Preprocessing,
    input_config: config.InputConfig,
    *,
    batch_size: int,
    first: int = 0,
    shard: Shard = (0, 1),
    bad_images: set[str] | None = None,
) -> grain.DatasetIterator[types.Batch]:
    """All images from a row on once, in file order, as they are; zeros with rows -1 fill the last batch.

    Every host gets the same number of batches, its consecutive part of each. Labels are those known; uncertain ones
    are not.

    Args:
        records: any split.
        preprocessing: for its geometry.
        input_config: threads, cache and the treatment of images that cannot be opened.
        batch_size: images per step over all hosts.
        first: the row that comes first.
        shard: (index of this host, number of hosts).
        bad_images: names of images that could not be opened are added to it, where `on_bad_image` is `skip`.

    Raises:
        ValueError: batch_size does not divide over the hosts.
    """
    local = local_rows(batch_size, shard)
    opener = Opener(cache.cached(records, preprocessing, input_config), preprocessing, input_config, bad_images)
    starts = grain.MapDataset.range(first, len(records), batch_size)
    return iter(in_threads(starts.map(EvalBatch(opener, local)), input_config))


def local_rows(batch_size: int, shard: Shard) -> slice:
    """This host's part of a batch."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard {shard} is not (index, count) with 0 <= index < count.")
    if batch_size < 1 or batch_size % count:
        fitting = max(batch_size // count, 1) * count
        raise ValueError(f"batch_size {batch_size} does not divide over {count} hosts: use {fitting}.")
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


@functools.lru_cache(maxsize=4)
def epoch_order(num_images: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """The rows in the order of an epoch; kept, for every step of the epoch asks for it."""
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    order.flags.writeable = False
    return order


def check_size(batch_size: int, num_images: int) -> None:
    """Refuse a batch that is larger than the split."""
    if batch_size > num_images:
        raise ValueError(
            f"batch_size {batch_size} is larger than the training split of {num_images} images: reduce it."
        )


def rows_of(step: int, num_images: int, batch_size: int, seed: int, local: slice) -> Int[np.ndarray, " n"]:
    """The rows of this host's part of a training batch, by its number counted from the first epoch on."""
    epoch, step = divmod(step, steps_per_epoch(num_images, batch_size))
    return epoch_order(num_images, seed, epoch)[step * batch_size :][local]


def labelled(
    image: Shaped[np.ndarray, "n ..."],
    source: types.Labels,
    labels_config: config.LabelsConfig,
    seed: int,
    rows: Int[np.ndarray, " n"],
    opened: Bool[np.ndarray, " n"],
) -> types.Batch:
    """A training batch: labels resolved, but for unknown ones that training decides about; none where not opened."""
    simple = labels_config.unknown in get_args(unknowns.Simple)
    mode = labels_config.mode.begins if simple else "ignore"
    targets, known = labels.resolve(source, unknown=mode, uncertain=labels_config.uncertain, seed=seed, rows=rows)
    return types.Batch(
        image,
        targets,
        known & opened[:, None],
        np.where(opened, rows, -1).astype(np.int32),
        None if simple else ~(source.known | source.uncertain) & opened[:, None],
    )


def in_threads(batches: grain.MapDataset, input_config: config.InputConfig) -> grain.IterDataset:
    """Batches made ahead by threads, one more than there are threads waiting; or on demand with none."""
    threads = input_config.threads
    return batches.to_iter_dataset(grain.ReadOptions(threads, threads + 1 if threads else 0))


@dataclasses.dataclass(frozen=True)
class Opener:
    """Opens images of one split as pixels of one size.

    Attributes:
        records: the split.
        preprocessing: for its geometry.
        config: augmentation, and the treatment of images that cannot be opened.
        bad_images: takes the names of those.
    """

    records: types.Records
    preprocessing: Preprocessing
    config: config.InputConfig
    bad_images: set[str] | None

    def __call__(
        self, rows: Int[np.ndarray, " n"], draws: Float[np.ndarray, "n r"] | None = None
    ) -> tuple[UInt8[np.ndarray, "n s s 3"], Bool[np.ndarray, " n"]]:
        """Pixels of some rows, and which could be opened; with draws, changed as training does image by image."""
        preprocessing, crops = self.preprocessing, draws is not None and self.config.augment == "crop"
        size = preprocessing.image_size
        pixels = np.empty((len(rows), size, size, 3), np.uint8)
        opened = np.ones(len(rows), bool)
        # A part of the image is resized to the whole, so it needs more of the file's resolution.
        with images.decoding_at(round(size / self.config.crop_min_area**0.5) if crops else size):
            for place, row in enumerate(map(int, rows)):
                try:
                    image = self.records.image(row)
                except images.ImageError as error:
                    if self.config.on_bad_image == "raise":
                        raise images.stopped_by(error) from error
                    if self.bad_images is not None:
                        self.bad_images.add(self.records.names[row])
                    pixels[place], opened[place] = preprocessing.fill, False
                    continue
                pixels[place] = preprocessing.fit(image) if draws is None else self.change(image, draws[place])
        return pixels, opened

    def change(self, image: UInt8[np.ndarray, "h w 3"], draws: Float[np.ndarray, " r"]) -> UInt8[np.ndarray, "s s 3"]:
        """The part of the augmentation that is done one image at a time."""
        settings, preprocessing = self.config, self.preprocessing
        if settings.augment == "crop":
            height, width, _ = image.shape
            return preprocessing.crop(image, augment.crop_box(height, width, draws, settings.crop_min_area))
        image = preprocessing.fit(image)
        if settings.augment == "randaugment":
            fitted = Image.fromarray(image)
            return np.asarray(augment.randaugment(fitted, draws, settings.randaugment_magnitude, preprocessing.fill))
        return image


@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """The number of a step to this host's part of its training batch."""

    opener: Opener
    labels_config: config.LabelsConfig
    batch_size: int
    seed: int
    local: slice

    def __call__(self, step: int, rng: np.random.Generator) -> types.Batch:
        """Open, augment, and resolve the labels."""
        settings = self.opener.config
        # Drawn for all hosts, so that an image is augmented alike whichever of them makes it.
        draws = rng.random((self.batch_size, augment.num_draws(settings.randaugment_operations)))[self.local]
        rows = rows_of(step, len(self.opener.records), self.batch_size, self.seed, self.local)
        pixels, opened = self.opener(rows, draws)
        if settings.flip:
            augment.flip(pixels, draws)
        # Grey levels between two are kept: to round them would change what is learned from.
        image = augment.shift(pixels, draws) if settings.augment == "shift" else pixels
        batch = labelled(image, self.opener.records.labels[rows], self.labels_config, self.seed, rows, opened)
        if not settings.cutout:
            return batch
        return batch._replace(hidden=augment.squares(image.shape[1], draws, settings.cutout))


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """The first row of a step, of all hosts, to this host's part of the evaluation batch."""

    opener: Opener
    local: slice

    def __call__(self, first: int) -> types.Batch:
        """Open the rows that there are, and fill up with zeros."""
        records, size = self.opener.records, self.opener.preprocessing.image_size
        n, padded = len(records), self.local.stop - self.local.start
        rows = np.arange(min(first + self.local.start, n), min(first + self.local.stop, n))
        pixels, opened = self.opener(rows)
        stored = records.labels[rows]
        known = stored.known & opened[:, None]
        image = np.zeros((padded, size, size, 3), np.uint8)
        image[: len(rows)] = pixels
        fill = ((0, padded - len(rows)), (0, 0))
        return types.Batch(
            image=image,
            labels=np.pad((stored.labels & stored.known).astype(np.float32), fill),
            known=np.pad(known, fill),
            rows=np.pad(np.where(opened, rows, -1), fill[0], constant_values=-1).astype(np.int32),
        )
