"""The whole pipeline: `python -m cftjax.train [CONFIG.py] [--recipe default|paper] [--workdir RUN] [--options]`.

Without a configuration it trains on digits drawn on the spot, a minute or two on two cores.
"""

from __future__ import annotations

import dataclasses

from cftjax import cli, embedding, finetune, runs, storage, training
from cftjax.data import splits
from cftjax.default import get_config
from cftjax.types import SPLITS


def main() -> None:
    """Train the backbone, embed every split once, search and polish each category's head, choose, report."""
    experiment = cli.parse(
        "Train a multi-label classifier from partial labels, then tune each category's head.", get_config
    )
    config = experiment.config
    prepared = splits.prepare(config.data.load(), config.labels, config.split)
    dataset = prepared.dataset
    preprocessing = training.preprocessing(config)
    run = runs.create(experiment.workdir, config, dataset.categories, dataset.fingerprint, preprocessing)
    with run.writing():
        if prepared.validation_rows is not None:
            storage.write_arrays(run.folder / "validation_rows.npz", {"rows": prepared.validation_rows})

        # Not what happens to bad images: a run that one has stopped goes on without it, and keeps what is done.
        given = dataclasses.replace(config.input, on_bad_image="raise")
        trained_with = [config.labels, given, config.backbone, config.training, config.seed]
        with run.stage("backbone", trained_with, [dataset.fingerprint]) as trained:
            if not trained.complete:
                training.fit(dataset, config, trained.folder)

        # Search and polish read embeddings only, so that other settings for them never touch the backbone again.
        backbone, heads = training.load(trained.folder)
        keys = []
        for split in (s for s in SPLITS if s in dataset.splits):
            with run.stage(f"embeddings/{split}", [config.embed], [trained.key]) as stage:
                if not stage.complete:
                    records = dataset.splits[split]
                    embedding.embed(
                        backbone, records, preprocessing, config.input, config.embed.batch_size, stage.folder
                    )
            keys.append(stage.key)
        with run.stage("heads/backbone", [], [trained.key]) as stage:
            if not stage.complete:
                storage.write_heads(stage.folder / "heads.npz", heads)

        finetune.tune(run, config, [*keys, stage.key], dataset.splits.get("test"))
    print(f"Report: {run.folder / 'report'}")


if __name__ == "__main__":
    cli.run(main)
