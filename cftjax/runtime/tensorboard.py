"""Logs for TensorBoard: what training, search and polish did, beside their results and gone with them.

`tensorboard --logdir RUN` finds them. Written with tensorboardX, an extra that brings no TensorFlow.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float

from cftjax import extras

# In the folder of a stage.
FOLDER = "tensorboard"
# Points of all categories together; of more, only their mean is drawn. A point takes some 60 bytes.
MOST_POINTS = 200_000


def check() -> None:
    """Refuse to begin without the writer.

    Raises:
        ImportError: with the command that installs it.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ImportError(f"--tensorboard needs tensorboardX: {extras.install('tensorboard')}")


class Log:
    """One log that grows; as a context manager it is closed at the end."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        """Begin a log, or go on with the one in the folder.

        Args:
            folder: of this log alone.
            after: what it holds of later steps is void, for they are done again.
        """
        check()
        from tensorboardX import SummaryWriter  # an extra

        if not after:
            shutil.rmtree(folder, ignore_errors=True)
        # Readers take files in the order of their names, and no two attempts may write into the same.
        suffix = f".{after:012d}"
        self.writer: Any = SummaryWriter(str(folder), purge_step=after + 1 if after else None, filename_suffix=suffix)

    def __enter__(self) -> Log:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self.writer.close()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve; None and NaN are left out."""
        from tensorboardX.proto import summary_pb2  # an extra

        summary: Any = summary_pb2  # made at run time
        # Not the writer's own add_scalar: it replaces characters, so that two categories may become one.
        points = [
            summary.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if value is not None and not np.isnan(value)
        ]
        self.writer.file_writer.add_summary(summary.Summary(value=points), step)

    def flush(self) -> None:
        """Write down what was added."""
        self.writer.flush()


def write_curves(folder: Path, name: str, categories: Sequence[str], scores: Float[np.ndarray, "g c"]) -> None:
    """A finished stage's curves, written anew: the mean over categories and, unless they are too many, each of them.

    Args:
        folder: of this log alone.
        name: of the mean, such as `search/mAP`; those of categories begin with it.
        categories: names, length c.
        scores: [g c] by generation or pull; NaN where there is no point. In the mean a category that has stopped keeps
            its last score.
    """
    kept = np.array(scores, np.float32)
    for row in range(1, len(kept)):
        kept[row] = np.where(np.isnan(kept[row]), kept[row - 1], kept[row])
    defined = ~np.isnan(kept)
    sums, counts = np.where(defined, kept, 0).sum(axis=1), defined.sum(axis=1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    with Log(folder) as log:
        for step, (mean, row) in enumerate(zip(means, scores, strict=True)):
            log.scalars(step, {name: float(mean)})
            if scores.size <= MOST_POINTS:
                each = {f"{name}_by_category/{category}": float(x) for category, x in zip(categories, row, strict=True)}
                log.scalars(step, each)
