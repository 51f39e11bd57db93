"""Finished runs written by hand in a second: a backbone of random weights, heads and decisions, nothing trained."""

import numpy as np
from flax import nnx

from cftjax import decisions, runs
from cftjax.config import BackboneConfig, Config, DecideConfig, LabelsConfig
from cftjax.data.digits import DigitsData
from cftjax.embeddings import embed
from cftjax.finetune import Finetuning
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import checkpoints, storage
from cftjax.training import classifier
from cftjax.training.classifier import Architecture
from cftjax.types import STAGES, Embeddings, Heads

CATEGORIES = ("cat", "dog | wolf", "owl")
SIZE = 16


def make(
    folder,
    *,
    backbone=True,
    calibration="platt",
    splits=("train", "validation", "test"),
    labels=None,
    categories=CATEGORIES,
):
    rng = np.random.default_rng(0)
    if backbone:
        config = Config(data=DigitsData(), labels=labels or LabelsConfig(), seed=3)
        preprocessing = Preprocessing(SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    else:
        config, preprocessing = Finetuning(file=folder / "elsewhere" / "mine.npz"), None
    run = runs.create(folder, config, categories, "f1f2", preprocessing)
    dim = write_backbone(run, rng) if backbone else 5
    kernel, bias = 10 * rng.normal(size=(3, dim)) / np.sqrt(dim), rng.normal(size=3)
    final = Heads(kernel.astype(np.float32), bias.astype(np.float32))
    for stage in STAGES:
        storage.write_heads(folder / "heads" / stage / "heads.npz", final)
    for split in splits:
        z = rng.normal(size=(40, dim)).astype(np.float32)
        truth = np.asarray(final(z)) + 10 * rng.normal(size=(40, 3)) > 0
        known = rng.random(truth.shape) < 0.8
        embed.save(folder / "embeddings" / split, Embeddings(z, truth & known, known, ~known & (z[:, :3] > 1)))
    judge = "validation" if "validation" in splits else "train"
    seen = run.embeddings(judge)
    config = DecideConfig(calibration=calibration)
    fitted = decisions.fit(
        np.asarray(final(seen.z)), seen.labels, seen.known, config, categories=categories, split=judge
    )
    decisions.write(folder / "decisions" / runs.DECISIONS, fitted)
    chosen = {"chosen": ["polish"] * 3, "untuned": {"owl": "too few"}, "scores": {"polish": [0.5, 0.7, None]}}
    storage.write_json(folder / "heads" / "final" / "chosen.json", chosen)
    return run


def write_backbone(run, rng):
    model = classifier.new(Architecture(BackboneConfig(), len(CATEGORIES), np.float32), 0)
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    # Running statistics as training leaves them: a program in the wrong mode, or without them, says something else.
    for path, variable in nnx.to_flat_state(stats):
        low, high = (-0.1, 0.1) if path[-1] == "mean" else (0.8, 1.2)
        variable.set_value(rng.uniform(low, high, variable.get_value().shape).astype(np.float32))
    writer = checkpoints.Writer()
    metadata = {
        "backbone": runs.plain(BackboneConfig()),
        "num_categories": len(CATEGORIES),
        "compute_dtype": "auto",
        "epoch": 1,
        "score": 0.5,
    }
    tree = {"params": nnx.as_pure(params), "stats": nnx.as_pure(stats)}
    writer.save(run.folder / "backbone" / "best", 1, tree, metadata)
    writer.wait()
    return model.backbone.dim
