import sys

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import toy
from flax import nnx

import cftjax
from cftjax import backbones, export, metrics, push, train
from cftjax.backbones import places, resnet
from cftjax.backbones.places import LikeliestPlaces
from cftjax.config import BackboneConfig, ClassifierConfig
from cftjax.data.reading import images as data_images
from cftjax.inference import formats, packed
from cftjax.inference import program as programs
from cftjax.runtime import storage
from cftjax.stages import backbone as stage
from cftjax.training import classifier

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
        ("vit_small", "published", 32, 3, "is not pooled from places: add --backbone.pooling mean"),
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


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A network that is compiled in a moment, with 8 x 8 places of 32 pixels and 4 x 4 of 16."""
    with pytest.MonkeyPatch.context() as patch:
        shape = resnet.ResNetConfig(widths=(4, 6), depths=(1, 1), small_stem=True)
        patch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, shape))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of 16 pixels with untrained weights, and its images."""
    folder = tmp_path_factory.mktemp("made")
    images = toy.write_images(folder / "images")
    return toy.image_run(folder / "run", "tiny", images, places=3), sorted(images.iterdir())


def test_a_run_s_embeddings_are_those_by_hand_of_the_head_that_it_was_trained_with(made):
    run, files = made
    z, (embedder, heads) = run.embeddings("test").z, classifier.load(run.folder / "backbone")
    assert isinstance(embedder, LikeliestPlaces)
    model = cftjax.load(run.folder)
    np.testing.assert_allclose(model.embed(files), z, atol=1e-6)
    pixels = [data_images.open_image(file) for file in files]
    prepared = np.stack([model.preprocessing.apply(image) for image in pixels])
    features = np.asarray(embedder.backbone.features(jnp.asarray(prepared)))
    expected = by_hand(features, np.asarray(heads.kernel), ClassifierConfig(3))
    pngs = [i for i, file in enumerate(files) if file.suffix == ".png"]
    np.testing.assert_allclose(z[pngs], expected[pngs], rtol=1e-4, atol=1e-5)
    assert z.shape == (len(files), toy.CATEGORIES, embedder.backbone.dim)


def test_the_mean_of_a_heatmap_over_its_places_is_the_logit_of_the_final_head(made):
    run, files = made
    model = cftjax.load(run.folder)
    maps = model.heatmaps(files)
    assert maps.shape == (len(files), 4, 4, 3)
    np.testing.assert_allclose(maps.mean((1, 2)), model.logits(files), atol=1e-4)
    np.testing.assert_allclose(model.heatmaps(files, ["cow", "cat"]), maps[..., [2, 0]], atol=1e-5)
    assert model([]).shape == (0, 3)


def test_views_take_the_mean_of_logits_of_which_each_has_places_of_its_own(made):
    run, files = made
    model = cftjax.load(run.folder)
    both = model.looking(["mirror"])
    mirrored = [data_images.open_image(file)[:, ::-1] for file in files[:3]]
    alone = [model.logits([data_images.open_image(file) for file in files[:3]]), model.logits(mirrored)]
    np.testing.assert_allclose(both.logits([image[:, ::-1] for image in mirrored]), np.mean(alone, axis=0), atol=1e-3)


@pytest.mark.filterwarnings("default")  # what converters say is not ours
@pytest.mark.parametrize("format", ["stablehlo", "safetensors", "onnx"])
def test_a_file_of_every_format_says_what_the_run_says(made, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("jax2onnx")
        pytest.importorskip("onnxruntime")
    run, _ = made
    program, path = programs.of_run(run), tmp_path / f"model.{format}"
    path.write_bytes(formats.WRITERS[format](program))
    # What the command holds a file to before it keeps it.
    expected = export.expectation(run)
    found = np.asarray(formats.RUNNERS[format](path)(expected.given))
    assert export.largest_difference(found, expected) < 1e-5
    np.testing.assert_allclose(found, cftjax.load(run.folder)(expected.given), atol=1e-5)
    assert program.description["classifier"] == {"places": 3, "places_weight": 0.5}
    assert program.description["format"] == 2


def test_what_is_pushed_looks_at_the_same_places(made, tmp_path):
    run, files = made
    packed.write(run, tmp_path, "# Card\n")
    # What the command holds the files to before they are uploaded.
    push.check(run, tmp_path)
    model = packed.load(tmp_path)
    np.testing.assert_array_equal(model.logits(files), cftjax.load(run.folder).logits(files))
    assert model.heatmaps(files[:2]).shape == (2, 4, 4, toy.CATEGORIES)


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


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    train.main()


def words(**changes):
    return [word for pair in (OPTIONS | changes).items() for word in pair]


def test_a_training_that_is_interrupted_before_it_embeds_goes_on_and_every_category_s_head_is_tuned(
    tmp_path, monkeypatch, capsys
):
    folder, whole = tmp_path / "run", stage.embed.embed

    def stop(*args, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage.embed, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, "--workdir", folder, *words())
    assert "384 x 10 x 6, 0.0 GB on disk" in capsys.readouterr().out
    monkeypatch.setattr(stage.embed, "embed", whole)
    call(monkeypatch, "--workdir", folder, *words())
    run = cftjax.open_run(folder)
    assert run.embeddings("test").z.shape == (96, 10, 6)
    embedder, heads = classifier.load(folder / "backbone")
    assert isinstance(embedder, LikeliestPlaces)
    # The heads that came are those that pick the places; afterwards they go on alone.
    np.testing.assert_array_equal(run.heads("backbone").kernel, heads.kernel)
    np.testing.assert_array_equal(embedder.kernel.get_value(), heads.kernel)
    assert (np.abs(run.heads("final").kernel - run.heads("backbone").kernel).max(axis=1) > 1e-4).all()
    # The epoch's score was that of the logits which these embeddings give.
    validation = run.embeddings("validation")
    ap = metrics.average_precision(np.asarray(heads(validation.z)), validation.labels, where=validation.known)
    score = storage.read_json(folder / "backbone" / "history.json")["score"][0]
    np.testing.assert_allclose(float(metrics.mean_defined(ap)), score, atol=1e-3)


def test_a_frozen_backbone_and_too_few_places_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="leave out --training"):
        call(monkeypatch, "--workdir", tmp_path / "a", *words(), "--training.freeze-backbone")
    with pytest.raises(ValueError, match="not fewer than the 8 x 8 places"):
        call(monkeypatch, "--workdir", tmp_path / "b", *words(**{"--classifier.places": "64"}))
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
