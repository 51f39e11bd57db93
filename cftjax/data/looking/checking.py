"""Whether every image of a data set can be opened: all of them are decoded, and what is broken is listed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from cftjax import types
from cftjax.data.looking import workers
from cftjax.data.reading import images

# An eighth of all levels: what 12 bits become that are read as 16 uses a sixteenth.
LEAST_LEVELS = 32


@dataclasses.dataclass(frozen=True)
class Broken:
    """An image that cannot be used, or that looks odd.

    Attributes:
        split: of the data set.
        row: of the split, from 0.
        name: of the image.
        problem: the file, what is wrong with it and the mend.
    """

    split: str
    row: int
    name: str
    problem: str


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        images: images of each split.
        opened: images looked at; fewer than there are where the check was interrupted.
        broken: in the order of splits and rows.
        narrow: images that can be used, and that use less than an eighth of the 256 levels; likewise.
    """

    images: dict[str, int]
    opened: int
    broken: tuple[Broken, ...]
    narrow: tuple[Broken, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all images were looked at."""
        return self.opened == sum(self.images.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**dataclasses.asdict(self), "complete": self.complete}


def check(splits: Mapping[str, types.Records], threads: int) -> Checked:
    """Open and decode every image; Ctrl-C ends it early, with what was found so far.

    Args:
        splits: as the data set gives them.
        threads: that open images.
    """
    rows = [(split, row) for split, records in splits.items() for row in range(len(records))]

    def problem(place: tuple[str, int]) -> tuple[bool, str] | None:
        """Whether an image is broken, and what is odd about it; None where nothing is."""
        split, row = place
        try:
            pixels = splits[split].image(row)
        except images.ImageError as error:
            return True, str(error)
        low, high = int(pixels.min(initial=255)), int(pixels.max(initial=0))
        if high - low >= LEAST_LEVELS:
            return None
        return False, f"its levels are {low} to {high} of 0 to 255: fewer bits than the file says, or hardly a picture"

    opened, found = 0, []
    results = workers.each(rows, problem, threads, "Check")
    with contextlib.closing(results), contextlib.suppress(KeyboardInterrupt):
        for (split, row), odd in results:
            opened += 1
            if odd is not None:
                found.append((odd[0], Broken(split, row, str(splits[split].names[row]), odd[1])))
    order = list(splits)
    found.sort(key=lambda one: (order.index(one[1].split), one[1].row))
    broken, narrow = (tuple(one for is_broken, one in found if is_broken == kind) for kind in (True, False))
    return Checked({split: len(records) for split, records in splits.items()}, opened, broken, narrow)
