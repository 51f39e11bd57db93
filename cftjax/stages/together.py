"""Several runs as one model: trained one after the other where they are not there yet, then weighted and calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from cftjax.config import Config, DecideConfig, Metric
from cftjax.evaluation import content, ensemble, fitting, models, sources
from cftjax.evaluation.content import Models
from cftjax.evaluation.fitting import Fitted
from cftjax.evaluation.models import Reading
from cftjax.inference import ensemble as kept
from cftjax.inference.ensemble import Record
from cftjax.runs import Run
from cftjax.runtime.progress import Progress
from cftjax.stages import backbone, heads, outcome
from cftjax.types import SPLITS, Dataset

# Ranks depend on the rows at hand, so that a model that sees images to come has none.
Combine = Literal["mean", "weighted", "greedy"]
REPORT = "report"


def member(loaded: Dataset, config: Config[Any], folder: Path, elsewhere: Sequence[Path]) -> None:
    """Train one run, or go on with it.

    Args:
        loaded: the splits as the files give them.
        config: of this run.
        folder: of this run.
        elsewhere: folders of runs whose embeddings may be shared.
    """
    with backbone.opened(loaded, config, folder) as (run, dataset):
        made_from = backbone.train(run, dataset, config, SPLITS, elsewhere)
        maps = outcome.heatmaps(run) if jax.process_count() == 1 else None
        heads.tune(run, config, made_from, dataset.reported, maps)


def keep(folder: Path, members: Sequence[Path], combine: Combine, config: DecideConfig, metric: Metric) -> Fitted:
    """Find weights, calibration and thresholds, and write the ensemble.

    Args:
        folder: where to.
        members: finished runs on the same data.
        combine: how weights come about.
        config: rule and calibration.
        metric: of greedy selection.
    """
    opened = [Run(member) for member in members]
    (folder / kept.FILE).unlink(missing_ok=True)
    fitted = fitting.fit(opened, models.names_of(members), combine, metric, config)
    record = Record(tuple(members), combine, fitted.weights.values, opened[0].categories)
    kept.write(folder, record, fitted.decisions)
    return fitted


def report(folder: Path, fitted: Fitted, metric: Metric, *, resamples: int, seed: int) -> None:
    """Measure the members and their ensemble on test, print the tables and write them with their pictures.

    Args:
        folder: of the ensemble.
        fitted: what was found for it.
        metric: which score tables show first.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    record = kept.read(folder)
    opened = record.runs()
    split = models.split_of(opened, None)
    truth, each = models.of_runs(opened, models.names_of(record.members), split, Reading())
    _, whole = sources.of_source(sources.opened(folder), split, ensemble.NAME)
    on = fitted.decisions.fitted_on
    notes = [f"Thresholds: each run's own. The ensemble's, and its calibration: fitted on {on.split}."]
    notes += [f"Thresholds and calibration: {on.note}."] if on.note else []
    found = Models(truth, [*each, whole], record.combine, fitted.weights, fitted.judged, tuple(notes))
    with Progress("Evaluate", unit="categories") as progress:
        content.report(
            found, metric=metric, resamples=resamples, seed=seed, folder=folder / REPORT, progress=progress.update
        )
