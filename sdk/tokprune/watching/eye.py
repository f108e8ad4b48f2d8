"""What a watched camera shows when the turn of a question has come."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

from tokprune.camera.camera import Camera
from tokprune.types import Clip, Frame, FrameStamp
from tokprune.watching.gate import ChangeGate
from tokprune.watching.window import Window


@dataclass(frozen=True)
class Looked:
    """What was seen, and when."""

    stamp: FrameStamp
    unchanged: bool
    at_s: float  # monotonic time


Tell: TypeAlias = Callable[[Looked, Frame | Clip], object]


class Eye:
    """Looks once, for one question; runs on the worker's thread."""

    def __init__(
        self,
        camera: Camera,
        changes: ChangeGate,
        window: Window | None,
        tell: Tell,
        *,
        reuse: bool,
    ) -> None:
        """Look nowhere yet.

        Args:
            camera: what is watched.
            changes: compares its frames.
            window: what is shown instead of one frame.
            tell: called with what was seen.
            reuse: show a frame that has not changed with the pixels of an earlier one.
        """
        self._camera, self._changes, self._window = camera, changes, window
        self._tell = tell
        self._reuse = reuse
        self.looked: Looked | None = None

    def look(self) -> Frame | Clip:
        """Return the newest frame, or the window, and tell of it.

        Raises:
            CameraUnusable: there is none that may be asked about.
        """
        at_s = monotonic()  # before looking: what came later was not there yet
        if self._window is not None:
            clip = self._window.look()
            assert clip.stamp is not None  # a window's clips have one
            if not self._reuse:  # else the window has put its frames through
                self._changes.through(Frame(clip.frames[-1], clip.stamp))
            self._see(Looked(clip.stamp, unchanged=False, at_s=at_s), clip)
            return clip
        frame = self._camera.look()
        passed = self._changes.through(frame)
        shown = passed if self._reuse else frame
        self._see(Looked(frame.stamp, shown.image is not frame.image, at_s), shown)
        return shown

    def _see(self, looked: Looked, shown: Frame | Clip) -> None:
        self.looked = looked
        self._tell(looked, shown)
