"""Frames of a video as RGB, turned as their file or camera says. Needs PyAV."""

from typing import Final, NamedTuple

import numpy as np
from av.video.frame import VideoFrame

from tokprune.errors import PictureInvalid
from tokprune.types import Array, Image

CONVERT = "convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"


# swscale's fast paths are up to 3/255 off the right colours; with these flags it is 1/255.
# SWS_BILINEAR, SWS_FULL_CHR_H_INT, SWS_ACCURATE_RND: PyAV 17 has names for some of them only.
ACCURATE: Final = 0x2 | 0x2000 | 0x40000


class Turn(NamedTuple):
    """How rows and columns become those of the upright picture."""

    swapped: bool  # rows become columns, before the rest
    down: int  # -1: from the last row to the first
    right: int


def turn_of(frame: VideoFrame, name: str) -> Turn:
    """Return how a frame is turned.

    Follows ISO/IEC 14496-12, 8.3.2: a pixel at column p and row q is shown at column a p + c q and
    row b p + d q, but for an offset.

    Raises:
        PictureInvalid: by an angle that is no multiple of 90 degrees.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn(swapped=False, down=1, right=1)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(np.float64)
    swapped = bool(abs(a) + abs(d) < abs(b) + abs(c))
    if swapped:
        a, b, c, d = c, d, a, b
    if not abs(b) + abs(c) < 0.01 * min(abs(a), abs(d)):
        raise PictureInvalid(
            f"{name} is to be turned by an angle that is no multiple of 90 degrees: {CONVERT}"
        )
    return Turn(swapped, 1 if d > 0 else -1, 1 if a > 0 else -1)


def upright(frame: VideoFrame, name: str, interpolation: int | None = None) -> Image:
    """Return a frame in RGB, turned as it says.

    Args:
        frame: as decoded.
        name: of the video, for messages.
        interpolation: how swscale converts; None as FFmpeg and transformers do.

    Raises:
        PictureInvalid: by an angle that is no multiple of 90 degrees.
    """
    turn = turn_of(frame, name)
    pixels: Array = frame.to_ndarray(format="rgb24", interpolation=interpolation)
    if turn.swapped:
        pixels = np.swapaxes(pixels, 0, 1)
    return pixels[:: turn.down, :: turn.right]
