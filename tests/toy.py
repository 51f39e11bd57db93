"""Embeddings small enough to search in a second, with something to find; and a run with images to predict."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from cftjax import backbones, cli, decisions, runs
from cftjax.config import BackboneConfig, ClassifierConfig, Config, EmbedConfig, InputConfig
from cftjax.data.reading import files
from cftjax.embeddings import embed
from cftjax.runtime import checkpoints, storage
from cftjax.training import classifier
from cftjax.training.classifier import Architecture
from cftjax.types import Embeddings, Heads, Labels, Records

CATEGORIES, DIM = 3, 5


def embeddings(n=96, seed=0, known=0.7, per_category=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, CATEGORIES, DIM) if per_category else (n, DIM)).astype(np.float32)
    truth = np.random.default_rng(99).normal(size=(CATEGORIES, DIM)).astype(np.float32)
    logits = np.einsum("ncd,cd->nc", z, truth) if per_category else z @ truth.T
    labels = logits + rng.normal(size=logits.shape) > 0.8
    return Embeddings(z, labels, rng.random(labels.shape) < known)


def heads(seed=7, noise=1.5):
    truth = np.random.default_rng(99).normal(size=(CATEGORIES, DIM))
    kernel = truth + noise * np.random.default_rng(seed).normal(size=truth.shape)
    return Heads(kernel.astype(np.float32), np.zeros(CATEGORIES, np.float32))


def permuted(split, order):
    z = split.z[:, order] if split.z.ndim == 3 else split.z
    return Embeddings(z, split.labels[:, order], split.known[:, order])


@dataclasses.dataclass(frozen=True)
class Data:
    """In the place of a data configuration."""

    scene_size: int = 16


# Name -> whether maxima follow the means in its embeddings.
BACKBONES = {"tiny_mean": False, "tiny_mean_max": True}


def image_run(folder, backbone, images, places=0, **settings):
    """A finished run with an untrained tiny backbone, whose test split is the files of `images`.

    With `places`, so many of the likeliest count twice, and every category has embeddings of its own.
    """
    names = sorted(path.name for path in images.iterdir())
    config = Config(
        data=Data(),
        input=InputConfig(**{"augment": "shift", "flip": True} | settings),
        backbone=BackboneConfig(backbone, pooling="mean" if places else "published"),
        classifier=ClassifierConfig(places),
        embed=EmbedConfig(batch_size=1),
    )
    preprocessing = backbones.preprocessing(config.backbone, config.data.scene_size)
    run = runs.create(folder, config, ("cat", "dog", "cow"), "fingerprint", preprocessing)
    architecture = Architecture(config.backbone, CATEGORIES, jnp.float32, config.classifier)
    model = classifier.new(architecture, seed=0)
    _, params, stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    writer = checkpoints.Writer()
    metadata = {
        "backbone": dataclasses.asdict(config.backbone),
        "num_categories": CATEGORIES,
        "compute_dtype": "float32",
        "classifier": dataclasses.asdict(config.classifier),
    }
    tree = {"params": nnx.as_pure(params), "stats": nnx.as_pure(stats)}
    writer.save(run.folder / "backbone" / "best", 1, tree, metadata)
    writer.wait()
    rng = np.random.default_rng(1)
    labels = rng.random((len(names), CATEGORIES)) < 0.5
    labels[:2] = [[True], [False]]
    known = np.ones_like(labels)
    records = Records(files.ImageFiles(images, names), Labels(labels, known, ~known), names)
    loaded, old = classifier.load(run.folder / "backbone")
    size, folder = config.embed.batch_size, run.folder / "embeddings" / "test"
    embed.embed(loaded, records, preprocessing, config.input, size, folder)
    new = Heads(np.asarray(old.kernel) + 1, rng.normal(size=CATEGORIES).astype(np.float32))
    storage.write_heads(run.folder / "heads" / "final" / "heads.npz", new)
    logits = np.asarray(new(run.embeddings("test").z))
    fitted = decisions.fit(logits, labels, known, config.decide, categories=run.categories, split="validation")
    decisions.write(run.folder / "decisions" / "decisions.json", fitted)
    return run


def write_images(folder, n=11):
    """Noise with a bright spot, of many sizes and some kinds of file."""
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    for i in range(n):
        height, width = rng.integers(12, 60, 2)
        pixels = rng.integers(0, 200, (height, width, 3), np.uint8)
        pixels[: height // 2, : width // 2] = 255
        Image.fromarray(pixels).save(folder / f"{i:02d}.{('png', 'jpg')[i % 2]}")
    return folder


def command(monkeypatch, capsys, main, *words):
    """Exit code, output and error of a command."""
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    code = 0
    try:
        cli.run(main)
    except SystemExit as stopped:
        code = stopped.code
    out = capsys.readouterr()
    return code, out.out, out.err
