"""Image files to RGB bytes: whatever bit depth, palette, colour space or rotation they come in."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cftjax import extras
from cftjax.data.reading import depths

DICOM_SUFFIXES = (".dcm", ".dicom")
# A DICOM file has 128 bytes of anything, then these four.
DICOM_PREAMBLE, DICOM_MAGIC = 128, b"DICM"

# Of the formats that Pillow knows those that images come in: others start programs, or are no pictures.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# EXIF's orientations whose rows are the upright image's columns.
TURNED = (5, 6, 7, 8)

_min_size: contextvars.ContextVar[int | None] = contextvars.ContextVar("min_size", default=None)


class ImageError(ValueError):
    """An image file that cannot be used; the message names the file and the mend."""


def stopped_by(error: ImageError) -> ImageError:
    """The error of an image that stops a run, which tells how to go on without the image."""
    return ImageError(f"{error} To leave out every image that cannot be opened: --data.on-bad-image skip.")


@contextlib.contextmanager
def decoding_at(min_size: int) -> Iterator[None]:
    """Within it and its thread, `open_image` decodes at reduced scale where both sides keep `min_size` pixels.

    Only the pipeline knows how large an image has to be, and only the records know how to open it: this spares every
    source of records to pass the size on.
    """
    token = _min_size.set(min_size)
    try:
        yield
    finally:
        _min_size.reset(token)


def open_image(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, min_size: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Open one image as 8-bit RGB, turned upright.

    Grey becomes three equal channels; more than 8 bits are scaled by the range that the file says; where a file says
    that 0 is white, it is; transparent pixels show white; of an animation the first frame is taken.

    Args:
        path: of one of `FORMATS`, or DICOM with the extra `dicom`.
        root: the folder that a relative `path` starts from and must not leave.
        min_size: decode JPEG at 1/2, 1/4 or 1/8 scale where both sides keep at least this many pixels; by default
            what `decoding_at` says.

    Raises:
        ImageError: no such file, not an image, a damaged one, one of too many pixels, or a path outside `root`.
        ImportError: a DICOM file without pydicom.
    """
    file = Path(path) if root is None else inside(path, root)
    min_size = _min_size.get() if min_size is None else min_size
    with readable(file):
        if is_dicom(file):
            return read_dicom(file)
        with Image.open(file, formats=FORMATS) as image:
            refuse_bomb(file, image.width, image.height)
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            return to_rgb(file, image)


class Header(NamedTuple):
    """What an image file says of itself before its pixels.

    Attributes:
        width: pixels, once turned upright.
        height: pixels.
        mode: Pillow's name of the kind of pixels, such as L or RGB; for DICOM its photometric interpretation.
    """

    width: int
    height: int
    mode: str


