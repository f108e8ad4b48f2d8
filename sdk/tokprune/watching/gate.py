"""Tells a picture that has changed from one that has only the camera's noise."""

from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from tokprune.errors import RequestInvalid
from tokprune.types import Array, Frame, FrameStamp

BLOCK_PX = 6  # side of what is averaged
THRESHOLD = 8.0  # levels of 255; both measured by tests/benchmarks/change_gate.py
FLICKER = 0.03  # share of brightness that a whole picture may gain or lose unchanged
RENEW_S = 10.0
# RGB to luma (BT.601) and half of each colour. Video codecs spend few bits on colour, so it has
# more noise than luma; things that are equally bright differ in it.
_LUMA_AND_COLOURS: Array = np.asarray(
    [[0.299, 0.5, 0.0, 0.0], [0.587, 0.0, 0.5, 0.0], [0.114, 0.0, 0.0, 0.5]], np.float32
)


def block_means(image: UInt8[Array, "h w 3"], block_px: int = BLOCK_PX) -> Float32[Array, "r c 3"]:
    """Return the mean RGB of every block; the last of a row or column takes what is left."""
    bands, heights = _sums(image, block_px, np.dtype(np.uint16))
    cells, widths = _sums(np.swapaxes(bands, 0, 1), block_px, np.dtype(np.float32))
    return np.swapaxes(cells, 0, 1) / (heights[:, None] * widths)[..., None]


def _sums(lines: Array, size: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return the sums of so many lines each, and how many they were."""
    count = max(len(lines) // size, 1)
    sums = np.zeros((count, *lines.shape[1:]), dtype)
    for line in range(min(size, len(lines))):  # a quarter of the time that one `sum` takes
        sums += lines[line : count * size : size]
    sums[-1] += lines[count * size :].sum(axis=0, dtype=dtype)
    sizes = np.full(count, size, np.float32)
    sizes[-1] = len(lines) - (count - 1) * size
    return sums, sizes


def difference(
    before: Float32[Array, "r c 3"], now: Float32[Array, "r c 3"], flicker: float = FLICKER
) -> float:
    """Return the largest change of a block's mean: of its luma, or half of a colour's.

    What the whole picture gained or lost in brightness is taken off, up to `flicker`: lamps on
    alternating current and automatic exposure do that.

    Args:
        before: mean RGB of every block.
        now: the same of another picture of that size.
        flicker: share of the brightness.
    """
    bright = now.sum(axis=-1) / np.maximum(before.sum(axis=-1), 1)
    gain = min(max(float(np.median(bright)), 1 - flicker), 1 + flicker)
    return float(np.abs((now - before * np.float32(gain)) @ _LUMA_AND_COLOURS).max())


@dataclass(frozen=True)
class _Kept:
    """The picture that stands for those that are like it."""

    image: UInt8[Array, "h w 3"]
    means: Float32[Array, "r c 3"]
    stamp: FrameStamp


class ChangeGate:
    """Gives a frame the pixels of an earlier one as long as nothing has changed but noise.

    Equal pixels need not be encoded again: the VLM's vision cache has them. Frames are compared
    with the one whose pixels are given, so a slow change adds up until it is one. The measure is
    the largest change of a mean of 6 x 6 pixels. What is smaller or fainter than
    docs/results/change-gate.md says goes unseen until the pixels are renewed.

    Use it from any thread, for one camera.
    """

    def __init__(self, threshold: float = THRESHOLD, *, renew_s: float | None = RENEW_S) -> None:
        """Start with nothing to compare with.

        Args:
            threshold: levels of 255 by which one block may change; 0: any change counts.
            renew_s: give new pixels at least this often, whatever has changed; None: never.

        Raises:
            RequestInvalid: one is out of its range.
        """
        if not 0 <= threshold <= 255:
            raise RequestInvalid(f"The threshold must be 0 to 255 levels, got {threshold}")
        if renew_s is not None and not renew_s > 0:
            raise RequestInvalid(f"renew_s must be above 0 seconds, or None, got {renew_s}")
        self.threshold = threshold
        self.renew_s = renew_s
        self._kept: _Kept | None = None
        self._frames = self._unchanged = 0
        self._lock = Lock()

    @property
    def frames(self) -> int:
        """How many frames went through."""
        return self._frames

    @property
    def unchanged(self) -> int:
        """How many of them got the pixels of an earlier one."""
        return self._unchanged

    def changed(self, frame: Frame) -> bool:
        """Tell whether a frame differs from the one whose pixels are given. Keeps nothing."""
        kept = self._kept
        return kept is None or self._differs(kept, frame.image, block_means(frame.image))

    def through(self, frame: Frame) -> Frame:
        """Return the frame, or its stamp with the pixels of an earlier one where it is like it."""
        means = block_means(frame.image)
        with self._lock:
            self._frames += 1
            kept = self._kept
            if kept is None or self._differs(kept, frame.image, means) or self._old(kept, frame):
                self._kept = _Kept(frame.image, means, frame.stamp)
                return frame
            self._unchanged += 1
            return Frame(kept.image, frame.stamp)

    def reset(self) -> None:
        """Forget the picture: the next frame goes through as it is."""
        with self._lock:
            self._kept = None

    def _differs(
        self, kept: _Kept, image: UInt8[Array, "h w 3"], means: Float32[Array, "r c 3"]
    ) -> bool:
        if kept.image.shape != image.shape:
            return True
        if not self.threshold:
            return not np.array_equal(kept.image, image)
        return difference(kept.means, means) > self.threshold

    def _old(self, kept: _Kept, frame: Frame) -> bool:
        if self.renew_s is None:
            return False
        return frame.stamp.captured_s - kept.stamp.captured_s >= self.renew_s
