"""Grey of more than 8 bits: what the file says of its range, and whether 0 is white."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# TIFF's tags; SMaxSampleValue is what signed or wide samples have in its place.
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE, S_MAX_SAMPLE = 258, 262, 281, 341
WHITE_IS_ZERO = 0


class Deep(NamedTuple):
    """How grey of more than 8 bits is to be read.

    Attributes:
        bits: that are used of 16, by what the file says.
        white: whether 0 is white.
        aligned_high: whether fewer bits than 16 may have been scaled up to 16, as PNG wants it.
    """

    bits: int = 16
    white: bool = False
    aligned_high: bool = False


def of(image: Image.Image) -> Deep | None:
    """How the pixels of an opened, not yet decoded image are to be read; None where they have 8 bits."""
    # Pillow scales PGM of more than 8 bits to 16, and calls it 32.
    if image.mode == "I" and image.format == "PPM":
        return Deep()
    if not image.mode.startswith("I;16"):
        return None
    if image.format == "PNG":
        return Deep(significant_bits(image), aligned_high=True)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits = int(np.ravel(tags.get(BITS_PER_SAMPLE, 16))[0])
        greatest = int(np.ravel(tags.get(MAX_SAMPLE) or tags.get(S_MAX_SAMPLE) or 0)[0])
        # Only a range such as 0 to 1023 or 4095 is one; others write the greatest value that occurs.
        if greatest > 255 and (greatest + 1) & greatest == 0:
            bits = min(bits, greatest.bit_length())
        return Deep(bits, white=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO)
    return Deep()


def shares(image: Image.Image, deep: Deep) -> Float32[np.ndarray, "h w"]:
    """Grey levels in [0, 1]."""
    values = np.asarray(image).astype(np.float32)
    bits = deep.bits
    if deep.aligned_high and bits < 16 and not low_bits_used(np.asarray(image), bits):
        bits = 16
    share = np.clip(values / np.float32(2**bits - 1), 0, 1)
    return 1 - share if deep.white else share


def low_bits_used(values: np.ndarray, bits: int) -> bool:
    """Whether samples of fewer bits than 16 stand in the low ones, and were not scaled up as PNG wants it.

    Scaled up, the greatest is above 2**bits, or all are multiples of what they were multiplied by.
    """
    return int(values.max(initial=0)) < 2**bits and bool((values % 2 ** (16 - bits)).any())


def significant_bits(image: Image.Image) -> int:
    """What the sBIT of an opened PNG says of its grey; 16 without one."""
    stream = getattr(image, "fp", None)
    if stream is None:
        return 16
    place = stream.tell()
    said = [content[0] for kind, content in chunks(stream) if kind == b"sBIT" and content]
    stream.seek(place)
    return said[0] if said and 8 < said[0] < 16 else 16


def chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG up to its pixels."""
    stream.seek(len(PNG_SIGNATURE), os.SEEK_SET)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            return
        yield kind, stream.read(min(length, 2**16))
        stream.seek(max(length - 2**16, 0) + 4, os.SEEK_CUR)
