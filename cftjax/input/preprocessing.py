"""The way of an image into the network: one size, one range of numbers."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# (left, top, right, bottom) in pixels.
Box = tuple[float, float, float, float]


Channels = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Grey levels in [0, 255] to channels of mean 0 and standard deviation 1, done by the device as part of a program.

    Attributes:
        mean: of the channels, in [0, 1] units; subtracted.
        std: of the channels, in [0, 1] units; divided by.
    """

    mean: Channels
    std: Channels

    def __call__(self, pixels: Shaped[jax.Array, "*n h w 3"]) -> Float32[jax.Array, "*n h w 3"]:
        """What `Preprocessing.normalise` makes of them, but for rounding."""
        factor, term = (jnp.asarray(each.reshape((1,) * (pixels.ndim - 1) + (3,))) for each in self.factor_and_term())
        return pixels.astype(jnp.float32) * factor - term

    def factor_and_term(self) -> tuple[Float32[np.ndarray, " 3"], Float32[np.ndarray, " 3"]]:
        """Of each channel what grey levels are multiplied by, and what is then subtracted."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What an image goes through before the network, the same in training, evaluation and prediction.

    Attributes:
        image_size: height and width of the result, in pixels.
        mean: of the channels, in [0, 1] units; subtracted.
        std: of the channels, in [0, 1] units; divided by.
        resize: `squash` ignores the aspect, `letterbox` fits the whole image in and fills the rest with the mean
            colour, `center_crop` scales the shorter side and cuts off the ends of the longer.
        interpolation: of the resizing, which is antialiased.
    """

    image_size: int
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    resize: Literal["squash", "letterbox", "center_crop"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        """Refuse what would fail or mislead later."""
        if self.image_size < 2:
            raise ValueError(f"image_size is {self.image_size}: use 2 pixels or more.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} need three channels each, and std above 0.")
        if max(self.mean) > 1 or min(self.mean) < 0:
            raise ValueError(f"mean {self.mean} is not in [0, 1]: divide values of 0 to 255 by 255.")
        if self.resize not in ("squash", "letterbox", "center_crop") or self.interpolation not in RESAMPLING:
            raise ValueError(
                f"resize {self.resize!r} or interpolation {self.interpolation!r} is unknown: "
                "use squash, letterbox or center_crop, and bilinear or bicubic."
            )

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Preprocessing:
        """Read what `to_json` wrote."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(stored) != names:
            raise ValueError(f"preprocessing has the fields {sorted(stored)}, expected {sorted(names)}.")
        return cls(**{**stored, "mean": tuple(stored["mean"]), "std": tuple(stored["std"])})

    def to_json(self) -> dict[str, Any]:
        """A dict of numbers, strings and lists, to be stored in the run."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def apply(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "s s 3"]:
        """Resize and normalise one image."""
        return self.normalise(self.fit(image))

    def fit(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """Resize one image to a square; one that has the size already is returned as it is."""
        size, (height, width, _) = self.image_size, image.shape
        if height == width == size:
            return image
        resampling, opened = RESAMPLING[self.interpolation], Image.fromarray(image)
        if self.resize == "squash":
            return np.asarray(opened.resize((size, size), resampling))
        if self.resize == "center_crop":
            side = min(height, width)
            left, top = (width - side) / 2, (height - side) / 2
            return np.asarray(opened.resize((size, size), resampling, (left, top, left + side, top + side)))
        height, width = self.letterboxed(height, width)
        top, left = (size - height) // 2, (size - width) // 2
        result = np.full((size, size, 3), self.fill, np.uint8)
        result[top : top + height, left : left + width] = np.asarray(opened.resize((width, height), resampling))
        return result

    def box(self, height: int, width: int) -> Box:
        """What of an image of this size the square shows, in its pixels; beyond the image where there are borders."""
        size = self.image_size
        if self.resize == "squash" or height == width:
            return 0.0, 0.0, float(width), float(height)
        if self.resize == "center_crop":
            side = min(height, width)
            left, top = (width - side) / 2, (height - side) / 2
            return left, top, left + side, top + side
        inner_height, inner_width = self.letterboxed(height, width)
        top, left = (size - inner_height) // 2, (size - inner_width) // 2
        y, x = height / inner_height, width / inner_width  # pixels of the image per pixel of the square
        return -left * x, -top * y, (size - left) * x, (size - top) * y

    def letterboxed(self, height: int, width: int) -> tuple[int, int]:
        """Height and width within the square of an image of this size."""
        longest = max(height, width)
        return max(round(self.image_size * height / longest), 1), max(round(self.image_size * width / longest), 1)

    def crop(self, image: UInt8[np.ndarray, "h w 3"], box: Box) -> UInt8[np.ndarray, "s s 3"]:
        """Resize the part of an image within (left, top, right, bottom), in pixels, to the whole square."""
        square = (self.image_size, self.image_size)
        return np.asarray(Image.fromarray(image).resize(square, RESAMPLING[self.interpolation], box))

    def normalise(self, pixels: Shaped[np.ndarray, "*n h w 3"]) -> Float32[np.ndarray, "*n h w 3"]:
        """Grey levels in [0, 255] to channels of mean 0 and standard deviation 1."""
        width = pixels.shape[-2]
        # One long inner axis: NumPy is several times slower where it broadcasts over three channels.
        factor, term = (np.tile(each, width) for each in self.normalisation.factor_and_term())
        result = np.multiply(pixels.reshape(-1, width * 3), factor, dtype=np.float32)
        result -= term
        return result.reshape(pixels.shape)

    @property
    def normalisation(self) -> Normalisation:
        """The same as `normalise`, for the device: pixels of 8 bits are a quarter of what goes there."""
        return Normalisation(self.mean, self.std)

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, 0 to 255: of letterbox borders, and of images that could not be opened."""
        red, green, blue = (round(255 * mean) for mean in self.mean)
        return red, green, blue
