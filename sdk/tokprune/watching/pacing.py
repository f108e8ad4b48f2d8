"""When the next question about a camera is due."""

from collections.abc import Callable
from time import monotonic

from tokprune.camera.camera import Camera
from tokprune.errors import CameraUnusable, Closed
from tokprune.types import Frame, FrameStamp
from tokprune.watching.gate import ChangeGate
from tokprune.watching.settings import Settings


class Pacing:
    """Decides whether to ask now. Called by the thread that watches alone."""

    def __init__(
        self,
        camera: Camera,
        changes: ChangeGate,
        take: Callable[[Frame], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Begin before the first question.

        Args:
            camera: what is watched.
            changes: tells whether a frame has changed since the one that was asked about.
            take: called with every frame of a file.
            clock: monotonic seconds.
        """
        self._camera = camera
        self._changes = changes
        self._take = take
        self._clock = clock
        self._after = -1  # number of the frame that was asked about, or found unchanged
        self._asked_s = float("-inf")

    def due(self, settings: Settings, *, forced: bool) -> bool:
        """Tell whether there is a frame to ask about now. Does not wait.

        Args:
            settings: what is asked, and when.
            forced: ask about the next frame, whatever has changed or was asked lately.

        Raises:
            CameraLost: a file has ended.
            Closed: the camera was closed.
        """
        due = self._due_live if self._camera.live else self._due_next
        return due(settings, forced=forced)

    def asked(self, stamp: FrameStamp) -> None:
        """Take note that a frame was asked about."""
        self._after = max(self._after, stamp.number)
        self._asked_s = self._time_s(stamp)

    def _due_live(self, settings: Settings, *, forced: bool) -> bool:
        shot = self._camera.fresh(self._after)
        if shot is None:
            if self._camera.state == "CLOSED":
                raise Closed(f"Camera {self._camera.name!r} is closed")
            return False
        if forced:
            return True
        if self._clock() - self._asked_s < settings.every_s:
            return False
        if settings.mode != "on_change" or self._changes.changed(shot.frame()):
            return True
        self._after = shot.stamp.number
        return False

    def _due_next(self, settings: Settings, *, forced: bool) -> bool:
        """Take the next frame of a file; it may not be one to ask about."""
        try:
            frame = self._camera.wait(timeout_s=0.0)
        except CameraUnusable:
            if self._camera.state == "ENDED":
                raise
            return False
        self._take(frame)
        gap_s = self._time_s(frame.stamp) - self._asked_s
        soon = 0 <= gap_s < settings.every_s  # below 0 where a file has begun again
        still = settings.mode == "on_change" and not self._changes.changed(frame)
        return forced or not (soon or still)

    def _time_s(self, stamp: FrameStamp) -> float:
        return self._clock() if self._camera.live or stamp.media_s is None else stamp.media_s
