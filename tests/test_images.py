import contextlib
import io
import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cftjax.data.reading import finding, images

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (48, 64, 3), np.uint8)


def smooth(height, width):
    y, x = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None, :]
    return np.stack([y + 0 * x, x + 0 * y, (y + x) / 2], axis=2).astype(np.uint8)


def encoded(kind, array=None):
    buffer = io.BytesIO()
    Image.fromarray(smooth(48, 64) if array is None else array).save(buffer, kind)
    return buffer.getvalue()


def test_a_colour_png_comes_back_as_it_is(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.open_image("a.png", root=tmp_path), COLOUR)


def test_grey_becomes_three_equal_channels(tmp_path):
    Image.fromarray(COLOUR[:, :, 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.open_image(tmp_path / "a.png"), np.repeat(COLOUR[:, :, :1], 3, axis=2))


def test_sixteen_bits_are_scaled_by_their_range_and_not_clipped(tmp_path):
    grey = np.array([[0, 128, 129, 257, 32896, 65278, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    opened = images.open_image(tmp_path / "a.png")
    np.testing.assert_array_equal(opened[0, :, 0], [0, 0, 1, 1, 128, 254, 255])
    np.testing.assert_array_equal(opened[..., 0], opened[..., 2])


def test_one_bit_and_palette_images_keep_their_colours(tmp_path):
    Image.fromarray(COLOUR[:, :, 0] > 127).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(images.open_image(tmp_path / "bit.png")[..., 1], 255 * (COLOUR[:, :, 0] > 127))
    few = (COLOUR // 128) * 255
    Image.fromarray(few).quantize(8).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(images.open_image(tmp_path / "palette.png"), few)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(tmp_path, mode):
    image = Image.new(mode, (3, 2), 0)
    image.putpixel((0, 0), (10, 20, 30, 255) if mode == "RGBA" else (10, 255))
    image.save(tmp_path / "a.png")
    opened = images.open_image(tmp_path / "a.png")
    assert opened[0, 0].tolist() == ([10, 20, 30] if mode == "RGBA" else [10, 10, 10])
    assert (opened[1] == 255).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    np.testing.assert_allclose(images.open_image(tmp_path / "a.jpg")[8, 8], [255, 0, 0], atol=6)


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(images.open_image(tmp_path / "a.png"), np.rot90(COLOUR, -1))


def test_a_jpeg_is_decoded_small_but_not_smaller_than_needed(tmp_path):
    Image.fromarray(smooth(400, 640)).save(tmp_path / "a.jpg", quality=95)
    full = images.open_image(tmp_path / "a.jpg")
    small = images.open_image(tmp_path / "a.jpg", min_size=90)
    assert full.shape == (400, 640, 3)
    assert small.shape == (100, 160, 3)
    np.testing.assert_allclose(small, full.reshape(100, 4, 160, 4, 3).mean(axis=(1, 3)), atol=4)
    with images.decoding_at(200):
        assert images.open_image(tmp_path / "a.jpg").shape == (200, 320, 3)
    assert images.open_image(tmp_path / "a.jpg").shape == (400, 640, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_named(tmp_path, kind):
    (tmp_path / "cut.img").write_bytes(encoded(kind, COLOUR)[:1500])
    with pytest.raises(images.ImageError, match=r"cut\.img: cannot be read .*truncated.* replace the file"):
        images.open_image("cut.img", root=tmp_path)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("a.jpg", "empty.jpg", "folder.jpg"):
        with pytest.raises(images.ImageError, match=name):
            images.open_image(name, root=tmp_path)
    with pytest.raises(images.ImageError, match=r"none\.jpg: no such file"):
        images.open_image("none.jpg", root=tmp_path)


def test_a_pipe_and_a_device_are_refused_before_they_are_read(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "/dev/zero", tmp_path):
        for reading in (images.open_image, images.read_header):
            with pytest.raises(images.ImageError, match="is no file, but a folder, a pipe or a device; take it out"):
                reading(path)
    os.mkfifo(tmp_path / "scan")
    assert list(finding.in_folder(tmp_path)) == [tmp_path / "a.png"]


def test_what_is_empty_or_of_no_format_says_so(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, reason in (("a.jpg", r"\(it is of no image format, such as .*JPEG"), ("empty.jpg", r"\(it is empty\)")):
        for read in (images.open_image, images.read_header):
            with pytest.raises(images.ImageError, match=reason):
                read(name, root=tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_header_tells_the_size_of_the_upright_image_and_its_mode(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR[:, :, 0]).save(tmp_path / "a", kind, exif=exif)
    opened = images.open_image(tmp_path / "a")
    assert images.read_header("a", root=tmp_path) == (opened.shape[1], opened.shape[0], "L")


def test_a_header_is_read_without_the_pixels(tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[:100])
    assert images.read_header(tmp_path / "cut.png") == (64, 48, "RGB")
    with pytest.raises(images.ImageError, match="outside the folder"):
        images.read_header("../cut.png", root=tmp_path / "root")


@pytest.mark.parametrize("path", ["../a.png", "x/../../a.png", "/etc/hostname"])
def test_a_path_outside_of_the_root_is_refused(tmp_path, path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with pytest.raises(images.ImageError, match="outside the folder"):
        images.open_image(path, root=tmp_path / "root")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.fromarray(COLOUR).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48)
    assert images.open_image(tmp_path / "large.png").shape == (48, 64, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    with pytest.raises(images.ImageError, match=r"large\.png"):
        images.open_image(tmp_path / "large.png")


def test_pixels_without_an_agreed_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(images.ImageError, match="no agreed range"):
        images.open_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_give_pixels_or_an_image_error(tmp_path_factory, kind):
    sound = encoded(kind)
    file = tmp_path_factory.mktemp("fuzz") / "a"

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255)), max_size=6), st.integers(0, 200))
    def check(changes, cut):
        damaged = bytearray(sound)
        for place, value in changes:
            damaged[place] = value
        file.write_bytes(damaged[: len(damaged) - cut])
        with contextlib.suppress(images.ImageError):
            assert len(images.read_header(file)) == 3
        with contextlib.suppress(images.ImageError):
            opened = images.open_image(file)
            assert opened.dtype == np.uint8
            assert opened.shape[2] == 3

    check()


def dicom(file, pixels, **tags):
    pydicom = pytest.importorskip("pydicom")
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    header.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.PixelData = pixels.tobytes()
    header.save_as(file, enforce_file_format=True)


VALUES = np.array([[0, 1000, 2000, 4095]], np.uint16)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, VALUES / 4095 * 255),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - VALUES / 4095 * 255),
        ({"WindowCenter": 1000.5, "WindowWidth": 2001}, [[0, 127.5, 255, 255]]),
        # The window counts in rescaled values: 0, 500, 1000, 2047.5, less 100.
        (
            {"WindowCenter": 400.5, "WindowWidth": 1001, "RescaleSlope": 0.5, "RescaleIntercept": -100},
            [[0, 127.5, 255, 255]],
        ),
        ({"WindowCenter": 1000, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"}, [[0, 127.5, 255, 255]]),
        (
            {"WindowCenter": 1000, "WindowWidth": 2000, "VOILUTFunction": "SIGMOID"},
            255 / (1 + np.exp(-4 * (VALUES.astype(float) - 1000) / 2000)),
        ),
    ],
)
def test_dicom_is_windowed_by_its_tags(tmp_path, tags, expected):
    dicom(tmp_path / "a.dcm", VALUES, **tags)
    opened = images.open_image(tmp_path / "a.dcm")
    assert opened.shape == (1, 4, 3)
    np.testing.assert_allclose(opened[..., 0], expected, atol=1)


def test_the_header_of_a_dicom_file_is_read(tmp_path):
    dicom(tmp_path / "a.dcm", VALUES)
    assert images.read_header(tmp_path / "a.dcm") == (4, 1, "MONOCHROME2")


def test_dicom_is_known_by_its_first_bytes_where_the_name_says_nothing(tmp_path):
    dicom(tmp_path / "I0000001", VALUES)
    assert images.open_image(tmp_path / "I0000001").shape == (1, 4, 3)


def test_dicom_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"a\.dcm: DICOM needs pydicom; run pip install"):
        images.open_image(tmp_path / "a.dcm")
