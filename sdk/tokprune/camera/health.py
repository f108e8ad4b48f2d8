"""What a camera's pictures, and their absence, say of its state."""

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from tokprune.errors import RequestInvalid
from tokprune.types import Array

CameraState = Literal["CONNECTING", "LIVE", "STALE", "FROZEN", "LOST", "ENDED", "CLOSED"]
SHORTEST_LIMIT_S = 1.0  # network cameras pause for half a second before each key frame
INTERVALS_A_LIMIT = 3
FROZEN_AFTER_S = 2.0
_GAPS = 15  # that the usual time between pictures is taken from


@dataclass(frozen=True)
class CameraStatus:
    """A camera at one moment. Nothing in it is secret."""

    name: str
    source: str  # what it is read from, without path, user or password: "rtsp://host:554"
    state: CameraState
    since_s: float  # monotonic time at which it came into this state
    age_s: float | None  # of the newest picture
    max_frame_age_s: float  # a picture that is older is not given for questions
    fps: float | None  # as the pictures came lately
    size_wh: tuple[int, int] | None  # of the newest picture that was looked at
    frames: int  # pictures since it was opened
    skipped: int  # damaged ones, not counted there
    reconnects: int  # times that it was lost and came back
    error: str | None  # why it is lost


class Health:
    """Judges a camera. Not for two threads at once: the camera's lock is held around it."""

    def __init__(
        self,
        *,
        live: bool,
        now_s: float,
        max_frame_age_s: float | None = None,
        frozen_after_s: float | None = FROZEN_AFTER_S,
    ) -> None:
        """Begin without a picture.

        Args:
            live: pictures get old, and a camera may freeze; those of files do neither.
            now_s: monotonic time, as everywhere here.
            max_frame_age_s: None: 1 s or three times the usual gap, whichever is longer.
            frozen_after_s: so long one picture may be repeated; None: for ever.

        Raises:
            RequestInvalid: a time is not above 0.
        """
        for name, value in (
            ("max_frame_age_s", max_frame_age_s),
            ("frozen_after_s", frozen_after_s),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise RequestInvalid(f"{name} must be above 0 seconds, got {value}")
        self.error: str | None = None
        self.reconnects = 0
        self._live = live
        self._asked_limit_s = max_frame_age_s
        self._frozen_after_s = frozen_after_s if live else None
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._told_interval_s: float | None = None
        self._began_s = now_s
        self._live_s = now_s
        self._latest_s: float | None = None
        self._changed_s = now_s
        self._last: tuple[Array, float | None] | None = None
        self._lost_s: float | None = None
        self._ended_s: float | None = None

    def opened(self, interval_s: float | None) -> None:
        """Take note that the source is open. Pictures are still to come."""
        self._told_interval_s = interval_s
        self._gaps.clear()

    def arrived(self, now_s: float, plane: Array, media_s: float | None = None) -> None:
        """Take note of a picture."""
        if self.state(now_s) != "LIVE":
            self._live_s = now_s
        if self._latest_s is not None and self._lost_s is None:
            self._gaps.append(max(0.0, now_s - self._latest_s))
        if self._lost_s is not None and self._latest_s is not None:
            self.reconnects += 1
        if self._frozen_after_s is not None:
            if (
                self._last is None
                or self._lost_s is not None
                or _differs(self._last, plane, media_s)
            ):
                self._changed_s = now_s
            self._last = (plane, media_s)
        self._latest_s, self._lost_s, self.error = now_s, None, None

    def lost(self, now_s: float, error: str) -> None:
        """Take note that no picture can come now."""
        self.error = error
        if self._lost_s is None:
            self._lost_s = now_s
        self._last = None

    def ended(self, now_s: float) -> None:
        """Take note that no picture will come again."""
        self._ended_s = now_s
        self._last = None

    @property
    def interval_s(self) -> float | None:
        """The usual time between two pictures."""
        return median(self._gaps) if self._gaps else self._told_interval_s

    @property
    def limit_s(self) -> float:
        """How old a picture may be that a question is asked about."""
        if self._asked_limit_s is not None:
            return self._asked_limit_s
        return max(SHORTEST_LIMIT_S, INTERVALS_A_LIMIT * (self.interval_s or 0.0))

    def state(self, now_s: float) -> CameraState:
        """Return the state at a moment."""
        return self.judge(now_s)[0]

    def judge(self, now_s: float) -> tuple[CameraState, float]:
        """Return the state at a moment, and since when it lasts."""
        if self._ended_s is not None:
            return "ENDED", self._ended_s
        if self._lost_s is not None:
            return "LOST", self._lost_s
        if self._latest_s is None:
            return "CONNECTING", self._began_s
        if not self._live:
            return "LIVE", self._live_s
        if now_s - self._latest_s > self.limit_s:
            return "STALE", self._latest_s + self.limit_s
        still = self._frozen_after_s
        if still is not None and now_s - self._changed_s > still:
            return "FROZEN", self._changed_s + still
        return "LIVE", self._live_s


def _differs(last: tuple[Array, float | None], plane: Array, media_s: float | None) -> bool:
    """Tell whether a picture is another one than the last: by its values, and by its own time."""
    if media_s is not None and media_s == last[1]:
        return False
    return last[0].shape != plane.shape or not np.array_equal(last[0], plane)
