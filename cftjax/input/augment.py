"""Random changes of training images.

All randomness of an image is one row of uniform draws, so that every change is a plain function of image and row: the
same whichever thread or host does it, and the same after a resume.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8
from PIL import Image, ImageEnhance, ImageOps

from cftjax import types
from cftjax.input.preprocessing import Box

# Columns of the draws. Those of RandAugment come last: one for the operation and one for its direction, per operation.
FLIP, CUTOUT_Y, CUTOUT_X, SIZE, SHAPE, PLACE_Y, PLACE_X, BRIGHTNESS, CONTRAST, FIRST_OPERATION = range(10)

# Ranges of `shift`: share of the side, factor of the size, factors of the grey levels.
SHIFT, ZOOM, LIGHT = 0.08, 1.15, 1.25
# Greatest width-to-height factor of `crop_box`, as is usual for ImageNet.
ASPECT = 4 / 3
# RandAugment's scale of magnitudes ends here.
MAX_MAGNITUDE = 30


def num_draws(operations: int) -> int:
    """Uniform draws per image when RandAugment applies `operations` operations."""
    return FIRST_OPERATION + 2 * operations


def flip(images: UInt8[np.ndarray, "n h w 3"], draws: Float[np.ndarray, "n r"]) -> None:
    """Mirror half of the images left to right, in place."""
    mirrored = draws[:, FLIP] < 0.5
    images[mirrored] = images[mirrored, :, ::-1]


def shift(images: UInt8[np.ndarray, "n h w 3"], draws: Float[np.ndarray, "n r"]) -> Float32[np.ndarray, "n h w 3"]:
    """Move, enlarge or shrink, brighten or darken every image a little; borders are continued outwards.

    Returns:
        Grey levels in [0, 255], not rounded.
    """
    n, height, width, _ = images.shape
    signed = 2 * draws.astype(np.float32) - 1
    zoom = ZOOM ** -signed[:, SIZE]
    top, y = neighbours(height, zoom, SHIFT * height * signed[:, PLACE_Y])
    left, x = neighbours(width, zoom, SHIFT * width * signed[:, PLACE_X])
    image = np.arange(n)[:, None]
    # Rows first: whole rows are copied, and the columns are then taken from half as many numbers.
    rows = images.reshape(n, height, width * 3)
    shifted = lerp(rows[image, top], rows[image, top + 1], y[:, :, None])
    columns = (image * height + np.arange(height)[None, :])[:, :, None] * width + left[:, None, :]
    pixels = shifted.reshape(-1, 3)
    shifted = lerp(pixels.take(columns, axis=0), pixels.take(columns + 1, axis=0), x[:, None, :, None])
    contrast = LIGHT ** signed[:, CONTRAST, None, None, None]
    brightness = LIGHT ** signed[:, BRIGHTNESS, None, None, None]
    middle = shifted.mean(axis=(1, 2, 3), keepdims=True)
    shifted *= contrast * brightness
    shifted += middle * (1 - contrast) * brightness
    return np.clip(shifted, 0, 255, out=shifted)


def neighbours(
    size: int, zoom: Float32[np.ndarray, " n"], offset: Float32[np.ndarray, " n"]
) -> tuple[np.ndarray, Float32[np.ndarray, "n size"]]:
    """For every output pixel of one axis the lower of the two input pixels that it lies between, and how far along.

    Args:
        size: pixels of the axis, at least 2.
        zoom: input pixels per output pixel.
        offset: input pixels that the middle is moved by.
    """
    middle = np.float32((size - 1) / 2)
    position = (np.arange(size, dtype=np.float32)[None, :] - middle) * zoom[:, None] + (middle + offset)[:, None]
    position = np.clip(position, 0, size - 1)
    lower = np.minimum(position.astype(np.intp), size - 2)
    return lower, position - lower.astype(np.float32)


def lerp(low: np.ndarray, high: np.ndarray, share: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*out"]:
    """`low` where the share is 0, `high` where it is 1."""
    result = high.astype(np.float32)
    result -= low
    result *= share
    result += low
    return result


def squares(size: int, draws: Float[np.ndarray, "n r"], side: float) -> Int32[np.ndarray, "n 4"]:
    """Of every image the square that `cut_out` hides: (top, bottom, left, right) in pixels.

    Args:
        size: of the images, in pixels.
        draws: of the middle, which may be any pixel: squares at the border are cut off.
        side: share of the image's side.
    """
    middles = size * draws[:, [CUTOUT_Y, CUTOUT_Y, CUTOUT_X, CUTOUT_X]]
    half = np.array([-1, 1, -1, 1]) * side * size / 2
    return np.clip(np.rint(middles + half), 0, size).astype(np.int32)


def cut_out(images: Float32[jax.Array, "n h w 3"], squares: Int32[types.Array, "n 4"]) -> Float32[jax.Array, "n h w 3"]:
    """Set a square to 0, the mean colour of normalised images (DeVries & Taylor, 2017); done by the device.

    Args:
        images: normalised.
        squares: (top, bottom, left, right) in pixels.
    """
    _, height, width, _ = images.shape
    top, bottom, left, right = (jnp.asarray(squares)[:, i].reshape(-1, 1, 1, 1) for i in range(4))
    y, x = jnp.arange(height).reshape(1, -1, 1, 1), jnp.arange(width).reshape(1, 1, -1, 1)
    return jnp.where((y >= top) & (y < bottom) & (x >= left) & (x < right), 0.0, images)


def crop_box(height: int, width: int, draws: Float[np.ndarray, " r"], min_area: float) -> Box:
    """A random part of an image, to be resized to the whole (Szegedy et al., 2015).

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        draws: of area, shape and place.
        min_area: the least share of the area that is kept.

    Returns:
        (left, top, right, bottom) in pixels.
    """
    area = (min_area + (1 - min_area) * draws[SIZE]) * height * width
    aspect = ASPECT ** (2 * draws[SHAPE] - 1)
    # A part too wide or too high for the image is cut to it, which keeps its place and nearly its area.
    part_width, part_height = min((area * aspect) ** 0.5, width), min((area / aspect) ** 0.5, height)
    left, top = draws[PLACE_X] * (width - part_width), draws[PLACE_Y] * (height - part_height)
    return left, top, left + part_width, top + part_height


def randaugment(
    image: Image.Image, draws: Float[np.ndarray, " r"], magnitude: float, fill: tuple[int, int, int]
) -> Image.Image:
    """Apply operations drawn at random, all at one strength (Cubuk et al., 2019, section 3).

    Args:
        image: RGB.
        draws: two per operation, from column `FIRST_OPERATION` on.
        magnitude: 0 changes nothing much, 30 most.
        fill: colour of what was outside of the image.
    """
    strength = magnitude / MAX_MAGNITUDE
    for choice, direction in draws[FIRST_OPERATION:].reshape(-1, 2):
        operation = OPERATIONS[int(choice * len(OPERATIONS))]
        image = operation(image, strength, -1 if direction < 0.5 else 1, fill)
    return image


def sheared(image: Image.Image, fill: tuple[int, int, int], *, x: float = 0.0, y: float = 0.0) -> Image.Image:
    """Slanted about the middle: rows move by `x`, columns by `y`, pixels per pixel of distance."""
    data = (1, x, -x * image.height / 2, y, 1, -y * image.width / 2)
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=fill)


def moved(image: Image.Image, fill: tuple[int, int, int], *, x: float = 0.0, y: float = 0.0) -> Image.Image:
    """Moved left by `x` and up by `y`, in shares of the side."""
    data = (1, 0, x * image.width, 0, 1, y * image.height)
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=fill)


# Each takes image, strength in [0, 1], direction and fill colour. Ranges: AutoAugment (Cubuk et al., 2018), table 6.
OPERATIONS = (
    lambda image, strength, sign, fill: image,
    lambda image, strength, sign, fill: ImageOps.autocontrast(image),
    lambda image, strength, sign, fill: ImageOps.equalize(image),
    lambda image, strength, sign, fill: image.rotate(30 * strength * sign, Image.Resampling.BILINEAR, fillcolor=fill),
    lambda image, strength, sign, fill: ImageOps.solarize(image, round(256 * (1 - strength))),
    lambda image, strength, sign, fill: ImageOps.posterize(image, 8 - round(4 * strength)),
    lambda image, strength, sign, fill: ImageEnhance.Color(image).enhance(1 + 0.9 * strength * sign),
    lambda image, strength, sign, fill: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength * sign),
    lambda image, strength, sign, fill: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength * sign),
    lambda image, strength, sign, fill: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength * sign),
    lambda image, strength, sign, fill: sheared(image, fill, x=0.3 * strength * sign),
    lambda image, strength, sign, fill: sheared(image, fill, y=0.3 * strength * sign),
    lambda image, strength, sign, fill: moved(image, fill, x=0.45 * strength * sign),
    lambda image, strength, sign, fill: moved(image, fill, y=0.45 * strength * sign),
)
