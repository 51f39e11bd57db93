"""Whether every image of a data set can be opened: all of them are decoded, and what is broken is listed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from cftjax import types
from cftjax.data.looking import workers
from cftjax.data.reading import images


@dataclasses.dataclass(frozen=True)
class Broken:
    """An image that cannot be used.

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
    """

    images: dict[str, int]
    opened: int
    broken: tuple[Broken, ...]

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

    def problem(place: tuple[str, int]) -> str | None:
        split, row = place
        try:
            splits[split].image(row)
        except images.ImageError as error:
            return str(error)
        return None

    opened, found = 0, []
    results = workers.each(rows, problem, threads, "Check")
    with contextlib.closing(results), contextlib.suppress(KeyboardInterrupt):
        for (split, row), wrong in results:
            opened += 1
            if wrong is not None:
                found.append(Broken(split, row, str(splits[split].names[row]), wrong))
    order = list(splits)
    found.sort(key=lambda one: (order.index(one.split), one.row))
    return Checked({split: len(records) for split, records in splits.items()}, opened, tuple(found))
