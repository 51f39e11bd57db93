"""Logs for TensorBoard: what training, search and polish did, beside their results and gone with them.

`tensorboard --logdir RUN` finds them. Written with tensorboardX, an extra that brings no TensorFlow.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# In the folder of a stage.
FOLDER = "tensorboard"
# Points of all categories together; of more, only their mean is drawn. A point takes some 60 bytes.
MOST_POINTS = 200_000


class Log:
    """One log that grows."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        """Begin a log, or go on with the one in the folder.

        Args:
            folder: of this log alone.
            after: what it holds of later steps is void, for they are done again.
        """
        from tensorboardX import SummaryWriter  # an extra

        if not after:
            shutil.rmtree(folder, ignore_errors=True)
        # Readers take files in the order of their names, and no two attempts may write into the same.
        suffix = f".{after:012d}"
        self.writer: Any = SummaryWriter(str(folder), purge_step=after + 1 if after else None, filename_suffix=suffix)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        from tensorboardX.proto import summary_pb2  # an extra

        summary: Any = summary_pb2  # made at run time
        # Not the writer's own add_scalar: it replaces characters, so that two categories may become one.
        points = [summary.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.file_writer.add_summary(summary.Summary(value=points), step)

    def flush(self) -> None:
        """Write down what was added."""
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()
