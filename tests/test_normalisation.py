"""Images normalised by the device: what the host makes of them, but for rounding, wherever they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cftjax import backbones, types
from cftjax.backbones import resnet
from cftjax.config import BackboneConfig, InputConfig, LabelsConfig, TrainingConfig
from cftjax.data.reading.files import ImageFiles
from cftjax.embeddings import embed
from cftjax.input import pipeline
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import devices
from cftjax.training import classifier
from cftjax.training import state as states
from cftjax.training import step as steps
from cftjax.training.classifier import Architecture

SIZE, N = 8, 8
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (N, 12, 10, 3), np.uint8)
PREPROCESSING = Preprocessing(SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
FILES = {
    "colour": Image.fromarray,
    "grey": lambda image: Image.fromarray(image[..., 0]),
    "grey of 16 bits": lambda image: Image.fromarray(image[..., 0].astype(np.uint16) * 256),
    "grey with transparency": lambda image: Image.merge("LA", [Image.fromarray(image[..., i]) for i in range(2)]),
    "palette": lambda image: Image.fromarray(image).quantize(16),
    "one bit": lambda image: Image.fromarray(image[..., 0] > 127),
}


def published():
    """Every way in which the published backbones, and weights that differ from their architecture, normalise."""
    shapes = [(family, shape) for family, shape in backbones.BACKBONES.values()]
    ways = {shape.preprocessing.normalisation for _, shape in shapes}
    tables = [table for family, shape in shapes for table in family.weight_tables(shape)]
    ways |= {table.preprocessing.normalisation for table in tables if table.preprocessing}
    return sorted((way.mean, way.std) for way in ways)


def rounding(expected, preprocessing):
    """One rounding of what the mean is subtracted from, which a device may do or leave out."""
    return np.spacing(np.float32(np.abs(expected).max() + max(np.divide(preprocessing.mean, preprocessing.std))))


@pytest.mark.parametrize("way", published(), ids=str)
def test_every_grey_level_is_what_the_host_makes_of_it_for_every_published_backbone(way):
    preprocessing = Preprocessing(SIZE, *way)
    levels = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 3))[None]
    expected = preprocessing.normalise(levels)
    for pixels in (levels, levels.astype(np.float32)):
        found = np.asarray(jax.jit(preprocessing.normalisation)(pixels))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(expected, preprocessing))


def test_the_published_backbones_normalise_in_more_than_one_way():
    assert len(published()) >= 3


@pytest.mark.parametrize("kind", FILES)
def test_files_of_any_kind_reach_the_device_as_bytes_and_are_normalised_there(kind, tmp_path):
    names = [f"{i}.png" for i in range(N)]
    for name, image in zip(names, COLOUR, strict=True):
        FILES[kind](image).save(tmp_path / name)
    nothing = np.zeros((N, 1), bool)
    records = types.Records(ImageFiles(tmp_path, names), types.Labels(nothing, nothing, nothing), names)
    (batch,) = pipeline.eval_batches(records, PREPROCESSING, InputConfig(workers=0), batch_size=N)
    assert batch.image.dtype == np.uint8
    sent = devices.shard(batch.image, devices.mesh())
    assert sent.nbytes == N * SIZE * SIZE * 3
    expected = np.stack([PREPROCESSING.apply(records.image(row)) for row in range(N)])
    assert len(np.unique(expected)) > 1
    np.testing.assert_allclose(
        jax.jit(PREPROCESSING.normalisation)(sent), expected, rtol=0, atol=rounding(expected, PREPROCESSING)
    )


@pytest.fixture
def model(monkeypatch):
    shape = resnet.ResNetConfig(widths=(4,), depths=(1,), small_stem=True)
    monkeypatch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, shape))
    return classifier.new(Architecture(BackboneConfig("tiny"), 2, jnp.float32), seed=0)


def test_embeddings_of_bytes_are_those_of_what_the_host_normalises(model):
    pixels = COLOUR[:, :SIZE, :SIZE]
    graphdef, variables = nnx.split(model.backbone)
    variables = nnx.as_pure(variables)
    z = embed.forward(graphdef, variables, pixels, PREPROCESSING.normalisation)
    expected = embed.forward(graphdef, variables, PREPROCESSING.normalise(pixels))
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("augment", "mixup"), [("none", 0.4), ("shift", 0.0)])
def test_a_step_on_grey_levels_is_that_on_what_the_host_normalises_and_cuts_out(model, augment, mixup):
    given = np.ones((N, 2), bool)
    records = types.Records(
        COLOUR.__getitem__, types.Labels(RNG.random((N, 2)) < 0.5, given, ~given), [str(i) for i in range(N)]
    )
    batches = pipeline.train_batches(
        records, LabelsConfig(), PREPROCESSING, InputConfig(0, augment=augment, cutout=0.4), batch_size=N, seed=0
    )
    batch = next(iter(batches))
    by_hand = PREPROCESSING.normalise(batch.image)
    for image, (top, bottom, left, right) in zip(by_hand, batch.hidden, strict=True):
        image[top:bottom, left:right] = 0
    # SGD, for Adam's first step is the sign of the gradient, whatever rounding leaves of a zero.
    settings, losses, after = TrainingConfig(optimizer="sgd", mixup=mixup), [], []
    abstract = classifier.abstract(Architecture(BackboneConfig("tiny"), 2, jnp.float32))
    for normalisation, content in (
        (PREPROCESSING.normalisation, batch),
        (None, batch._replace(image=by_hand, hidden=None)),
    ):
        spec = states.new_spec(
            abstract._replace(normalisation=normalisation), settings, 10, devices.mesh(jax.devices()[:1])
        )
        state, loss = steps.compiled(spec)(states.new_state(spec, model), devices.shard(content, spec.mesh))
        losses.append(float(loss))
        after.append(jax.tree.leaves((state.params, state.stats)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for found, expected in zip(*after, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
