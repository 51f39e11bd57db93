import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cftjax.data.reading import images

RAMP = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (3, 1))


def tiff(path, pixels, bits, photometric, **more):
    """A grey TIFF of one strip, little-endian, written by hand; pixels are bytes or an array of 16 bits."""
    data = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    height, width = RAMP.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 279: len(data)}
    tags |= {int(key[1:]): value for key, value in more.items()}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    body = struct.pack("<H", len(tags))
    for tag, value in sorted(tags.items()):
        body += struct.pack("<HHII", tag, 4, 1, value)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0) + data)


def png(path, values, significant=None):
    """A grey PNG of 16 bits, with sBIT or without."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))]
    if significant is not None:
        parts.append(chunk(b"sBIT", bytes([significant])))
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def grey(path):
    opened = images.open_image(path)
    np.testing.assert_array_equal(opened[..., 0], opened[..., 2])
    return opened[..., 0]


def packed(values, bits):
    """Samples of fewer than 8 bits, or of 12, side by side, rows padded to bytes."""
    rows = []
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row.tolist())
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_zero_is_white_where_a_tiff_says_so_at_every_depth(tmp_path, bits):
    greatest = 2**bits - 1
    levels = (RAMP.astype(np.uint32) * greatest // 255).astype(np.uint32)
    for photometric, values in ((1, levels), (0, greatest - levels)):
        data = values.astype("<u2") if bits == 16 else packed(values, bits)
        tiff(tmp_path / f"{photometric}.tif", data, bits, photometric)
    black, white = grey(tmp_path / "1.tif"), grey(tmp_path / "0.tif")
    np.testing.assert_array_equal(white, black)
    np.testing.assert_allclose(black, np.round(levels * (255 / greatest)), atol=0.5)


def test_twelve_bits_are_read_by_their_range(tmp_path):
    levels = (RAMP.astype(np.uint32) * 4095 // 255).astype(np.uint32)
    tiff(tmp_path / "packed.tif", packed(levels, 12), 12, 1)
    tiff(tmp_path / "said.tif", levels.astype("<u2"), 16, 1, t281=4095)
    tiff(tmp_path / "white.tif", (4095 - levels).astype("<u2"), 16, 0, t281=4095)
    for name in ("packed", "said", "white"):
        np.testing.assert_array_equal(grey(tmp_path / f"{name}.tif"), RAMP)


def test_a_greatest_value_that_is_no_range_is_not_taken_for_one(tmp_path):
    tiff(tmp_path / "a.tif", RAMP.astype("<u2") * 100, 16, 1, t281=25500)
    np.testing.assert_array_equal(grey(tmp_path / "a.tif"), np.round(RAMP * (100 / 257)).astype(np.uint8))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_significant_bits_of_a_png_are_read_whether_they_were_scaled_up_or_not(tmp_path, bits):
    levels = RAMP.astype(np.uint32) * (2**bits - 1) // 255
    right = np.round(levels * (255 / (2**bits - 1))).astype(np.uint8)
    png(tmp_path / "low.png", levels, bits)
    png(tmp_path / "high.png", levels << (16 - bits) | levels >> (2 * bits - 16), bits)
    np.testing.assert_array_equal(grey(tmp_path / "low.png"), right)
    np.testing.assert_allclose(grey(tmp_path / "high.png"), right, atol=1)
    # Scaled up, and dark: all samples would fit into the low bits.
    dark = np.arange(40, dtype=np.uint32)[None, :].repeat(3, axis=0) % (2**bits >> (16 - bits))
    png(tmp_path / "dark.png", dark << (16 - bits), bits)
    np.testing.assert_array_equal(grey(tmp_path / "dark.png"), np.round((dark << (16 - bits)) / 257).astype(np.uint8))


def test_a_png_without_significant_bits_has_sixteen(tmp_path):
    levels = RAMP.astype(np.uint32) * 16
    png(tmp_path / "a.png", levels)
    np.testing.assert_array_equal(grey(tmp_path / "a.png"), np.round(levels / 257).astype(np.uint8))


def test_a_pgm_of_more_than_eight_bits_is_read_by_its_range(tmp_path):
    levels = RAMP.astype(np.uint32) * 1023 // 255
    (tmp_path / "a.pgm").write_bytes(b"P5 40 3 1023\n" + levels.astype(">u2").tobytes())
    np.testing.assert_allclose(grey(tmp_path / "a.pgm"), levels * (255 / 1023), atol=0.51)


def test_formats_that_start_other_programs_are_no_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    Image.fromarray(RAMP).save(tmp_path / "b.png", "PCX")
    for name in "ab":
        with pytest.raises(images.ImageError, match="of no image format, such as AVIF"):
            images.open_image(tmp_path / f"{name}.png")
        with pytest.raises(images.ImageError, match="of no image format"):
            images.read_header(tmp_path / f"{name}.png")
