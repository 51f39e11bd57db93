import json
import sys

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from flax import nnx

import cftjax
from cftjax import backbones, export, train
from cftjax.backbones import places, resnet
from cftjax.backbones.places import LikeliestPlaces
from cftjax.config import BackboneConfig, ClassifierConfig
from cftjax.data.digits import DigitsData
from cftjax.inference import formats
from cftjax.runtime import storage
from cftjax.stages import backbone as stage
from cftjax.training import classifier
from cftjax.training.classifier import Architecture

CONFIG = ClassifierConfig(places=3, places_weight=0.7)
rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(6, 3, 5, 3)).astype(np.float32)
KERNEL = rng.normal(size=(2, 3)).astype(np.float32)
BIAS = rng.normal(size=2).astype(np.float32)


class Seen(nnx.Module):
    """Features that are the images."""

    dim = 3

    def features(self, images):
        return images


def by_hand(features, kernel, config):
    """Embedding of an image and a category: sort its places by their logits, and take the first."""
    n, height, width, dim = features.shape
    z = np.empty((n, len(kernel), dim))
    for i in range(n):
        flat = features[i].reshape(height * width, dim).astype(np.float64)
        for c, head in enumerate(kernel.astype(np.float64)):
            top = np.argsort(-(flat @ head), kind="stable")[: config.places]
            z[i, c] = flat.mean(0) + config.places_weight * flat[top].mean(0)
    return z


