"""What brings labels and predictions of its own: a run, or an ensemble of runs that is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cftjax import decisions, runs
from cftjax.decisions import Decisions
from cftjax.evaluation import ensemble
from cftjax.inference import ensemble as kept
from cftjax.inference.ensemble import Record, log_odds
from cftjax.runs import Run
from cftjax.scores import predictions
from cftjax.scores.predictions import Block, Predictions, Truth
from cftjax.types import SPLITS


@dataclasses.dataclass(frozen=True)
class OfEnsemble:
    """An ensemble that is kept, asked for what a run is asked for.

    Attributes:
        folder: of it.
        record: what the folder says.
        members: its runs.
    """

    folder: Path
    record: Record
    members: tuple[Run, ...]

    @property
    def config(self) -> dict[str, Any]:
        """Of the first member."""
        return self.members[0].config

    def decisions(self) -> Decisions:
        """Calibration of the log-odds of its mean probability, and thresholds."""
        return decisions.read(self.folder / runs.DECISIONS)


Source = Run | OfEnsemble


def opened(folder: Path) -> Source:
    """The run or ensemble of a folder.

    Raises:
        FileNotFoundError: where there is neither.
    """
    if not kept.is_ensemble(folder):
        return Run(folder)
    record = kept.read(folder)
    return OfEnsemble(folder, record, tuple(record.runs()))


def embedded(source: Source) -> list[str]:
    """Splits that a run, or every run of an ensemble, has embedded."""
    each = [source] if isinstance(source, Run) else source.members
    return [s for s in SPLITS if all((run.folder / "embeddings" / s / "z.npy").is_file() for run in each)]


def of_source(source: Source, split: str, name: str) -> tuple[Truth, Predictions]:
    """Labels of a split, and what a run or an ensemble says of it, calibrated and with thresholds.

    Raises:
        ValueError: where the members of an ensemble are no longer on the same data.
    """
    if isinstance(source, Run):
        return predictions.of_run(source, split, name)
    each = [predictions.of_run(run, split, run.folder.name) for run in source.members]
    (truth, _), *others = each
    for other, model in others:
        predictions.check_same(truth, other, (each[0][1].name, model.name))
    whole = ensemble.combined([model for _, model in each], source.record.weights, of_ranks=False)
    return truth, calibrated(whole, source.decisions(), name)


def calibrated(whole: Predictions, decided: Decisions, name: str) -> Predictions:
    """An ensemble's mean as the probabilities that it gives, with its thresholds; the ranking stays.

    Args:
        whole: the weighted mean of the members' probabilities.
        decided: calibration of its log-odds, and thresholds.
        name: of the ensemble.
    """

    def block(some: slice) -> Block:
        mean = whole.block(some).probs
        return Block(mean, predictions.columns(decided, some).probabilities(log_odds(mean)))

    return dataclasses.replace(whole, name=name, block=block, thresholds=decided.thresholds)
