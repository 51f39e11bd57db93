import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

import cftjax
from cftjax.backbones import efficientnet, layers, resnet
from cftjax.data.reading import images
from cftjax.inference import heatmaps, model
from cftjax.input.preprocessing import Preprocessing
from cftjax.types import Heads

NAMES = sorted(toy.BACKBONES)


@pytest.fixture(scope="module")
def models(image_runs):
    _, runs = image_runs
    return {name: cftjax.load(run.folder) for name, run in runs.items()}


@pytest.fixture(params=NAMES)
def loaded(request, models, image_runs):
    folder, runs = image_runs
    return models[request.param], runs[request.param], sorted(folder.iterdir())


def test_files_have_the_probabilities_of_the_run_s_own_embeddings(loaded):
    found, run, files = loaded
    z = run.embeddings("test").z
    np.testing.assert_array_equal(found.embed(files), z)
    probs = found(files)
    np.testing.assert_array_equal(probs, run.decisions().probabilities(run.heads("final")(z)))
    np.testing.assert_array_equal(found.decide(probs), run.decisions().decide(probs))
    assert found.categories == run.categories


def test_pixels_of_any_sizes_are_seen_as_their_files_are(loaded):
    found, _, files = loaded
    of_files = found.logits(files)
    pixels = [images.open_image(file) for file in files]
    mixed = [files[0], *pixels[1:]]
    # JPEGs of more than twice the size are decoded at reduced scale from files alone.
    same = [file.suffix == ".png" or min(images.read_header(file)[:2]) < 32 for file in files]
    assert sum(same) > len(files) // 2
    np.testing.assert_allclose(found.logits(mixed)[same], of_files[same], atol=1e-5)
    stacked = np.stack([pixels[0]] * 3)
    np.testing.assert_allclose(found.logits(stacked), of_files[[0, 0, 0]], atol=1e-5)
    assert found([]).shape == (0, 3)


def test_the_mean_of_a_heatmap_over_its_places_is_the_logit(loaded):
    found, _, files = loaded
    maps = found.heatmaps(files)
    side = 4 if found.backbone.small_stem else 2
    assert maps.shape == (len(files), side, side, 3)
    logits = found.logits(files)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), logits, atol=1e-4 * np.abs(maps).max())
    np.testing.assert_array_equal(found.heatmaps(files, ["cow", "cat"]), maps[..., [2, 0]])
    with pytest.raises(ValueError, match="no category 'cet'; the model has cat"):
        found.heatmaps(files, ["cet"])


