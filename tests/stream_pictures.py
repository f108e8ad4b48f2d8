"""Pictures for streams: each shows its number, and a server notes when it was sent."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import av
import numpy as np
from PIL import Image

from tokprune.camera.reading.reader import SourceGone

STEP = 10  # grey levels from one number to the next
NUMBERS = 24  # then they begin again


def numbered_picture(number: int, size_wh: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Return a picture whose grey level says its number."""
    width, height = size_wh
    return np.full((height, width, 3), STEP * (number % NUMBERS), np.uint8)


def number_of(image: np.ndarray) -> int:
    """Return the number that a picture shows."""
    level = float(image.mean())
    found = round(level / STEP)
    assert abs(level - STEP * found) < 0.4 * STEP, level
    return found


def until_gone(reader: Any, each: Callable[[], None] = lambda: None) -> tuple[list[Any], str]:
    """Read until there is nothing more; return the pictures and why it ended."""
    pictures: list[Any] = []
    while True:
        try:
            pictures.append(reader.read())
        except SourceGone as gone:
            return pictures, str(gone)
        each()


@dataclass
class Show:
    """What a server shows: pictures in their time, until it is told to stop or to hold still."""

    fps: float = 50.0
    size_wh: tuple[int, int] = (64, 48)
    count: int | None = None  # of pictures to one client; None: endless
    gop: int = 10
    sent_s: dict[int, float] = field(default_factory=dict[int, float])
    silent: Event = field(default_factory=Event)
    stopped: Event = field(default_factory=Event)

    def numbers(self) -> Iterator[int]:
        """Yield numbers when it is time for them."""
        begin, number = time.monotonic(), 0
        while not self.stopped.is_set() and number != self.count:
            wait = begin + number / self.fps - time.monotonic()
            if wait > 0 and self.stopped.wait(wait):
                return
            while self.silent.is_set():
                if self.stopped.wait(0.01):
                    return
            self.sent_s[number] = time.monotonic()
            yield number
            number += 1


def jpeg(picture: np.ndarray, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=95, **options)
    return data.getvalue()


def jpeg_parts(show: Show, boundary: str = "frame", *, lengths: bool = True) -> Iterator[bytes]:
    """Yield the parts of a multipart/x-mixed-replace body."""
    for number in show.numbers():
        picture = jpeg(numbered_picture(number, show.size_wh))
        length = f"Content-Length: {len(picture)}\r\n" if lengths else ""
        head = f"--{boundary}\r\nContent-Type: image/jpeg\r\n{length}\r\n"
        yield head.encode() + picture + b"\r\n"


class _Pieces:
    """A file that keeps each write apart."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def take(self) -> list[bytes]:
        taken, self.pieces = self.pieces, []
        return taken


def encoded_live(
    show: Show, container: str, codec: str = "libx264", *, buffer_size: int = 32768, **options: str
) -> Iterator[list[bytes]]:
    """Yield what an encoder writes for each picture, at once."""
    pieces = _Pieces()
    with av.open(pieces, "w", format=container, buffer_size=buffer_size) as output:
        stream: Any = output.add_stream(codec, rate=round(show.fps))
        stream.width, stream.height = show.size_wh
        stream.pix_fmt = "yuv420p"
        known = {"preset": "ultrafast", "tune": "zerolatency", "qp": "10"}
        stream.options = (known if codec == "libx264" else {}) | {"g": str(show.gop)} | options
        for number in show.numbers():
            picture = numbered_picture(number, show.size_wh)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            yield pieces.take()
