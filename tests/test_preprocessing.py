import json

import numpy as np
import pytest

from cftjax.input.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
HALF = (0.5, 0.5, 0.5)


def triangle(size_in, size_out, low=0.0, high=None):
    """The matrix of an antialiased bilinear resize of [low, high] to size_out pixels, from its definition."""
    high = size_in if high is None else high
    scale = (high - low) / size_out
    middle = low + (np.arange(size_out) + 0.5) * scale
    distance = np.abs(np.arange(size_in)[None, :] + 0.5 - middle[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def resized(image, rows, columns):
    return np.einsum("ah,hwc,bw->abc", rows, image.astype(float), columns)


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (12, 9), (31, 64)])
def test_squash_is_an_antialiased_bilinear_resize(shape):
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    expected = resized(image, triangle(shape[0], 24), triangle(shape[1], 24))
    np.testing.assert_allclose(Preprocessing(24).fit(image), expected, atol=1.5)


def test_center_crop_cuts_the_ends_of_the_longer_side():
    image = RNG.integers(0, 256, (30, 60, 3), np.uint8)
    expected = resized(image, triangle(30, 24), triangle(60, 24, 15, 45))
    np.testing.assert_allclose(Preprocessing(24, resize="center_crop").fit(image), expected, atol=1.5)
    np.testing.assert_allclose(
        Preprocessing(24, resize="center_crop").fit(np.ascontiguousarray(image.transpose(1, 0, 2))),
        expected.transpose(1, 0, 2),
        atol=1.5,
    )


@pytest.mark.parametrize(
    ("shape", "top", "left", "height", "width"), [((40, 20), 0, 6, 24, 12), ((10, 25), 7, 0, 10, 24)]
)
def test_letterbox_fits_the_whole_image_in_and_fills_the_rest_with_the_mean_colour(shape, top, left, height, width):
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    preprocessing = Preprocessing(24, mean=(0.2, 0.4, 0.6), resize="letterbox")
    fitted = preprocessing.fit(image)
    inside = np.zeros((24, 24), bool)
    inside[top : top + height, left : left + width] = True
    expected = resized(image, triangle(shape[0], height), triangle(shape[1], width)).reshape(-1, 3)
    np.testing.assert_allclose(fitted[inside], expected, atol=1.5)
    assert (fitted[~inside] == (51, 102, 153)).all()
    np.testing.assert_allclose(preprocessing.apply(image)[~inside], 0, atol=1e-6)


def test_an_image_of_the_right_size_is_left_alone():
    image = RNG.integers(0, 256, (24, 24, 3), np.uint8)
    for resize in ("squash", "letterbox", "center_crop"):
        np.testing.assert_array_equal(Preprocessing(24, resize=resize, interpolation="bicubic").fit(image), image)


def test_bicubic_is_sharper_than_bilinear():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 200
    bilinear, bicubic = (Preprocessing(32, interpolation=i).fit(edge) for i in ("bilinear", "bicubic"))
    assert bilinear.max() == 200
    assert bicubic.max() > 200


def test_normalising_subtracts_the_mean_and_divides_by_the_standard_deviation():
    pixels = RNG.integers(0, 256, (2, 5, 7, 3), np.uint8)
    preprocessing = Preprocessing(24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 0.2]
    assert preprocessing.normalise(pixels).dtype == np.float32
    np.testing.assert_allclose(preprocessing.normalise(pixels), expected, atol=1e-5)
    np.testing.assert_allclose(preprocessing.normalise(pixels[0].astype(np.float32)), expected[0], atol=1e-5)
    resized_first = preprocessing.apply(RNG.integers(0, 256, (9, 30, 3), np.uint8))
    assert resized_first.shape == (24, 24, 3)


def test_it_survives_json():
    preprocessing = Preprocessing(224, mean=(0.1, 0.2, 0.3), std=HALF, resize="letterbox", interpolation="bicubic")
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    with pytest.raises(ValueError, match="interpolation"):
        Preprocessing.from_json({"image_size": 24})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 0}, "use 2 pixels"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"mean": (123.0, 116.0, 103.0)}, "divide values"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"image_size": 24, "mean": HALF, "std": HALF, **wrong})
