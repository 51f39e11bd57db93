"""The worst mistakes of a classifier: known absences that it ranks above presences, and presences below absences."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from cftjax.data.reading.images import ImageError
from cftjax.input.preprocessing import Box
from cftjax.types import Records

Picture = UInt8[np.ndarray, "h w 3"]
# (images, category) -> for every image the category's logit by place [y x], and the box of the image, in its pixels,
# that the places cover.
Heatmaps = Callable[[Sequence[Picture], int], Sequence[tuple[Float[np.ndarray, "y x"], Box] | None]]

MOST_CATEGORIES = 40
MOST_PER_KIND = 4
MOST_THUMBNAILS = 160
THUMBNAIL_SIDE = 128
JPEG_QUALITY = 82
# Of a heatmap: for the category, and against it.
RED, BLUE = (178, 24, 43), (33, 102, 172)
# Images that are tried for each thumbnail before fewer are shown.
TRIES = 3


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One image on the wrong side of others.

    Attributes:
        name: of the image.
        probability: of the category, as the final heads say.
        rank: its place among the category's known images, the highest logit first, counted from 1.
        jpeg: its thumbnail.
        heat: the thumbnail in grey under the category's heatmap; None without one.
    """

    name: str
    probability: float
    rank: int
    jpeg: bytes
    heat: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """The worst mistakes of one category.

    Attributes:
        category: its place in the list of categories.
        known: how many of its labels are known.
        false_positives: known absent, the highest ranked first.
        false_negatives: known present, the lowest ranked first.
    """

    category: int
    known: int
    false_positives: Sequence[Mistake]
    false_negatives: Sequence[Mistake]


def categories_shown(average_precision: Float[np.ndarray, " c"]) -> list[int]:
    """The categories furthest from a perfect average precision, worst first; those without a score have no mistakes."""
    worst = np.argsort(average_precision, kind="stable").tolist()  # NaN comes last
    return [c for c in worst if average_precision[c] < 1][:MOST_CATEGORIES]


def ranked(
    logits: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], known: Bool[np.ndarray, " n"]
) -> tuple[list[int], list[int]]:
    """Rows of all false positives and false negatives of one category, the worst first.

    A false positive is a known absence that reaches the logit of a known presence; a false negative is a known presence
    that does not exceed a known absence. No threshold is needed, and without either kind the ranking is perfect.

    Args:
        logits: [n].
        labels: [n], read only where known.
        known: [n].
    """
    present, absent = np.flatnonzero(labels & known), np.flatnonzero(~labels & known)
    if len(present) == 0 or len(absent) == 0:
        return [], []
    false_positives = absent[logits[absent] >= logits[present].min()]
    false_negatives = present[logits[present] <= logits[absent].max()]
    by_logit = np.argsort(-logits[false_positives], kind="stable"), np.argsort(logits[false_negatives], kind="stable")
    return false_positives[by_logit[0]].tolist(), false_negatives[by_logit[1]].tolist()


def find(
    categories: Sequence[int],
    logits: Float[np.ndarray, "n k"],
    probs: Float[np.ndarray, "n k"],
    labels: Bool[np.ndarray, "n k"],
    known: Bool[np.ndarray, "n k"],
    records: Records,
    heatmaps: Heatmaps | None = None,
) -> list[Mistakes]:
    """The worst mistakes of some categories, with thumbnails; images that cannot be opened are passed over.

    Args:
        categories: the places of k categories.
        logits: [n k] of these, which rank the images.
        probs: [n k] that are shown.
        labels: [n k], read only where known.
        known: [n k].
        records: the n images.
        heatmaps: where each image speaks for a category; None leaves the maps out.
    """
    per_kind = min(MOST_PER_KIND, max(1, MOST_THUMBNAILS // (2 * max(len(categories), 1))))
    found = []
    for i, category in enumerate(categories):
        kinds = ranked(logits[:, i], labels[:, i], known[:, i])
        scores = logits[known[:, i], i]
        opened = [_opened(records, rows, per_kind) for rows in kinds]
        images = [image for one in opened for image in one.values()]
        heats = iter(heatmaps(images, category) if heatmaps is not None and images else [None] * len(images))
        shown = [
            [
                Mistake(
                    str(records.names[row]),
                    float(probs[row, i]),
                    int((scores > logits[row, i]).sum()) + 1,
                    thumbnail(image),
                    None if (heat := next(heats)) is None else thumbnail(image, *heat),
                )
                for row, image in one.items()
            ]
            for one in opened
        ]
        if any(shown):
            found.append(Mistakes(category, len(scores), *shown))
    return found


def _opened(records: Records, rows: Sequence[int], most: int) -> dict[int, Picture]:
    """The first of the rows whose images open."""
    images: dict[int, Any] = {}
    for row in rows[: TRIES * most]:
        try:
            images[row] = records.image(row)
        except (OSError, ImageError):
            continue
        if len(images) == most:
            break
    return images


def thumbnail(image: Picture, heat: Float[np.ndarray, "y x"] | None = None, box: Box | None = None) -> bytes:
    """A JPEG of at most 128 pixels a side; under a heat it is grey, red where the heat is above 0, blue below.

    Args:
        image: of any size; a small one stays as it is.
        heat: logits by place; the largest, of either sign, has the full colour.
        box: (left, top, right, bottom) of the image that the places cover, in its pixels; None for all of it.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    if heat is not None:
        left, top, right, bottom = (picture.width / image.shape[1] * x for x in box or (0, 0, *image.shape[1::-1]))
        # Continued by a place on every side, for the outer places may see less than the ends of the image.
        down, across = (bottom - top) / heat.shape[0], (right - left) / heat.shape[1]
        left, top, right, bottom = left - across, top - down, right + across, bottom + down
        heat = np.pad(heat, 1, mode="edge")
        size = max(round(right - left), 1), max(round(bottom - top), 1)
        stretched = Image.fromarray(np.asarray(heat, np.float32)).resize(size, Image.Resampling.BILINEAR)
        placed = Image.new("F", picture.size)
        placed.paste(stretched, (round(left), round(top)))
        share = np.asarray(placed)[:, :, None] / (float(np.abs(heat).max()) or 1.0)
        colour = np.where(share > 0, np.array(RED), np.array(BLUE))
        alpha = 0.6 * np.sqrt(np.abs(share).clip(0, 1))
        grey = np.asarray(picture.convert("L"), np.float32)[:, :, None]
        picture = Image.fromarray((alpha * colour + (1 - alpha) * grey).astype(np.uint8))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
