"""The whole pipeline: `python -m cftjax.train [CONFIG.py] [--recipe default|paper] [--workdir RUN] [--options]`.

Without a configuration it trains on digits drawn on the spot, a minute or two on two cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cftjax import cli, finetune, runs
from cftjax.config import Config, check_together, deciding
from cftjax.data import splits
from cftjax.default import get_config
from cftjax.embeddings import embed
from cftjax.inference import model
from cftjax.input import cache
from cftjax.input.preprocessing import Box
from cftjax.report.mistakes import Heatmaps
from cftjax.runs import Run
from cftjax.runtime import devices, hosts, storage, tensorboard
from cftjax.stages import sharing
from cftjax.training import head, loop
from cftjax.types import SPLITS, Dataset, Heads


def main() -> None:
    """Train the backbone, embed every split once, search and polish each category's head, choose, report."""
    experiment = cli.parse(
        "Train a multi-label classifier from partial labels, then tune each category's head.", get_config
    )
    config = experiment.config
    if config.tensorboard:
        tensorboard.check()
    # Before anything asks for devices: from here on all hosts do the same.
    hosts.join(experiment.hosts)
    with opened(config.data.load(), config, experiment.workdir) as (run, dataset):
        keys = train_backbone(run, dataset, config)
        # The report is the first host's alone, and a model spread over several cannot be asked by one.
        seen = heatmaps(run) if jax.process_count() == 1 else None
        finetune.tune(run, config, keys, dataset.splits.get("test"), seen)
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
    check_together(config.labels, config.training)
    prepared = splits.prepare(loaded, config.labels, config.split)
    dataset = prepared.dataset
    run = runs.create(workdir, config, dataset.categories, dataset.fingerprint, loop.preprocessing(config))
    with run.writing():
        if prepared.validation_rows is not None and devices.is_primary():
            storage.write_arrays(run.folder / "validation_rows.npz", {"rows": prepared.validation_rows})
        yield run, dataset


def train_backbone(
    run: Run, dataset: Dataset, config: Config[Any], needed: Sequence[str] = SPLITS, elsewhere: Sequence[Path] = ()
) -> list[str]:
    """Train the backbone and embed splits with it, keeping what is done already.

    Args:
        run: of the experiment.
        dataset: its data.
        config: its labels, input, backbone, training, embed and seed are read.
        needed: the splits to embed, of those that there are.
        elsewhere: folders of runs from which a frozen backbone's embeddings are taken where they are the same.

    Returns:
        Keys of the stages that search and polish read.
    """
    if config.training.freeze_backbone:
        return train_head(run, dataset, config, needed, elsewhere)
    preprocessing = loop.preprocessing(config)
    # Not what happens to bad images: a run that one has stopped goes on without it, and keeps what is done.
    given = dataclasses.replace(config.input, on_bad_image="raise")
    labels_settings, training_settings = deciding(config.labels, config.training)
    trained_with = [labels_settings, given, config.backbone, training_settings, config.seed]
    with run.stage("backbone", trained_with, [dataset.fingerprint]) as trained:
        if not trained.complete:
            # Here and not batch by batch, so that a cache in memory serves every epoch's validation.
            records = {s: cache.cached(r, preprocessing, config.input) for s, r in dataset.splits.items()}
            loop.fit(dataclasses.replace(dataset, splits=records), config, trained.folder)

    # Search and polish read embeddings only, so that other settings for them never touch the backbone again.
    backbone, heads = loop.load(trained.folder)
    keys = []
    for split in (s for s in SPLITS if s in needed and s in dataset.splits):
        with run.stage(f"embeddings/{split}", [config.embed], [trained.key]) as stage:
            if not stage.complete:
                records = dataset.splits[split]
                embed.embed(backbone, records, preprocessing, config.input, config.embed.batch_size, stage.folder)
        keys.append(stage.key)
    return [*keys, keep_heads(run, trained.key, heads)]


def train_head(
    run: Run, dataset: Dataset, config: Config[Any], needed: Sequence[str] = SPLITS, elsewhere: Sequence[Path] = ()
) -> list[str]:
    """Embed splits with the pretrained backbone and train the head on them, keeping what is done already.

    Args:
        run: of the experiment.
        dataset: its data.
        config: as for `train_backbone`.
        needed: the splits to embed besides those that training reads, of those that there are.
        elsewhere: as for `train_backbone`.

    Returns:
        Keys of the stages that search and polish read.
    """
    classifier = head.pretrained(config, len(dataset.categories))
    # Labels do not enter embeddings: another mode for unknown ones trains another head on the same.
    embedded_with = dataclasses.asdict(config.embed) | {
        "backbone": config.backbone,
        "compute_dtype": config.training.compute_dtype,
    }
    keys = {}
    for split in (s for s in SPLITS if s in {"train", "validation", *needed} and s in dataset.splits):
        with run.stage(f"embeddings/{split}", [embedded_with], [dataset.fingerprint]) as stage:
            if not stage.complete:
                records = dataset.splits[split]
                skip = config.input.on_bad_image == "skip"
                same = sharing.find(run, split, [embedded_with], records, elsewhere, skip)
                if same is None:
                    preprocessing, batch_size = loop.preprocessing(config), config.embed.batch_size
                    classifier.eval()
                    embed.embed(classifier.backbone, records, preprocessing, config.input, batch_size, stage.folder)
                elif devices.is_primary():
                    sharing.take(same, records, stage.folder)
        keys[split] = stage.key
    read = [split for split in ("train", "validation") if split in keys]
    labels_settings, training_settings = deciding(config.labels, config.training)
    trained_with = [labels_settings, None, config.backbone, training_settings, config.seed]
    with run.stage("backbone", trained_with, [keys[split] for split in read]) as trained:
        if not trained.complete:
            embeddings = {split: run.embeddings(split) for split in read}
            head.fit(dataset, embeddings, classifier, config, trained.folder)
    _, heads = loop.load(trained.folder)
    return [*keys.values(), keep_heads(run, trained.key, heads)]


def keep_heads(run: Run, trained: str, heads: Heads) -> str:
    """Write the heads as training left them, for search and polish; the key of their stage.

    Args:
        run: of the experiment.
        trained: key of the training.
        heads: of its classifier.
    """
    with run.stage("heads/backbone", [], [trained]) as stage:
        if not stage.complete and devices.is_primary():
            storage.write_heads(stage.folder / "heads.npz", heads)
    return stage.key


def heatmaps(run: Run) -> Heatmaps:
    """Where the final heads of a run see a category; the model is loaded at the first use, when there is one."""
    load = functools.cache(model.load)

    def maps(images: Sequence[np.ndarray], category: int) -> list[tuple[np.ndarray, Box] | None]:
        trained = load(run.folder)
        if not trained.has_heatmaps:
            return [None] * len(images)
        found = trained.heatmaps(images, [run.categories[category]])[..., 0]
        boxes = [trained.box(*image.shape[:2]) for image in images]
        return list(zip(found, boxes, strict=True))

    return maps


if __name__ == "__main__":
    cli.run(main)
