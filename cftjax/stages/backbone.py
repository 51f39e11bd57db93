"""From images to embeddings: the backbone is trained, or kept as it is under a new head, and embeds every split once.

What is complete with the same settings and data is kept, so that other settings for search and polish never touch the
backbone again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from cftjax import runs
from cftjax.backbones import places
from cftjax.config import Config, TrainingConfig, check_together, deciding
from cftjax.data import judging, preflight, splits
from cftjax.embeddings import embed
from cftjax.input import cache, pipeline
from cftjax.runs import Run
from cftjax.runtime import devices, hosts, storage
from cftjax.stages import sharing
from cftjax.training import classifier, head, images, loop
from cftjax.training.history import History
from cftjax.types import SPLITS, Dataset, Embeddings, Heads


@contextlib.contextmanager
def opened(loaded: Dataset, config: Config[Any], workdir: Path) -> Iterator[tuple[Run, Dataset]]:
    """The run of an experiment, held for this process alone, and the data as this experiment uses them.

    Args:
        loaded: the splits as the files give them.
        config: the experiment.
        workdir: the folder of the run.
    """
    check_together(config.labels, config.training)
    if devices.is_primary():
        for note in loaded.notes:
            print(note, flush=True)
    prepared = splits.prepare(loaded, config.labels, config.split)
    dataset = prepared.dataset
    if devices.is_primary():
        for note in judging.notes(dataset):
            print(note, flush=True)
    allow_missing = config.input.on_bad_image == "skip"
    hosts.together(lambda: preflight.check(dataset, config.split.leak, allow_missing=allow_missing))
    source = images.of_experiment(dataset, config)
    preprocessing = source.preprocessing
    if config.classifier.places:
        _check_places(source, config)
    run = runs.create(workdir, config, dataset.categories, dataset.fingerprint, preprocessing)
    with run.writing(), run.tracked(config.log):
        if prepared.validation_rows is not None and devices.is_primary():
            storage.write_arrays(run.folder / "validation_rows.npz", {"rows": prepared.validation_rows})
        if prepared.test_rows is not None and devices.is_primary():
            storage.write_arrays(run.folder / "test_rows.npz", {"rows": prepared.test_rows})
        yield run, dataset


def _check_places(source: images.Images, config: Config[Any]) -> None:
    """Refuse places that there are not before hours are spent, and say what embeddings of every category will take.

    Raises:
        ValueError: with the mend.
    """
    if config.training.freeze_backbone:
        raise ValueError(
            f"--classifier.places {config.classifier.places} trains the backbone through its likeliest places: leave "
            "out --training.freeze-backbone, or --classifier.places"
        )
    model = nnx.eval_shape(lambda: classifier.Classifier(source.architecture, rngs=nnx.Rngs(0)))
    places.check(model.backbone, config.classifier, source.preprocessing.image_size)
    rows = sum(len(records) for records in source.dataset.splits.values())
    shape = (rows, len(source.dataset.categories), model.backbone.dim)
    if devices.is_primary():
        size = 4 * math.prod(shape)
        print(
            f"Embeddings of every category's own: {' x '.join(f'{x:,}' for x in shape)}, {size / 1e9:.1f} GB on disk."
        )


def train(
    run: Run, dataset: Dataset, config: Config[Any], needed: Sequence[str] = SPLITS, elsewhere: Sequence[Path] = ()
) -> list[str]:
    """Train the backbone and embed splits with it, keeping what is done already.

    Args:
        run: of the experiment.
        dataset: its data.
        config: its labels, input, backbone, classifier, training, embed and seed are read.
        needed: the splits to embed, of those that there are.
        elsewhere: folders of runs from which a frozen backbone's embeddings are taken where they are the same.

    Returns:
        Keys of the stages that search and polish read.
    """
    if config.training.freeze_backbone:
        return _train_head(run, dataset, config, needed, elsewhere)
    return _train_whole(run, dataset, config, needed)


def take_over(run: Run, embeddings: Mapping[str, Embeddings], heads: Heads, digest: str) -> list[str]:
    """Write what a model trained anywhere has made of the images, in place of a training.

    Args:
        run: begun on these files.
        embeddings: by split.
        heads: the model's last layer.
        digest: of the files that hold them.

    Returns:
        Keys of the stages that search and polish read.
    """
    keys = []
    for split, content in embeddings.items():
        with run.stage(f"embeddings/{split}", [], [digest]) as stage:
            if not stage.complete and devices.is_primary():
                embed.save(stage.folder, content)
        keys.append(stage.key)
    return [*keys, _keep_heads(run, digest, heads)]


def recorded(config: Config[Any]) -> list[Any]:
    """The settings that the key of a training is made from: all that its result depends on, and nothing else.

    What this version added is left out while it is off, and what changes no result is recorded as it always was, so
    that what an older version has trained is kept: tests/test_stage_keys.py lists every option.
    """
    labels, training = deciding(config.labels, config.training)
    # Not the number of threads, nor what happens to bad images: a run that one has stopped goes on without it.
    seen = dataclasses.replace(config.input, workers=2, on_bad_image="raise")
    last_layer = [config.classifier] if config.classifier.places else []
    shown = None if config.training.freeze_backbone else seen
    return [labels, shown, config.backbone, training, *last_layer, config.seed]


def _train_whole(run: Run, dataset: Dataset, config: Config[Any], needed: Sequence[str]) -> list[str]:
    """Train backbone and head on images, then embed the splits that are needed."""
    source = images.of_experiment(dataset, config)
    with run.stage("backbone", recorded(config), [dataset.fingerprint]) as trained:
        if not trained.complete:
            # Here and not batch by batch, so that a cache in memory serves every epoch's validation.
            records = {s: cache.cached(r, source.preprocessing, config.input) for s, r in dataset.splits.items()}
            cached = dataclasses.replace(source, dataset=dataclasses.replace(dataset, splits=records))
            loop.fit(cached, trained.folder, log=run.tracking)
    _log_epochs(run, trained.folder, len(dataset.splits["train"]), config.training)

    backbone, heads = classifier.load(trained.folder)
    keys = []
    for split in (s for s in SPLITS if s in needed and s in dataset.splits):
        with run.stage(f"embeddings/{split}", [config.embed], [trained.key]) as stage:
            if not stage.complete:
                records, size = dataset.splits[split], config.embed.batch_size
                embed.embed(backbone, records, source.preprocessing, config.input, size, stage.folder, key=stage.key)
        keys.append(stage.key)
    return [*keys, _keep_heads(run, trained.key, heads)]


def _train_head(
    run: Run, dataset: Dataset, config: Config[Any], needed: Sequence[str], elsewhere: Sequence[Path]
) -> list[str]:
    """Embed splits with the pretrained backbone, those that training reads above all, and train the head on them."""
    source = images.of_experiment(dataset, config)
    model = head.pretrained(source.architecture, config.seed)
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
                    batch_size, where = config.embed.batch_size, stage.folder
                    model.eval()
                    embed.embed(
                        model.backbone, records, source.preprocessing, config.input, batch_size, where, key=stage.key
                    )
                elif devices.is_primary():
                    sharing.take(same, records, stage.folder)
        keys[split] = stage.key
    read = [split for split in ("train", "validation") if split in keys]
    with run.stage("backbone", recorded(config), [keys[split] for split in read]) as trained:
        if not trained.complete:
            embeddings = {split: run.embeddings(split) for split in read}
            loop.fit(head.of_experiment(dataset, embeddings, model, config), trained.folder, log=run.tracking)
    _log_epochs(run, trained.folder, len(dataset.splits["train"]), config.training)
    _, heads = classifier.load(trained.folder)
    return [*keys.values(), _keep_heads(run, trained.key, heads)]


def _log_epochs(run: Run, folder: Path, num_images: int, settings: TrainingConfig) -> None:
    """The epochs of a training that is done, for services that have not seen them."""
    path = folder / "history.json"
    if not run.tracking.senders or not path.is_file():
        return
    history = History.from_json(storage.read_json(path))
    per_epoch = pipeline.steps_per_epoch(num_images, settings.batch_size)
    with run.tracking.again(folder) as curves:
        for epoch, (loss, score) in enumerate(zip(history.loss, history.score, strict=True), start=1):
            curves.scalars(min(epoch * per_epoch, history.step), loop.of_epoch(loss, score, settings.metric))


def _keep_heads(run: Run, made_from: str, heads: Heads) -> str:
    """Write the heads that search and polish begin with; the key of their stage.

    Args:
        run: of the experiment.
        made_from: key of the training, or the digest of the files that hold them.
        heads: the last layer.
    """
    with run.stage("heads/backbone", [], [made_from]) as stage:
        if not stage.complete and devices.is_primary():
            storage.write_heads(stage.folder / "heads.npz", heads)
    return stage.key
