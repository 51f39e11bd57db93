"""The worst mistakes of a classifier: known absences that it ranks above presences, and presences below absences."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from cftjax.data.images import ImageError
from cftjax.types import Records

Picture = UInt8[np.ndarray, "h w 3"]
# (images, category) -> a heat in [0, 1] for every image, [k h w] of any size: where the evidence for the category lies.
Heatmaps = Callable[[Sequence[Picture], int], Float[np.ndarray, "k h w"]]

MOST_CATEGORIES = 40
MOST_PER_KIND = 4
MOST_THUMBNAILS = 160
THUMBNAIL_SIDE = 128
JPEG_QUALITY = 82
# Images that are tried for each thumbnail before fewer are shown.
TRIES = 3


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One image on the wrong side of others.

    Attributes:
        name: of the image.
        logit: of the category's head.
        rank: its place among the category's known images, the highest logit first, counted from 1.
        jpeg: its thumbnail.
        heat: the thumbnail under a map of where the head sees the category; None without one.
    """

    name: str
    logit: float
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
    labels: Bool[np.ndarray, "n k"],
    known: Bool[np.ndarray, "n k"],
    records: Records,
    heatmaps: Heatmaps | None = None,
) -> list[Mistakes]:
    """The worst mistakes of some categories, with thumbnails; images that cannot be opened are passed over.

    Args:
        categories: the places of k categories.
        logits: [n k] of these.
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
        shown = []
        for rows in kinds:
            opened = _opened(records, rows, per_kind)
            images = list(opened.values())
            heats = heatmaps(images, category) if heatmaps is not None and images else [None] * len(images)
            shown.append(
                [
                    Mistake(
                        str(records.names[row]),
                        float(logits[row, i]),
                        int((scores > logits[row, i]).sum()) + 1,
                        thumbnail(image),
                        None if heat is None else thumbnail(image, heat),
                    )
                    for (row, image), heat in zip(opened.items(), heats, strict=True)
                ]
            )
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


def thumbnail(image: Picture, heat: Float[np.ndarray, "h w"] | None = None) -> bytes:
    """A JPEG of at most 128 pixels a side; under a heat, what is cold turns dark and what is hot turns warm.

    Args:
        image: of any size; a small one stays as it is.
        heat: in [0, 1], of any size, stretched over the image.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    if heat is not None:
        stretched = Image.fromarray(np.asarray(heat, np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
        share = np.clip(np.asarray(stretched), 0, 1)[:, :, None]
        grey = np.asarray(picture.convert("L"), np.float32)[:, :, None] / 255
        warm = np.concatenate([share, 0.75 * share**2, 0.25 * (1 - share)], axis=2)
        mixed = 0.55 * grey + 0.45 * warm
        picture = Image.fromarray((255 * np.clip(mixed, 0, 1)).astype(np.uint8))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
