"""The whole pipeline: `python -m cftjax.train [CONFIG.py] [--recipe default|paper] [--workdir RUN] [--options]`.

Without a configuration it trains on digits drawn on the spot, a minute or two on two cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cftjax import cli, devices, embedding, finetune, hosts, runs, storage, training
from cftjax.config import Config
from cftjax.data import cache, splits
from cftjax.default import get_config
from cftjax.runs import Run
from cftjax.types import SPLITS, Dataset


def main() -> None:
    """Train the backbone, embed every split once, search and polish each category's head, choose, report."""
    experiment = cli.parse(
        "Train a multi-label classifier from partial labels, then tune each category's head.", get_config
    )
    config = experiment.config
    # Before anything asks for devices: from here on all hosts do the same.
    hosts.join(experiment.hosts)
    with opened(config.data.load(), config, experiment.workdir) as (run, dataset):
        keys = train_backbone(run, dataset, config)
        finetune.tune(run, config, keys, dataset.splits.get("test"))
    if devices.is_primary():
        print(f"Report: {run.folder / 'report'}")


@contextlib.contextmanager
def opened(loaded: Dataset, config: Config[Any], workdir: Path) -> Iterator[tuple[Run, Dataset]]:
    """The run of an experiment, held for this process alone, and the data as this experiment uses them.

    Args:
        loaded: the splits as the files give them.
        config: the experiment.
        workdir: the folder of the run.
    """
    prepared = splits.prepare(loaded, config.labels, config.split)
    dataset = prepared.dataset
    run = runs.create(workdir, config, dataset.categories, dataset.fingerprint, training.preprocessing(config))
    with run.writing():
        if prepared.validation_rows is not None and devices.is_primary():
            storage.write_arrays(run.folder / "validation_rows.npz", {"rows": prepared.validation_rows})
        yield run, dataset


def train_backbone(run: Run, dataset: Dataset, config: Config[Any], needed: Sequence[str] = SPLITS) -> list[str]:
    """Train the backbone and embed splits with it, keeping what is done already.

    Args:
        run: of the experiment.
        dataset: its data.
        config: its labels, input, backbone, training, embed and seed are read.
        needed: the splits to embed, of those that there are.

    Returns:
        Keys of the stages that search and polish read.
    """
    preprocessing = training.preprocessing(config)
    # Not what happens to bad images: a run that one has stopped goes on without it, and keeps what is done.
    given = dataclasses.replace(config.input, on_bad_image="raise")
    trained_with = [config.labels, given, config.backbone, config.training, config.seed]
    with run.stage("backbone", trained_with, [dataset.fingerprint]) as trained:
        if not trained.complete:
            # Here and not batch by batch, so that a cache in memory serves every epoch's validation.
            records = {s: cache.cached(r, preprocessing, config.input) for s, r in dataset.splits.items()}
            training.fit(dataclasses.replace(dataset, splits=records), config, trained.folder)

    # Search and polish read embeddings only, so that other settings for them never touch the backbone again.
    backbone, heads = training.load(trained.folder)
    keys = []
    for split in (s for s in SPLITS if s in needed and s in dataset.splits):
        with run.stage(f"embeddings/{split}", [config.embed], [trained.key]) as stage:
            if not stage.complete:
                records = dataset.splits[split]
                embedding.embed(backbone, records, preprocessing, config.input, config.embed.batch_size, stage.folder)
        keys.append(stage.key)
    with run.stage("heads/backbone", [], [trained.key]) as stage:
        if not stage.complete and devices.is_primary():
            storage.write_heads(stage.folder / "heads.npz", heads)
    return [*keys, stage.key]


if __name__ == "__main__":
    cli.run(main)
