"""How a training goes, epoch by epoch, as history.json and every saved state hold it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class History:
    """How training went.

    Attributes:
        step: steps done.
        loss: mean training loss of each epoch, nats per known label.
        score: mean validation AP or AUROC of each epoch's moving averages; None where undefined.
        best_epoch: the epoch kept, counted from 1; 0 before the first.
        best_step: steps done at its end.
        epoch_loss: sum of the losses of the epoch that has begun.
        finished: why training ended; empty while it goes on.
        unopened: names of training images that could not be opened, as this host met them.
    """

    step: int = 0
    loss: tuple[float, ...] = ()
    score: tuple[float | None, ...] = ()
    best_epoch: int = 0
    best_step: int = 0
    epoch_loss: float = 0.0
    finished: str = ""
    unopened: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> History:
        """Read what `dataclasses.asdict` made."""
        # JSON knows no tuples.
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in stored.items()}
        return cls(**values)

    def with_step(self, loss: float) -> History:
        """One more loss of the epoch that has begun."""
        return dataclasses.replace(self, epoch_loss=self.epoch_loss + loss)

    def with_epoch(self, score: float | None, steps: int, patience: int, last: bool) -> History:
        """One more epoch that is done.

        Without a score the last epoch is the best, for there is nothing to choose by.

        Args:
            score: on validation, or None.
            steps: of this epoch.
            patience: epochs without a better score after which training ends.
            last: whether all steps are done.
        """
        epoch = len(self.loss) + 1
        best = self.score[self.best_epoch - 1] if self.best_epoch else None
        better = score is None or best is None or score > best
        new = dataclasses.replace(
            self,
            loss=(*self.loss, self.epoch_loss / steps),
            score=(*self.score, score),
            best_epoch=epoch if better else self.best_epoch,
            best_step=self.step if better else self.best_step,
            epoch_loss=0.0,
        )
        if last:
            return dataclasses.replace(new, finished="all steps are done")
        if epoch - new.best_epoch >= patience:
            return dataclasses.replace(new, finished=f"no better validation score in {patience} epochs")
        return new
