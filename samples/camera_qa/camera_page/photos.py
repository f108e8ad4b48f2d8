"""Pictures as bytes for browsers: JPEG, small enough, with a head that says what they are."""

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from math import ceil

import msgspec
import numpy as np
from PIL import Image as Pillow

from tokprune.types import Array, Clip, FrameStamp

LIVE_PX, ASKED_PX = 960, 1280  # the longer side of a picture as it is sent
QUALITY = 80
GAP_PX, GAP_GREY = 4, 60  # between the frames of a video


class Sheet(msgspec.Struct, frozen=True):
    """Where the frames of a video lie on their sheet, in pixels of it."""

    columns: int
    width: int
    height: int
    gap: int


@dataclass(frozen=True)
class Photo:
    """One picture for browsers. It becomes a JPEG on the thread that first wants one."""

    kind: str  # "live", or "asked"
    source: int
    stamp: FrameStamp
    image: Array
    longest_px: int = LIVE_PX
    id: int | None = None  # of the question
    sheet: Sheet | None = None

    @cached_property
    def jpeg(self) -> bytes:
        """The picture as a file."""
        return jpeg_of(self.image, self.longest_px)

    def packed(self) -> bytes:
        """Return the length of the head in four bytes, the head as JSON, and the JPEG."""
        head = msgspec.json.encode(
            {
                "kind": self.kind,
                "source": self.source,
                "number": self.stamp.number,
                "age_s": round(self.stamp.age_s(), 4),
                "id": self.id,
                "sheet": self.sheet,
            }
        )
        return len(head).to_bytes(4, "big") + head + self.jpeg


def jpeg_of(image: Array, longest_px: int, quality: int = QUALITY) -> bytes:
    """Return a picture as JPEG, made smaller where it is larger than that."""
    picture = Pillow.fromarray(image)
    shrink = max(picture.size) / longest_px
    if shrink > 1:
        picture = picture.resize(
            (max(1, round(picture.width / shrink)), max(1, round(picture.height / shrink))),
            Pillow.Resampling.BILINEAR,
            reducing_gap=2.0,
        )
    data = BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return data.getvalue()


def sheet_of(clip: Clip, count: int) -> tuple[Array, Sheet]:
    """Lay out the frames that stand for an answer's `count` frames, in rows from left to right.

    Where the vision encoder takes several frames at once, the first of them is shown, as in
    `tokprune.overlay`.
    """
    together = ceil(len(clip.frames) / count)
    frames = clip.frames[::together]
    height, width = frames.shape[1:3]
    columns = min(len(frames), ceil((len(frames) * height / width) ** 0.5))
    rows = ceil(len(frames) / columns)
    shrink = max(1.0, (columns * width) / ASKED_PX, (rows * height) / ASKED_PX)
    width, height = max(1, int(width / shrink)), max(1, int(height / shrink))
    shape = (rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, 3)
    sheet = np.full(shape, GAP_GREY, np.uint8)
    for number, frame in enumerate(frames):
        small = np.asarray(Pillow.fromarray(frame).resize((width, height)))
        top, left = number // columns * (height + GAP_PX), number % columns * (width + GAP_PX)
        sheet[top : top + height, left : left + width] = small
    return sheet, Sheet(columns, width, height, GAP_PX)
