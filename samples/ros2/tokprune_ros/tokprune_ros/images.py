"""Pixels of sensor_msgs/Image and CompressedImage as RGB. Needs no ROS.

Encodings are those of sensor_msgs/image_encodings.hpp. Anything else than a colour or grey picture
of 8 bits is refused: depth, Bayer patterns and 16 bits would be guesses.
"""

from typing import Any, NoReturn, Protocol, TypeAlias

import numpy as np

from tokprune import PictureInvalid
from tokprune.pictures import MAX_PIXELS, load_picture

Image: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

BYTES_A_PIXEL = {
    "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1,
    "uyvy": 2, "yuv422": 2, "yuyv": 2, "yuv422_yuy2": 2,
}  # fmt: skip
_LUMA_FIRST = ("yuyv", "yuv422_yuy2")


class RawImage(Protocol):
    """What is read of a sensor_msgs/Image."""

    height: int
    width: int
    encoding: str
    is_bigendian: int  # of 16 bits and more: no matter here
    step: int
    data: Any  # bytes or array.array


class CompressedImage(Protocol):
    """What is read of a sensor_msgs/CompressedImage."""

    format: str
    data: Any


def rgb_of(message: RawImage) -> Image:
    """Return a picture as RGB, without a copy where the message has it so.

    Raises:
        PictureInvalid: its encoding is not one of `BYTES_A_PIXEL`, or its sizes do not agree.
    """
    height, width, step = message.height, message.width, message.step
    size = BYTES_A_PIXEL.get(message.encoding)
    if size is None:
        _refuse(f"encoding {message.encoding!r:.80}, expected one of {', '.join(BYTES_A_PIXEL)}")
    if not 0 < width * height <= MAX_PIXELS:
        _refuse(f"{width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    if step < width * size:
        _refuse(f"rows of {step} bytes, expected {width * size} or more ({message.encoding})")
    raw = np.frombuffer(message.data, np.uint8)
    if len(raw) != step * height:
        _refuse(f"{len(raw)} bytes, expected {height} rows of {step}")
    rows = raw.reshape(height, step)[:, : width * size]  # what is behind is padding
    if size == 2:
        return _from_yuv422(rows, luma_first=message.encoding in _LUMA_FIRST)
    if size == 1:
        return np.repeat(rows[:, :, None], 3, axis=2)
    pixels = rows.reshape(height, width, size)
    turned = message.encoding.startswith("bgr")
    return np.ascontiguousarray(pixels[:, :, 2::-1] if turned else pixels[:, :, :3])


def decoded(message: CompressedImage) -> Image:
    """Return a JPEG or PNG as RGB.

    Raises:
        PictureInvalid: it is none, is damaged, or is a depth image.
    """
    form = message.format
    if "compressedDepth" in form or form.startswith(("16UC1", "32FC1")):
        _refuse(f"format {form!r:.80}, expected a picture: depth is not seen by the model")
    data = bytes(message.data)
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        _refuse(f"format {form!r:.80} and first bytes {data[:8]!r}, expected JPEG or PNG")
    picture = load_picture(data)
    # compressed_image_transport compresses in OpenCV's order, and says so with "compressed bgr8".
    # Where it says "compressed rgb8", red and blue stand in each other's place in the file.
    return np.ascontiguousarray(picture[:, :, ::-1]) if "compressed rgb" in form else picture


def _from_yuv422(rows: Image, *, luma_first: bool) -> Image:
    """Convert from BT.601 in limited range, as cv_bridge does."""
    height, width = rows.shape[0], rows.shape[1] // 2
    if width % 2:
        _refuse(f"{width} pixels a row, expected an even number: two share their colour")
    pairs = rows.reshape(height, width // 2, 4).astype(np.int32)
    luma, blue, red = ([0, 2], 1, 3) if luma_first else ([1, 3], 0, 2)
    y = 298 * (pairs[:, :, luma] - 16) + 128  # two pixels a pair; fixed point, 8 bits behind
    u, v = pairs[:, :, blue, None] - 128, pairs[:, :, red, None] - 128
    rgb = np.stack((y + 409 * v, y - 100 * u - 208 * v, y + 516 * u), axis=-1) >> 8
    return np.clip(rgb, 0, 255).astype(np.uint8).reshape(height, width, 3)


def _refuse(found: str) -> NoReturn:
    raise PictureInvalid(f"The image message has {found}")