def test_a_maximum_counts_at_the_first_place_where_it_stands():
    features = np.array([[1, 5], [3, 2], [3, 5], [0, 0]], np.float32).reshape(1, 2, 2, 2)
    given = heatmaps.places(features, "mean_max")
    places = given.reshape(4, 4)
    np.testing.assert_array_equal(places[:, :2], features.reshape(4, 2))
    np.testing.assert_array_equal(places[:, 2:], [[0, 20], [12, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose(places.mean(0), [1.75, 3, 3, 5])
    heads = Heads(np.array([[1, 0, 0, 2]], np.float32), np.array([-1], np.float32))
    np.testing.assert_array_equal(heatmaps.maps(given, heads).ravel(), [40, 2, 2, -1])
    np.testing.assert_array_equal(heatmaps.places(features, "max").reshape(4, 2), places[:, 2:])


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_max", "attention"])
def test_what_places_give_adds_up_to_the_embedding_of_every_pooling(pooling):
    pool = layers.Pool(pooling, 3)
    features = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    query = None
    if pool.query is not None:
        pool.query.set_value(jnp.array([0.5, -1.0, 2.0]))
        query = np.asarray(pool.query.get_value())
    given = heatmaps.places(features, pooling, query)
    np.testing.assert_allclose(given.mean((1, 2)), np.asarray(pool(jnp.asarray(features))), rtol=1e-5, atol=1e-6)


def test_views_are_the_mean_of_the_logits_of_images_changed_by_hand(models):
    found = models["tiny_mean_max"]
    rng = np.random.default_rng(0)
    square = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    wide = np.pad(square, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")  # 16 pixels times 0.04, rounded
    moved = [wide[:, t : t + 16, s : s + 16] for t, s in ((0, 1), (2, 1), (1, 0), (1, 2))]
    views = np.concatenate([square, *moved])
    mirrored = np.concatenate([square, square[:, :, ::-1]])
    for names, by_hand in ((["mirror"], mirrored), (["shift"], views)):
        expected = found.logits(by_hand).mean(0)
        np.testing.assert_allclose(found.looking(names).logits(square)[0], expected, rtol=1e-4)
    assert found.looking([]) is found
    np.testing.assert_array_equal(found.looking(["mirror"]).heatmaps(square), found.heatmaps(square))


def test_views_that_training_did_not_show_are_refused(models):
    found = models["tiny_mean"]
    plain = dataclasses.replace(found, augmented=dataclasses.replace(found.augmented, augment="none", flip=False))
    for view in ("mirror", "shift"):
        with pytest.raises(ValueError, match=f"view {view}: this model was trained"):
            plain.looking([view])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"for one image give image\[None\]"),
        (np.zeros((2, 8, 8, 3), np.float32), "image 0 is float32: give uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)], r"image 1 has shape \(8, 8\)"),
        (["missing.png"], "no such file"),
    ],
)
def test_what_is_no_list_of_images_is_refused(models, given, message):
    with pytest.raises(ValueError, match=message):
        models["tiny_mean"](given)
    with pytest.raises(ValueError, match=r"give a list of images: \['a\.png'\]"):
        model.check("a.png")


def test_runs_that_cannot_be_used_say_why(image_runs, tmp_path):
    _, runs = image_runs
    shutil.copytree(runs["tiny_mean"].folder, tmp_path / "run")
    (tmp_path / "run" / "decisions" / "decisions.json").unlink()
    with pytest.raises(FileNotFoundError, match="no thresholds and calibration yet: run the command that made it"):
        cftjax.load(tmp_path / "run")
    (tmp_path / "run" / "heads" / "final" / "heads.npz").unlink()
    with pytest.raises(FileNotFoundError, match="is not finished"):
        cftjax.load(tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    content = json.loads(config.read_text()) | {"preprocessing": None}
    del content["seal"]  # as of a run made before there were any
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was made from embeddings and has no backbone"):
        cftjax.load(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="is not a run"):
        cftjax.load(tmp_path)


def test_batches_are_few_doublings_of_one_image_a_device():
    assert [model.batch_size(n, 100) for n in (1, 8, 9, 60, 1000)] == [1, 1, 2, 8, 100]


SMALL_LITE = efficientnet.EfficientNetConfig(
    stages=(efficientnet.Stage(1, 3, 1, 1, 4), efficientnet.Stage(1, 5, 2, 2, 4)), stem=4, head=4, lite=True
)


@pytest.mark.parametrize(
    ("build", "shape", "size"),
    [
        (resnet.ResNet, resnet.ResNetConfig(widths=(4, 6), depths=(1, 1), small_stem=True), 64),
        (resnet.ResNet, resnet.ResNetConfig(widths=(4, 6), depths=(1, 1)), 80),
        (efficientnet.efficientnet, SMALL_LITE.original(), 34),  # then 17, for TensorFlow pads even and odd sizes apart
        (efficientnet.efficientnet, SMALL_LITE.retrained(), 32),
    ],
)
def test_the_receptive_field_of_a_place_has_its_middle_where_the_grid_says(build, shape, size):
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(shape, rngs=nnx.Rngs(0))), nnx.Not(nnx.RngState), ...)[:2]
    # All positive, so that no ReLU hides a part of the field.
    filled = jax.tree.map(lambda x: jnp.asarray(np.abs(rng.normal(0, 0.2, x.shape)), x.dtype), nnx.as_pure(state))
    network = nnx.merge(graphdef, filled, {})
    network.eval()
    between, first = network.grid(size)
    places = jax.eval_shape(network.features, jnp.zeros((1, size, size, 3))).shape[1]
    assert places == -(-size // between)
    place = places // 2
    pixels = jnp.asarray(rng.random((1, size, size, 3)), jnp.float32)
    seen = jax.jit(jax.grad(lambda x: network.features(x)[:, place, place].sum()))(pixels)
    rows = np.flatnonzero(np.abs(np.asarray(seen)).sum((0, 2, 3)))
    assert rows[0] > 0
    assert rows[-1] < size - 1
    assert (rows[0] + rows[-1]) / 2 == first + place * between


def test_a_heatmap_covers_of_the_image_what_its_places_see(models):
    found = models["tiny_mean_max"]  # a place every 4 pixels of 16, the first at the first pixel
    assert found.box(16, 16) == (-1.5, -1.5, 14.5, 14.5)
    assert found.box(32, 64) == (-6.0, -3.0, 58.0, 29.0)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "center_crop"])
def test_the_square_of_preprocessing_shows_what_its_box_says(resize):
    preprocessing = Preprocessing(24, mean=(0.0, 0.0, 0.0), resize=resize)
    for height, width in ((40, 100), (90, 30), (24, 24)):
        left, top, right, bottom = preprocessing.box(height, width)
        rows, columns = np.mgrid[:height, :width]
        # Smooth, so that a pixel of the square tells where in the image it comes from.
        image = np.stack([rows * 255 / height, columns * 255 / width, 0 * rows + 255], -1).astype(np.uint8)
        square = preprocessing.fit(image).astype(float)
        y = top + (np.arange(24) + 0.5) * (bottom - top) / 24
        x = left + (np.arange(24) + 0.5) * (right - left) / 24
        inside = np.zeros((24, 24), bool)
        # Away from the edges, where antialiasing sees less of the image.
        inside[np.ix_((y > height / 12) & (y < height * 11 / 12), (x > width / 12) & (x < width * 11 / 12))] = True
        expected = np.stack(np.broadcast_arrays(y[:, None] * 255 / height, x[None, :] * 255 / width), -1)
        np.testing.assert_allclose(square[..., :2][inside], expected[inside], atol=8)
        assert (square[..., 2][inside] > 250).all()
