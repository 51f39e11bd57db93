"""The whole pipeline: `cftjax train [RECIPE or CONFIG.py] [--recipe default|paper] [--workdir RUN] [--options]`.

Without a configuration it trains on digits drawn on the spot, a minute or two on two cores.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from cftjax import cli
from cftjax.config import Config
from cftjax.data import preflight
from cftjax.default import get_config
from cftjax.report import folds
from cftjax.runtime import devices, hosts, tracking
from cftjax.stages import backbone, heads, outcome, pooled
from cftjax.types import Dataset


def main() -> None:
    """Train the backbone, embed every split once, search and polish each category's head, choose, report."""
    experiment = cli.parse(
        "Train a multi-label classifier from partial labels, then tune each category's head.", get_config
    )
    config = experiment.config
    tracking.check(config.log)
    # Before anything asks for devices: from here on all hosts do the same.
    hosts.join(experiment.hosts, experiment)
    loaded = preflight.read(config.data, allow_missing=config.input.on_bad_image == "skip")
    if config.split.folds and config.split.fold is None:
        train_folds(loaded, config, experiment.workdir)
    else:
        train_once(loaded, config, experiment.workdir)


def train_once(loaded: Dataset, config: Config[Any], workdir: Path) -> dict[str, Any]:
    """One run, from images to its report.

    Args:
        loaded: the splits as the files give them.
        config: the experiment.
        workdir: the folder of the run.

    Returns:
        The content of report/metrics.json; empty where neither validation nor test is there to report on.
    """
    with backbone.opened(loaded, config, workdir) as (run, dataset):
        made_from = backbone.train(run, dataset, config)
        # The report is the first host's alone, and a model spread over several cannot be asked by one.
        maps = outcome.heatmaps(run) if jax.process_count() == 1 else None
        reported = heads.tune(run, config, made_from, dataset.reported, maps)
    if devices.is_primary():
        print(f"Report: {run.folder / 'report'}")
    return reported


def train_folds(loaded: Dataset, config: Config[Any], workdir: Path) -> None:
    """A run for every fold, each in a folder of its own, and the table of what they say together.

    Raises:
        ValueError: the folder is a single run.
    """
    if (workdir / "config.json").exists():
        raise ValueError(f"--workdir {workdir} is a single run: give the folds a folder of their own")
    reported = []
    for fold in range(config.split.folds or 0):
        own = dataclasses.replace(config, split=dataclasses.replace(config.split, fold=fold))
        if devices.is_primary():
            print(f"Fold {fold + 1} of {config.split.folds}: {workdir / f'fold-{fold}'}", flush=True)
        reported.append(train_once(loaded, own, workdir / f"fold-{fold}"))
    if devices.is_primary():
        folds.write(workdir, reported)
        print(f"Table: {workdir / 'folds.txt'}")
        if written := pooled.write(workdir, [workdir / f"fold-{fold}" for fold in range(len(reported))]):
            print(f"Predictions of all images, each by the fold that tested it: {written}")


if __name__ == "__main__":
    cli.run(main)
