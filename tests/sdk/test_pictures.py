from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import png, saved
from PIL import Image, ImageOps

from tokprune.pictures import load_picture

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (6, 9, 3)).astype(np.uint8)
RGB = Image.fromarray(PIXELS)


def as_transformers_does(data: bytes) -> np.ndarray:
    """Follows transformers.image_utils.load_image."""
    picture = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        picture = picture.convert("RGBA")  # or Pillow warns; the colours are the same
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_paths_bytes_and_pillow_images_read_the_same(tmp_path: Path, form: str) -> None:
    data = saved(RGB, format=form)
    path = tmp_path / "picture.any"  # names do not matter
    path.write_bytes(data)
    expected = as_transformers_does(data)
    for source in (path, str(path), data, Image.open(BytesIO(data))):
        picture = load_picture(source)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, expected)


def test_an_array_is_taken_as_it_is() -> None:
    assert load_picture(PIXELS) is PIXELS


@pytest.mark.parametrize(
    "array", [PIXELS[::-1], PIXELS[:, ::2], np.asfortranarray(PIXELS)], ids=["up", "step", "order"]
)
def test_an_array_in_another_memory_order_keeps_its_pixels(array: np.ndarray) -> None:
    picture = load_picture(array)
    assert picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pillow_images_of_any_8_bit_mode_become_rgb(mode: str) -> None:
    picture = RGB.convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(load_picture(picture), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "CMYK", "format": "JPEG"},
        {"mode": "L", "format": "JPEG"},
        {"mode": "P", "format": "PNG"},
        {"mode": "P", "format": "PNG", "transparency": 3},
        {"mode": "P", "format": "PNG", "transparency": bytes(range(100))},
        {"mode": "RGBA", "format": "PNG"},
        {"mode": "LA", "format": "PNG"},
        {"mode": "1", "format": "PNG"},
        {"mode": "RGBA", "format": "WEBP", "lossless": True},
    ],
    ids=str,
)
def test_files_of_any_mode_read_as_transformers_reads_them(options: dict[str, Any]) -> None:
    options = dict(options)
    data = saved(RGB.convert(options.pop("mode")), **options)
    np.testing.assert_array_equal(load_picture(data), as_transformers_does(data))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(RGB, format=form, exif=exif)
    expected = as_transformers_does(data)
    np.testing.assert_array_equal(load_picture(data), expected)
    opened = Image.open(BytesIO(data))
    np.testing.assert_array_equal(load_picture(opened), expected)
    np.testing.assert_array_equal(load_picture(ImageOps.exif_transpose(opened)), expected)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 255, 256, 1000, 32768, 65535]], np.uint16)
    for source in (Image.fromarray(values), saved(Image.fromarray(values), format="PNG")):
        picture = load_picture(source)
        np.testing.assert_array_equal(picture[0, :, 0], [0, 0, 1, 3, 128, 255])
        np.testing.assert_array_equal(picture[..., 0], picture[..., 2])


def test_16_bit_colour_is_scaled_alike() -> None:
    values = np.array([0, 255, 256, 1000, 32768, 65535], ">u2")
    rows = b"\0" + np.repeat(values, 3).tobytes()
    data = png(len(values), 1, depth=16, colour=2, pixels=rows)
    np.testing.assert_array_equal(load_picture(data)[0, :, 1], [0, 0, 1, 3, 128, 255])


def test_a_camera_jpeg_with_further_views_gives_its_first() -> None:
    data = saved(RGB, format="MPO", save_all=True, append_images=[RGB.rotate(90)])
    assert Image.open(BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(load_picture(data), as_transformers_does(data))