def read_header(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Header:
    """Size and kind of one image, without decoding it.

    Args:
        path: as `open_image` takes it.
        root: the folder that a relative `path` starts from and must not leave.

    Raises:
        ImageError: no such file, not an image, or a path outside `root`.
        ImportError: a DICOM file without pydicom.
    """
    file = Path(path) if root is None else inside(path, root)
    with readable(file):
        if is_dicom(file):
            header = pydicom_for(file)[0].dcmread(file, stop_before_pixels=True)
            return Header(int(header.Columns), int(header.Rows), str(header.PhotometricInterpretation))
        with Image.open(file, formats=FORMATS) as image:
            # Pillow would decode the whole PNG to look for orientation behind the pixels.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            turned = exif.get(ExifTags.Base.Orientation, 1) in TURNED
            width, height = reversed(image.size) if turned else image.size
            return Header(width, height, image.mode)


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Whatever is raised while a file is read becomes an `ImageError` that names the file and the mend."""
    # Reading a pipe or a device might never end.
    if file.exists() and not file.is_file():
        raise ImageError(f"{file}: is no file, but a folder, a pipe or a device; take it out.")
    try:
        yield
    except (ImageError, ImportError):
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{file}: no such file; copy it there, or take its row out of the table.") from error
    # Damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error, KeyError, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = (
                f"it is of no image format, such as {', '.join(FORMATS)}" if os.path.getsize(file) else "it is empty"
            )
        raise ImageError(f"{file}: cannot be read as an image ({reason}); replace the file or take it out.") from error


def inside(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> Path:
    """`path` under `root`, refused where it leads outside.

    The check is of the text alone, so that folders linked into `root` remain usable.
    """
    joined = os.path.normpath(os.path.join(root, path))
    if not Path(joined).is_relative_to(os.path.normpath(root)):
        raise ImageError(f"{os.fspath(path)}: leads outside the folder {os.fspath(root)}; use a path below it.")
    return Path(joined)


def refuse_bomb(file: Path, width: int, height: int) -> None:
    """Refuse a small file that would fill the memory; Pillow itself only warns, up to twice the limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(f"{file}: {width} x {height} pixels are more than {limit}; save a smaller copy of the image.")


def to_rgb(file: Path, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of an opened image as 8-bit RGB.

    Args:
        file: for messages.
        image: opened by Pillow, not yet decoded.
    """
    # Before it is turned: what is turned no longer knows its file.
    deep = depths.of(image)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if deep is not None:
        return grey_to_rgb(255 * depths.shares(image, deep))
    if image.mode in ("I", "F"):
        raise ImageError(f"{file}: its 32-bit pixels have no agreed range; save it with 8 or 16 bits.")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def grey_to_rgb(grey: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Grey levels in [0, 255], rounded, in three equal channels."""
    return np.repeat((grey + 0.5).astype(np.uint8)[:, :, None], 3, axis=2)


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its name or, where the name says nothing, by its first bytes."""
    if file.suffix:
        return file.suffix.lower() in DICOM_SUFFIXES
    with file.open("rb") as stream:
        stream.seek(DICOM_PREAMBLE)
        return stream.read(len(DICOM_MAGIC)) == DICOM_MAGIC


def read_dicom(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """One DICOM image: rescaled, windowed as its tags say, MONOCHROME1 inverted so that dense stays bright."""
    pydicom, decoders = pydicom_for(file)
    header = pydicom.dcmread(file)
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise ImageError(f"{file}: holds {header.NumberOfFrames} frames; export the one to use as an image of its own.")
    refuse_bomb(file, int(header.Columns), int(header.Rows))
    # Colour comes back as RGB, also where it is stored as luma and chroma.
    pixels = decoders.pixel_array(header)
    if pixels.ndim == 3:
        return (pixels * (255 / (2 ** int(header.BitsStored) - 1)) + 0.5).astype(np.uint8)
    if header.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"{file}: {header.PhotometricInterpretation} is not supported; export it as grey or RGB.")
    values = np.asarray(decoders.apply_modality_lut(pixels, header), np.float32)
    share = window_share(values, header)
    if share is None:
        low, high = stored_range(header, decoders)
        share = (values - low) / (high - low)
    if header.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return grey_to_rgb(255 * np.clip(share, 0, 1))


def pydicom_for(file: Path) -> tuple[Any, Any]:
    """The modules that read DICOM, or ImportError saying what to install for this file."""
    try:
        return importlib.import_module("pydicom"), importlib.import_module("pydicom.pixels")
    except ImportError as error:
        raise ImportError(f"{file}: DICOM needs pydicom; run {extras.install('dicom')}.") from error


def window_share(values: Float[np.ndarray, "h w"], header: Any) -> Float[np.ndarray, "h w"] | None:
    """Where values lie in the first window of the header, 0 to 1 within it; None without a window.

    DICOM PS3.3, C.11.2.1.2: LINEAR (the default), LINEAR_EXACT and SIGMOID.
    """
    centre, width = (np.atleast_1d(header.get(tag) or []) for tag in ("WindowCenter", "WindowWidth"))
    if not len(centre) or not len(width):
        return None
    centre, width = float(centre[0]), float(width[0])
    kind = header.get("VOILUTFunction") or "LINEAR"
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / max(width, 1e-6)))
    if kind == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return (values - centre) / max(width, 1e-6) + 0.5


def stored_range(header: Any, decoders: Any) -> tuple[float, float]:
    """The values that the least and the greatest storable pixel stand for."""
    bits = int(header.BitsStored)
    low = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    ends = decoders.apply_modality_lut(np.array([low, low + 2**bits - 1]), header)
    return float(ends.min()), float(ends.max())
