"""An ensemble that is kept: a folder that names finished runs and says how their probabilities become one's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import special

from cftjax import decisions, runs, types
from cftjax.config import InputConfig
from cftjax.data.reading.problems import require
from cftjax.decisions import Decisions
from cftjax.inference import loading
from cftjax.inference import model as models
from cftjax.inference.model import Given, Images, Model, Seen, View
from cftjax.runs import Run
from cftjax.runtime import digests, storage

FILE = "ensemble.json"
# Rows that one member sees before the next one does.
ROWS_AT_ONCE = 1024
# Probabilities nearer to 0 and 1 have the log-odds of this.
NEAREST = 1e-9


@dataclasses.dataclass(frozen=True)
class Record:
    """What an ensemble's folder says.

    Attributes:
        members: folders of its runs.
        combine: how the weights came about: mean, weighted or greedy.
        weights: [m c] of the members' calibrated probabilities; a category's sum to 1.
        categories: names, length c.
    """

    members: tuple[Path, ...]
    combine: Literal["mean", "weighted", "greedy"]
    weights: Float[np.ndarray, "m c"]
    categories: tuple[str, ...]

    def runs(self) -> list[Run]:
        """Its members."""
        return [Run(member) for member in self.members]


def is_ensemble(folder: Path) -> bool:
    """Whether a folder holds an ensemble, and not a run."""
    return (folder / FILE).is_file()


def write(folder: Path, record: Record, decided: Decisions) -> None:
    """Keep an ensemble; members within its folder are named from there, so that it can be moved with them.

    Args:
        folder: where to.
        record: of the members.
        decided: calibration of the log-odds of their mean probability, and thresholds.
    """
    decisions.write(folder / runs.DECISIONS, decided)
    inside = [member.resolve().is_relative_to(folder.resolve()) for member in record.members]
    members = [
        os.path.relpath(member.resolve(), folder.resolve()) if within else str(member.resolve())
        for member, within in zip(record.members, inside, strict=True)
    ]
    content = {"format": runs.FORMAT, "combine": record.combine, "categories": list(record.categories)}
    content |= {"members": dict(zip(members, record.weights.tolist(), strict=True))}
    # Last: a folder with it is complete.
    storage.write_json(folder / FILE, digests.sealed(content))


def read(folder: Path) -> Record:
    """What `write` wrote.

    Raises:
        ValueError: where it is damaged, or a later version wrote it.
    """
    path = require(folder / FILE)
    mend = "make the ensemble again by the command that made it"
    content = storage.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("members"), dict):
        raise digests.Damaged(f"{path} is damaged (it names no members): {mend}")
    if content.get("format", 0) > runs.FORMAT:
        raise ValueError(
            f"{path} has format {content['format']}, this version reads up to {runs.FORMAT}: upgrade cftjax"
        )
    stored = digests.unsealed(path, content, ())
    members = tuple(folder / name for name in stored["members"])
    weights = np.array(list(stored["members"].values()), np.float64)
    return Record(members, stored["combine"], weights, tuple(stored["categories"]))


def log_odds(probs: Num[types.Array, "*n"]) -> Float[np.ndarray, "*n"]:
    """What calibration of an ensemble begins with; finite."""
    return special.logit(np.clip(np.asarray(probs, np.float64), NEAREST, 1 - NEAREST))


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Runs that see images together: a weighted mean of calibrated probabilities, itself calibrated.

    Attributes:
        members: the runs' models.
        weights: [m c].
        decisions: log-odds of the mean to probabilities and decisions.
    """

    members: tuple[Model, ...]
    weights: Float[np.ndarray, "m c"]
    decisions: Decisions

    @property
    def categories(self) -> tuple[str, ...]:
        """The names, in the order of every [... c] axis."""
        return self.decisions.categories

    @property
    def batch_size(self) -> int:
        """Images per step of each device, at most."""
        return min(member.batch_size for member in self.members)

    def __call__(self, images: Images) -> Float[np.ndarray, "n c"]:
        """Calibrated probabilities.

        Raises:
            ValueError: images that are not uint8 [h w 3], or files that cannot be read.
        """
        models.check(images)
        names = [str(row) for row in range(len(images))]
        size = models.batch_size(len(images), self.batch_size)
        parts = [part.probs for part in self.rows(Given(images), names, InputConfig(), size)]
        return np.concatenate([np.empty((0, len(self.categories))), *parts])

    def decide(self, probs: Num[types.Array, "n c"]) -> Bool[np.ndarray, "n c"]:
        """Which categories are present, by the thresholds of the ensemble."""
        return self.decisions.decide(probs)

    def looking(self, views: Sequence[View]) -> Ensemble:
        """The same ensemble whose members take the mean over several views of an image.

        Raises:
            ValueError: for a view that a member was not trained on.
        """
        return dataclasses.replace(self, members=tuple(member.looking(views) for member in self.members))

    def rows(
        self, image: models.Opener, names: Sequence[str], settings: InputConfig, size: int, first: int = 0
    ) -> Generator[Seen]:
        """Probabilities of images in their order, some at a time; every member sees these before the next ones.

        Args:
            image: opens the image of a row.
            names: of the rows.
            settings: threads, and what happens to images that cannot be opened.
            size: images per step of each device.
            first: row that comes first, a multiple of a step's.
        """
        step = size * jax.device_count()
        chunk = -(-ROWS_AT_ONCE // step) * step
        for start in range(first, len(names), chunk):
            stop = min(start + chunk, len(names))
            total, opened = np.zeros((stop - start, len(self.categories))), np.ones(stop - start, bool)
            for member, weight in zip(self.members, self.weights, strict=True):
                seen = list(member.rows(image, names[:stop], settings, size, start))
                total += weight[None, :] * np.concatenate([part.probs for part in seen])
                opened = np.concatenate([part.opened for part in seen])
            yield Seen(self.decisions.probabilities(log_odds(total)), opened)


def load(folder: Path) -> Model | Ensemble:
    """The model of a finished run, or of the ensemble that a folder holds."""
    if not is_ensemble(folder):
        return loading.load(folder)
    record = read(folder)
    members = tuple(loading.load(member) for member in record.members)
    return Ensemble(members, record.weights, decisions.read(folder / runs.DECISIONS))
