"""Images opened once and kept at the size of the network's input: in memory, or as a memory map on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from concurrent import futures
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cftjax import config, types
from cftjax.data.reading import images
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime.progress import Progress

# Raise it when the content of the file changes.
VERSION = 1
# Images whose pixels enter the name of the file, so that another set with the same names has another file.
PROBES = 16
# Images that a thread opens at a time while the file is made.
CHUNK = 64


@dataclasses.dataclass(frozen=True)
class CachedImages:
    """Opens an image from the cache, or from its file where that had not worked before or was not tried.

    Attributes:
        source: the records behind the cache.
        preprocessing: that the kept images went through, normalisation excepted.
        pixels: [n s s 3] uint8.
        filled: [n] bool, which of them are there.
        keep: whether images opened from now on are added.
    """

    source: types.Records
    preprocessing: Preprocessing
    pixels: np.ndarray
    filled: np.ndarray
    keep: bool

    def __call__(self, row: int) -> UInt8[np.ndarray, "s s 3"]:
        """The image of a row."""
        if self.filled[row]:
            return self.pixels[row]
        image = self.open(row)
        if self.keep:
            self.pixels[row] = image
            # Only now: another thread may ask for this row at any time.
            self.filled[row] = True
        return image

    def open(self, row: int) -> UInt8[np.ndarray, "s s 3"]:
        """The image of a row, from its file."""
        with images.decoding_at(self.preprocessing.image_size):
            return self.preprocessing.fit(self.source.image(row))


def cached(records: types.Records, preprocessing: Preprocessing, input_config: config.InputConfig) -> types.Records:
    """The same records, opened at most once as `input_config.cache` says; records that are cached already as they are.

    `train_batches` and `eval_batches` do this by themselves; do it before where several passes are to share a cache in
    memory.

    Args:
        records: one split.
        preprocessing: for its geometry: the cache holds resized images.
        input_config: `cache`, `cache_dir`, and for making the file `workers` and `on_bad_image`.

    Raises:
        ImageError: while the file is made, an image that cannot be opened, where `on_bad_image` is `raise`.
    """
    if input_config.cache == "none" or isinstance(records.image, CachedImages):
        return records
    shape = (len(records), preprocessing.image_size, preprocessing.image_size, 3)
    if input_config.cache == "memory":
        image = CachedImages(records, preprocessing, np.empty(shape, np.uint8), np.zeros(shape[0], bool), keep=True)
        return dataclasses.replace(records, image=image)
    if input_config.cache_dir is None:
        raise ValueError("cache is disk, but cache_dir is not set: name a folder with room for the resized images.")
    folder = Path(input_config.cache_dir).expanduser()
    name = folder / key(records, preprocessing)
    filled, pixels = name.with_suffix(".filled.npy"), name.with_suffix(".npy")
    if not pixels.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fill(records, preprocessing, input_config, filled, pixels)
    image = CachedImages(records, preprocessing, np.load(pixels, mmap_mode="r"), np.load(filled), keep=False)
    return dataclasses.replace(records, image=image)


def key(records: types.Records, preprocessing: Preprocessing) -> str:
    """A name for the resized images: from the records' names, the pixels of a few of them, and the geometry."""
    geometry = [preprocessing.image_size, preprocessing.resize, preprocessing.interpolation, preprocessing.fill]
    digest = hashlib.sha256(json.dumps([VERSION, geometry, len(records)]).encode())
    for name in records.names:
        digest.update(name.encode() + b"\0")
    for row in np.linspace(0, len(records) - 1, min(PROBES, len(records))).astype(int).tolist():
        try:
            digest.update(records.image(row).tobytes())
        except images.ImageError:
            digest.update(b"bad")
    return digest.hexdigest()[:32]


def fill(
    records: types.Records,
    preprocessing: Preprocessing,
    input_config: config.InputConfig,
    filled_file: Path,
    pixels_file: Path,
) -> None:
    """Open all images and write them; the file of pixels appears last and whole, or not at all."""
    n, size = len(records), preprocessing.image_size
    filled = np.zeros(n, bool)
    with tempfile.TemporaryDirectory(dir=pixels_file.parent, prefix="making-") as making:
        part = Path(making) / pixels_file.name
        pixels = np.lib.format.open_memmap(part, "w+", np.uint8, (n, size, size, 3))
        target = CachedImages(records, preprocessing, pixels, filled, keep=True)

        def fill_chunk(start: int) -> int:
            stop = min(start + CHUNK, n)
            for row in range(start, stop):
                try:
                    target(row)
                except images.ImageError as error:
                    if input_config.on_bad_image == "raise":
                        raise images.stopped_by(error) from error
            return stop - start

        done = 0
        with (
            futures.ThreadPoolExecutor(max(input_config.threads, 1)) as pool,
            Progress("Cache", unit="images") as shown,
        ):
            chunks = [pool.submit(fill_chunk, start) for start in range(0, n, CHUNK)]
            try:
                for chunk in futures.as_completed(chunks):
                    done += chunk.result()
                    shown.update(done, n)
            finally:
                # After an error or Ctrl-C, nothing more is opened.
                pool.shutdown(wait=True, cancel_futures=True)
        pixels.flush()
        np.save(Path(making) / filled_file.name, filled)
        os.replace(Path(making) / filled_file.name, filled_file)
        os.replace(part, pixels_file)