@pytest.mark.parametrize("config", [CONFIG, ClassifierConfig(5), ClassifierConfig(1, 2.0)])
def test_embeddings_are_those_by_hand_and_their_heads_give_the_classifier_s_logits(config):
    expected = by_hand(FEATURES, KERNEL, config)
    found = LikeliestPlaces(Seen(), jnp.asarray(KERNEL), config)
    np.testing.assert_allclose(found.embed(jnp.asarray(FEATURES)), expected, rtol=1e-5, atol=1e-6)
    assert places.embedding_shape(found) == (2, 3)
    assert places.embedding_shape(Seen()) == (3,)
    logits = places.pooled_logits(jnp.asarray(FEATURES), jnp.asarray(KERNEL.T), jnp.asarray(BIAS), config)
    np.testing.assert_allclose(logits, np.einsum("ncd,cd->nc", expected, KERNEL) + BIAS, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_differences():
    def total(features, kernel):
        return jnp.sum(jnp.sin(places.pooled_logits(features, kernel, jnp.asarray(BIAS), CONFIG)))

    given = jnp.asarray(FEATURES[:2]), jnp.asarray(KERNEL.T)
    jax.test_util.check_grads(
        lambda *x: total(*map(jnp.asarray, x)), given, order=1, modes=["rev"], atol=1e-2, rtol=1e-2
    )
    of_features, _ = jax.grad(total, argnums=(0, 1))(*given)
    # A place outside of the likeliest counts once, one inside more.
    size = np.abs(
        np.asarray(jax.grad(lambda f: places.pooled_logits(f, given[1], jnp.zeros(2), CONFIG)[0, 0])(given[0]))[0]
    )
    by_place = size.reshape(15, 3) / np.abs(KERNEL[0])
    share = 1 + CONFIG.places_weight * 15 / 3
    np.testing.assert_allclose(np.sort(15 * by_place[:, 0]), [1] * 12 + [share] * 3, rtol=1e-5)
    assert np.isfinite(of_features).all()


def test_of_equal_places_the_first_counts():
    same = jnp.ones((1, 4, 2))
    np.testing.assert_array_equal(places.likeliest(same, jnp.ones((1, 2)), 2), [[[0, 1]]])


@pytest.mark.parametrize(
    ("name", "pooling", "size", "num", "message"),
    [
        ("small_resnet", "published", 32, 3, "is pooled by mean_max: add --backbone.pooling mean"),
        ("vit_small", "published", 32, 3, "is the class token: add --backbone.pooling mean"),
        ("small_resnet", "mean", 32, 16, "not fewer than the 4 x 4 places that the backbone sees at 32 pixels"),
    ],
)
def test_places_that_there_are_not_are_refused(name, pooling, size, num, message):
    build = BackboneConfig(name, pooling=pooling)
    net = nnx.eval_shape(lambda: backbones.create(build, nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        places.check(net, ClassifierConfig(num), size)


@pytest.mark.parametrize("wrong", [{"places": -1}, {"places_weight": 0.0}, {"places_weight": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"classifier\.places"):
        ClassifierConfig(**wrong)


OPTIONS = {
    "--data.num-train": "192",
    "--data.num-validation": "96",
    "--data.num-test": "96",
    "--backbone.name": "tiny",
    "--backbone.pooling": "mean",
    "--classifier.places": "3",
    "--training.epochs": "1",
    "--training.batch-size": "32",
    "--embed.batch-size": "12",
    "--ga.num-generations": "20",
    "--ga.population-size": "10",
    "--ga.dimensions": "4",
    "--polish.num-steps": "20",
    "--polish.dimensions": "4",
    "--report.resamples": "50",
}


def call(monkeypatch, main, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    main()


def words(**changes):
    return [word for pair in (OPTIONS | changes).items() for word in pair]


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A network that is compiled in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        shape = resnet.ResNetConfig(widths=(4, 6), depths=(1, 1), small_stem=True)
        patch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, shape))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "places"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, train.main, "--workdir", folder, *words())
    return cftjax.open_run(folder)


def test_a_run_s_embeddings_are_those_by_hand_of_its_trained_head(run):
    embedder, heads = classifier.load(run.folder / "backbone")
    assert isinstance(embedder, LikeliestPlaces)
    embedder.eval()
    z = run.embeddings("test").z
    assert z.shape == (96, 10, embedder.backbone.dim)
    records = DigitsData(num_train=192, num_validation=96, num_test=96).load().splits["test"]
    model = cftjax.load(run.folder)
    pixels = [records.image(row) for row in range(8)]
    features = np.asarray(embedder.backbone.features(model.preprocessing.normalise(np.stack(pixels))))
    expected = by_hand(features, np.asarray(heads.kernel), ClassifierConfig(3))
    np.testing.assert_allclose(z[:8], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run.heads("backbone").kernel, heads.kernel)
    architecture = Architecture(BackboneConfig("tiny", pooling="mean"), 10, jnp.float32, ClassifierConfig(3))
    whole = nnx.merge(nnx.split(classifier.new(architecture, 0))[0], *_variables(embedder, heads))
    whole.eval()
    np.testing.assert_allclose(whole(model.preprocessing.normalise(np.stack(pixels))), heads(z[:8]), atol=1e-4)


def _variables(embedder, heads):
    """A classifier's variables, of its parts."""
    inner = nnx.as_pure(nnx.state(embedder.backbone))
    return [{"backbone": inner, "head": {"kernel": heads.kernel.T, "bias": heads.bias}}]


def test_the_mean_of_a_heatmap_over_its_places_is_the_logit_of_the_final_head(run):
    model = cftjax.load(run.folder)
    records = DigitsData(num_train=192, num_validation=96, num_test=96).load().splits["test"]
    pixels = [records.image(row) for row in range(5)]
    maps = model.heatmaps(pixels)
    assert maps.shape == (5, 8, 8, 10)
    np.testing.assert_allclose(maps.mean((1, 2)), model.logits(pixels), atol=1e-4)
    np.testing.assert_allclose(model.heatmaps(pixels, ["7", "2"]), maps[..., [7, 2]], atol=1e-5)
    np.testing.assert_allclose(model.embed(pixels), run.embeddings("test").z[:5], atol=1e-5)
    assert model([]).shape == (0, 10)


def test_search_and_polish_have_tuned_the_heads_of_every_category_s_own_embeddings(run):
    final, before = run.heads("final"), run.heads("backbone")
    assert (np.abs(final.kernel - before.kernel).max(axis=1) > 1e-4).all()
    report = storage.read_json(run.folder / "report" / "metrics.json")
    assert report["test"]["final"]["mAP"] > report["test"]["backbone"]["mAP"]


@pytest.mark.filterwarnings("default")  # what converters say is not ours
@pytest.mark.parametrize("format", ["stablehlo", "safetensors", "onnx"])
def test_a_file_of_every_format_says_what_the_run_says(run, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("jax2onnx")
        pytest.importorskip("onnxruntime")
    path, difference = export.write(run, format, tmp_path)
    assert difference < 1e-5
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    model = cftjax.load(run.folder)
    np.testing.assert_allclose(np.asarray(formats.RUNNERS[format](path)(images)), model(images), atol=1e-5)
    described = json.loads((tmp_path / "model.json").read_text())
    assert (described["format"], described["classifier"]) == (2, {"places": 3, "places_weight": 0.5})


def test_a_training_that_was_interrupted_embeds_the_same(run, tmp_path, monkeypatch):
    folder, embed = tmp_path / "again", stage.embed.embed

    def stop(*args, **given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage.embed, "embed", stop)
        with pytest.raises(KeyboardInterrupt):
            call(patch, train.main, "--workdir", folder, *words())
    with monkeypatch.context() as patch:
        patch.setattr(stage.embed, "embed", embed)
        call(patch, train.main, "--workdir", folder, *words())
    np.testing.assert_array_equal(cftjax.open_run(folder).embeddings("test").z, run.embeddings("test").z)


def test_a_frozen_backbone_and_too_few_places_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="leave out --training"):
        call(monkeypatch, train.main, "--workdir", tmp_path / "a", *words(), "--training.freeze-backbone")
    with pytest.raises(ValueError, match="not fewer than the 8 x 8 places"):
        call(monkeypatch, train.main, "--workdir", tmp_path / "b", *words(**{"--classifier.places": "64"}))
    assert not (tmp_path / "a").exists()
