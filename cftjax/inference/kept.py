"""Predictions on their way: blocks of rows beside the output, from which a call that was killed goes on."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from cftjax.inference.output import BLOCK_CELLS
from cftjax.runtime import digests, storage

# A kill loses what was predicted in so many seconds.
SECONDS = 10.0


class Block(NamedTuple):
    """What is said of consecutive images, by their row.

    Attributes:
        probs: [m c] calibrated.
        decisions: [m c].
        errors: m, why an image could not be read; blank where it was.
        drawn: how many pictures were drawn of them.
    """

    probs: Float32[np.ndarray, "m c"]
    decisions: Bool[np.ndarray, "m c"]
    errors: Sequence[str]
    drawn: int


class Kept:
    """The rows of one output that are predicted, in a hidden folder beside it, for one call at a time.

    As a context manager it ends with the rows kept, whatever the reason; `remove` says that they are in the output.
    """

    def __init__(self, output: Path, key: str) -> None:
        """Find what an earlier call has left.

        Args:
            output: the table that is to be written.
            key: of all that the predictions depend on; rows of another key are deleted.

        Raises:
            ValueError: where another process is writing the same output.
        """
        self.folder = output.with_name(f".{output.name}.kept")
        self.folder.mkdir(exist_ok=True)
        self.lock = open(self.folder / digests.LOCK, "w")  # noqa: SIM115, closed by __exit__
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.lock.close()
            raise ValueError(f"another process is writing -o {output}: wait for it, or give another name") from error
        for left_over in (
            *output.parent.glob(f".{storage.begun(output.name)}.*{digests.PART}"),
            *self.folder.glob(f".*{digests.PART}"),
        ):
            left_over.unlink(missing_ok=True)
        self.store = storage.FolderStore(self.folder, key)
        self.held: list[Block] = []
        self.starts: list[int] = []
        self.rows, self.written = 0, time.monotonic()
        self._find()

    def _find(self) -> None:
        """Count the rows that are there, and delete what does not belong to them."""
        while (arrays := self.store.get(self._name(self.rows))) is not None:
            self.starts.append(self.rows)
            self.rows += len(arrays["errors"])
        names = {self._name(start) for start in self.starts}
        for name in list(self.store):
            if name not in names:
                del self.store[name]

    @staticmethod
    def _name(start: int) -> str:
        return f"{start:012d}"

    def __enter__(self) -> Kept:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Keep what is held; a full disk has said so before."""
        with self.lock, contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            if self.folder.is_dir():
                self.flush()

    def add(self, block: Block) -> None:
        """Keep the next rows, now or with some of those that follow."""
        self.held.append(block)
        cells = sum(block.probs.size + len(block.errors) for block in self.held)
        if cells >= BLOCK_CELLS or time.monotonic() - self.written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self.held:
            return
        self.store[self._name(self.rows)] = {
            "probs": np.concatenate([block.probs for block in self.held]),
            "decisions": np.concatenate([block.decisions for block in self.held]),
            "errors": np.array([error for block in self.held for error in block.errors], str),
            "drawn": np.array(sum(block.drawn for block in self.held)),
        }
        self.starts.append(self.rows)
        self.rows += sum(len(block.errors) for block in self.held)
        self.held, self.written = [], time.monotonic()

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Everything that is written, and the row that each block begins with."""
        for start in self.starts:
            arrays = self.store[self._name(start)]
            errors = arrays["errors"].tolist()
            yield start, Block(arrays["probs"], arrays["decisions"], errors, int(arrays["drawn"]))

    def remove(self) -> None:
        """Delete all of it: the output has them now, or there will be none."""
        self.held = []
        shutil.rmtree(self.folder)
