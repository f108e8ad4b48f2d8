"""Pixels of ROS 2 messages as RGB."""

from array import array
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from ros_pictures import raw
from tokprune_ros.images import decoded, rgb_of

import tokprune


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("rgb8", [10, 20, 30]),
        ("bgr8", [30, 20, 10]),
        ("rgba8", [10, 20, 30, 99]),
        ("bgra8", [30, 20, 10, 99]),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("is_bigendian", [0, 1])
def test_colours_stand_in_their_places_whatever_the_order_and_the_padding(
    encoding: str, data: list[int], padding: int, is_bigendian: int
) -> None:
    rows = [bytes(data) * 2 + b"\xee" * padding, bytes(len(data)) * 2 + b"\xee" * padding]
    message = raw(encoding, 2, 2, b"".join(rows), 2 * len(data) + padding)
    message.is_bigendian = is_bigendian
    picture = rgb_of(message)
    assert picture.tolist() == [[[10, 20, 30]] * 2, [[0, 0, 0]] * 2]
    assert picture.flags.c_contiguous


def test_grey_becomes_equal_colours() -> None:
    assert rgb_of(raw("mono8", 2, 1, b"\x07\xff")).tolist() == [[[7] * 3, [255] * 3]]


# ITU-R BT.601, limited range, rounded: luma, blue and red difference of pure colours.
YUV = {
    (255, 0, 0): (81, 90, 240),
    (0, 255, 0): (145, 54, 34),
    (0, 0, 255): (41, 240, 110),
    (255, 255, 255): (235, 128, 128),
    (0, 0, 0): (16, 128, 128),
}


@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2"])
@pytest.mark.parametrize("colour", YUV)
def test_yuv_becomes_the_colour_that_it_encodes(
    encoding: str, colour: tuple[int, int, int]
) -> None:
    y, u, v = YUV[colour]
    pair = [u, y, v, y] if encoding in ("uyvy", "yuv422") else [y, u, y, v]
    picture = rgb_of(raw(encoding, 4, 1, bytes(pair * 2) + b"\xee" * 3, 11))
    assert np.abs(picture.astype(int) - colour).max() <= 2


def test_two_pixels_share_their_colour_and_have_their_own_light() -> None:
    picture = rgb_of(raw("yuyv", 2, 1, bytes([16, 128, 235, 128])))
    assert picture.tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (raw("mono16", 2, 1, bytes(4), 4), "encoding 'mono16', expected one of rgb8"),
        (raw("bayer_rggb8", 2, 1, bytes(2), 2), "encoding 'bayer_rggb8'"),
        (raw("16UC1", 2, 1, bytes(4), 4), "encoding '16UC1'"),
        (raw("rgb8", 0, 1, b""), "0 x 1 pixels"),
        (raw("rgb8", 100_000, 100_000, b""), "100000 x 100000 pixels"),
        (raw("rgb8", 2, 2, bytes(10), 5), "rows of 5 bytes, expected 6"),
        (raw("rgb8", 2, 2, bytes(11), 6), "11 bytes, expected 2 rows of 6"),
        (raw("rgb8", 2, 2, b"", 6), "0 bytes, expected 2 rows of 6"),
        (raw("rgb8", 2, 2, bytes(13), 6), "13 bytes, expected 2 rows of 6"),
        (raw("yuyv", 3, 1, bytes(6)), "3 pixels a row, expected an even number"),
    ],
)
def test_what_would_be_a_guess_is_refused(message: Any, why: str) -> None:
    with pytest.raises(tokprune.PictureInvalid, match=f"The image message has {why}"):
        rgb_of(message)


def packed(form: str, name: str = "PNG", colour: tuple[int, ...] = (200, 30, 60)) -> Any:
    file = BytesIO()
    Pillow.new("RGB", (16, 16), colour).save(file, name)
    return SimpleNamespace(format=form, data=array("B", file.getvalue()))


@pytest.mark.parametrize(
    ("form", "name", "colour"),
    [
        ("bgr8; jpeg compressed bgr8", "JPEG", (200, 30, 60)),
        ("rgb8; png compressed bgr8", "PNG", (200, 30, 60)),
        ("jpeg", "JPEG", (200, 30, 60)),
        ("rgb8; jpeg compressed rgb8", "JPEG", (60, 30, 200)),  # as OpenCV wrote it
    ],
)
def test_compressed_pictures_are_read_with_their_colours(
    form: str, name: str, colour: tuple[int, int, int]
) -> None:
    picture = decoded(packed(form, name))
    assert picture.shape == (16, 16, 3)
    assert np.abs(picture.astype(int) - colour).max() <= 4


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (packed("16UC1; compressedDepth png"), "depth is not seen"),
        (packed("32FC1; png"), "depth is not seen"),
        (packed("bgr8; webp", "WEBP"), "expected JPEG or PNG"),
        (SimpleNamespace(format="jpeg", data=b""), "expected JPEG or PNG"),
        (SimpleNamespace(format="jpeg", data=b"\xff\xd8\xff\xe0 cut"), "cannot be|is damaged"),
    ],
)
def test_compressed_data_that_shows_no_picture_is_refused(message: Any, why: str) -> None:
    with pytest.raises(tokprune.PictureInvalid, match=why):
        decoded(message)
