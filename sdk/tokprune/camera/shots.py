"""A picture as a camera holds it."""

from threading import Lock

from tokprune.camera.reading.reader import Grabbed, SourceGone
from tokprune.errors import PictureInvalid
from tokprune.types import Frame, FrameStamp


class Shot:
    """A picture that came. It becomes RGB when it is first looked at, once."""

    def __init__(self, grabbed: Grabbed, stamp: FrameStamp) -> None:
        self.stamp = stamp
        self._grabbed: Grabbed | None = grabbed
        self._frame: Frame | None = None
        self._lock = Lock()

    def frame(self) -> Frame:
        """Return it in RGB.

        Raises:
            PictureInvalid: it cannot be.
        """
        with self._lock:
            if self._frame is None:
                assert self._grabbed is not None
                try:
                    image = self._grabbed.image()
                except SourceGone as error:
                    raise PictureInvalid(
                        f"Frame {self.stamp.number} of {self.stamp.source}: {error}"
                    ) from None
                self._frame, self._grabbed = Frame(image, self.stamp), None
            return self._frame
