import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cftjax.input import augment

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 20, 20, 3), np.uint8)
MIDDLE = np.full((3, augment.num_draws(2)), 0.5)


def draws(**columns):
    row = MIDDLE.copy()
    for name, value in columns.items():
        row[:, getattr(augment, name)] = value
    return row


def ramp(size):
    """Grey levels that grow along both axes, so that every move shows in the levels."""
    y, x = np.mgrid[:size, :size]
    return np.stack([y, x, (y + x) / 2], axis=2).astype(np.uint8)[None] * 3


def test_half_of_the_images_are_mirrored():
    images = IMAGES.copy()
    augment.flip(images, draws(FLIP=np.array([0.1, 0.5, 0.49])))
    np.testing.assert_array_equal(images[0], IMAGES[0, :, ::-1])
    np.testing.assert_array_equal(images[1], IMAGES[1])
    np.testing.assert_array_equal(images[2], IMAGES[2, :, ::-1])


def test_middling_draws_change_nothing():
    np.testing.assert_allclose(augment.shift(IMAGES, draws()), IMAGES, atol=1e-3)


def test_an_image_is_moved_by_up_to_a_share_of_its_side_and_its_border_continued():
    moved = augment.shift(ramp(50), draws(PLACE_Y=1.0, PLACE_X=0.0)[:1])
    offset = augment.SHIFT * 50
    grid = np.arange(50)
    np.testing.assert_allclose(moved[0, :, 0, 0], 3 * np.minimum(grid + offset, 49), atol=1e-3)
    np.testing.assert_allclose(moved[0, 0, :, 1], 3 * np.maximum(grid - offset, 0), atol=1e-3)


def test_an_image_is_enlarged_about_its_middle():
    larger = augment.shift(ramp(51), draws(SIZE=1.0)[:1])
    expected = 25 + (np.arange(51) - 25) / augment.ZOOM
    np.testing.assert_allclose(larger[0, :, 0, 0], 3 * expected, atol=1e-3)
    np.testing.assert_allclose(larger[0, 0, :, 1], 3 * expected, atol=1e-3)


def test_brightness_scales_and_contrast_keeps_the_mean():
    image = np.clip(IMAGES, 60, 150)
    brighter = augment.shift(image, draws(BRIGHTNESS=1.0))
    np.testing.assert_allclose(brighter, image * augment.LIGHT, atol=1e-2)
    steeper = augment.shift(image, draws(CONTRAST=1.0))
    np.testing.assert_allclose(steeper.mean(axis=(1, 2, 3)), image.mean(axis=(1, 2, 3)), atol=1e-2)
    np.testing.assert_allclose(steeper.std(axis=(1, 2, 3)), image.std(axis=(1, 2, 3)) * augment.LIGHT, rtol=1e-3)


def test_levels_stay_within_their_range():
    changed = augment.shift(IMAGES, RNG.random(MIDDLE.shape))
    assert changed.dtype == np.float32
    assert 0 <= changed.min() <= changed.max() <= 255


def test_an_image_is_augmented_alike_alone_and_in_a_batch():
    row = RNG.random(MIDDLE.shape)
    np.testing.assert_array_equal(augment.shift(IMAGES, row)[1:2], augment.shift(IMAGES[1:2], row[1:2]))


def test_a_square_is_blotted_out_and_cut_off_at_the_border():
    images = np.ones((3, 20, 20, 3), np.float32)
    chosen = draws(CUTOUT_Y=np.array([0.5, 0.0, 1.0]), CUTOUT_X=np.array([0.5, 0.0, 0.5]))
    cut = augment.cut_out(jnp.asarray(images), augment.squares(20, chosen, 0.5))
    expected = np.ones((3, 20, 20, 3), np.float32)
    expected[0, 5:15, 5:15] = expected[1, :5, :5] = expected[2, 15:, 5:15] = 0
    np.testing.assert_array_equal(cut, expected)


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (50, 50)])
def test_crops_lie_within_the_image_and_keep_enough_of_it(size):
    height, width = size
    for row in RNG.random((200, augment.num_draws(0))):
        left, top, right, bottom = augment.crop_box(height, width, row, min_area=0.2)
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
    whole = draws(SIZE=1.0)[0]
    np.testing.assert_allclose(augment.crop_box(50, 50, whole, min_area=0.2), (0, 0, 50, 50))
    quarter = draws(SIZE=0.0)[0]
    np.testing.assert_allclose(augment.crop_box(50, 50, quarter, min_area=0.25), (12.5, 12.5, 37.5, 37.5))


def operation(index, image, magnitude, direction):
    """RandAugment with one operation, chosen by its index."""
    row = np.full(augment.num_draws(1), 0.5)
    row[augment.FIRST_OPERATION :] = (index + 0.5) / len(augment.OPERATIONS), direction
    return np.asarray(augment.randaugment(Image.fromarray(image), row, float(magnitude), (9, 8, 7)))


LEVEL = RNG.integers(40, 160, (60, 60, 3), np.uint8)
SMOOTH = np.broadcast_to(np.linspace(0, 255, 100)[None, :, None], (100, 100, 3)).astype(np.uint8)


def test_every_operation_changes_the_image_except_identity():
    for index in range(len(augment.OPERATIONS)):
        same = np.array_equal(operation(index, LEVEL, 20, 0.9), LEVEL)
        assert same == (index == 0), index


@pytest.mark.parametrize("index", [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
def test_magnitude_zero_leaves_the_image_alone(index):
    np.testing.assert_array_equal(operation(index, LEVEL, 0, 0.9), LEVEL)


def test_brightness_and_solarize_follow_their_definition():
    darker, brighter = operation(8, LEVEL, 15, 0.1), operation(8, LEVEL, 15, 0.9)
    np.testing.assert_allclose(darker, LEVEL * 0.55, atol=1)
    np.testing.assert_allclose(brighter, np.minimum(LEVEL * 1.45, 255), atol=1)
    np.testing.assert_array_equal(operation(4, LEVEL, 15, 0.5), np.where(LEVEL >= 128, 255 - LEVEL, LEVEL))


def test_translation_and_shear_move_by_their_share_and_fill_what_they_uncover():
    moved = operation(12, SMOOTH, 20, 0.9)  # 0.45 * 20 / 30 of the width: 30 pixels
    np.testing.assert_allclose(moved[:, :69], SMOOTH[:, 30:99], atol=1)
    assert (moved[:, 71:] == (9, 8, 7)).all()
    sheared = operation(10, SMOOTH, 10, 0.9)  # a row moves by 0.1 of its distance from the middle row
    np.testing.assert_allclose(sheared[20, 10:90], SMOOTH[20, 7:87], atol=2)
    np.testing.assert_allclose(sheared[80, 10:90], SMOOTH[80, 13:93], atol=2)


def test_as_many_operations_are_applied_as_there_are_draws_for():
    row = np.full(augment.num_draws(2), 0.9)
    row[augment.FIRST_OPERATION :: 2] = (4.5 / len(augment.OPERATIONS), 4.5 / len(augment.OPERATIONS))
    twice = np.asarray(augment.randaugment(Image.fromarray(LEVEL), row, 30.0, (0, 0, 0)))
    np.testing.assert_array_equal(twice, LEVEL)  # solarizing everything, twice
