"""From packets to pictures: decoding that shows nothing damaged, and colours when asked for."""

from typing import Any

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tokprune.camera.reading.reader import Grabbed, SourceGone
from tokprune.errors import PictureInvalid
from tokprune.pictures import MAX_PIXELS
from tokprune.turning import ACCURATE, turn_of, upright
from tokprune.types import Array, Image


class Decoder:
    """Decodes a stream. Frames that it knows to be damaged are counted and not given.

    What is drawn upon a damaged frame is damaged as well, so all are left out up to the next that
    needs no other. So are those before the first. Damage of which the codec knows nothing is shown.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.skipped = 0
        self._stream = stream
        self._waiting = True  # for a key frame

    def decode(self, packet: Any) -> list[VideoFrame]:
        """Return the pictures of an `av.Packet` that are whole; None flushes the codec."""
        codec: Any = self._stream.codec_context
        try:
            frames: list[VideoFrame] = codec.decode(packet)
        except (FFmpegError, ValueError):
            self.skipped += 1
            self._waiting = True
            return []
        if packet is not None and packet.is_corrupt:
            self._waiting = True
            self.skipped += len(frames)
            return []
        return [frame for frame in frames if self._whole(frame)]

    def _whole(self, frame: VideoFrame) -> bool:
        if frame.is_corrupt or not 0 < frame.width * frame.height <= MAX_PIXELS:
            self._waiting = True
        elif frame.key_frame:
            self._waiting = False
        self.skipped += self._waiting
        return not self._waiting


def grabbed(
    frame: VideoFrame, name: str, media_s: float | None, captured_s: float | None = None
) -> Grabbed:
    """Return a decoded frame as a picture that becomes RGB when it is wanted.

    Raises:
        SourceGone: it is to be turned by an angle that is no multiple of 90 degrees.
    """
    try:
        turn_of(frame, name)
    except PictureInvalid as refused:
        reason = str(refused)
    else:
        return Grabbed(lambda: _rgb(frame, name), _plane(frame), media_s, captured_s)
    raise SourceGone(reason)


def _rgb(frame: VideoFrame, name: str) -> Image:
    """Return an upright picture in memory of its own."""
    return np.array(upright(frame, name, ACCURATE), np.uint8, order="C")


def _plane(frame: VideoFrame) -> Array:
    """Return the first plane without what pads its rows: in YUV the brightness."""
    form = frame.format
    plane: Any = frame.planes[0]
    packed = len(frame.planes) == 1
    bits = form.padded_bits_per_pixel if packed else 8 * -(-form.components[0].bits // 8)
    row = plane.line_size
    rows: Array = np.ndarray((plane.buffer_size // row, row), np.uint8, plane)
    pixels: Array = rows[: frame.height, : -(-frame.width * bits // 8)]
    pixels.flags.writeable = False
    return pixels


def interval_of(stream: VideoStream) -> float | None:
    """Return the usual seconds from one frame to the next, where the source says."""
    rate = stream.average_rate
    return float(1 / rate) if rate and 0.1 <= rate <= 1000 else None
