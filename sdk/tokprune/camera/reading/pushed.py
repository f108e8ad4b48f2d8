"""Pictures that a program has anyway, as a source: from ROS, a browser, another library."""

from collections.abc import Callable
from threading import Condition
from time import monotonic

import numpy as np

from tokprune.camera.reading.reader import Grabbed, SourceGone
from tokprune.pictures import PictureSource, load_picture


class PushedFrames:
    """Takes pictures from any thread. The newest waits to be read, older ones are passed over.

    `tokprune.open_camera(pushed)` makes a camera of them.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: Grabbed | None = None
        self._ends = 0

    def push(self, image: PictureSource, captured_s: float | None = None) -> None:
        """Give a picture. Arrays are copied: their owner may write over them.

        Args:
            image: as `VLM.ask` takes it.
            captured_s: monotonic time of the picture, which its stamp will have; None: now.

        Raises:
            PictureInvalid: it cannot be decoded.
        """
        came_s = monotonic() if captured_s is None else captured_s
        picture = np.array(load_picture(image))
        picture.flags.writeable = False
        with self._changed:
            self._waiting = Grabbed(lambda: picture, picture, captured_s=came_s)
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no pictures come for now: the camera is LOST until the next `push`."""
        with self._changed:
            self._waiting = None
            self._ends += 1
            self._changed.notify_all()

    def open(self) -> "PushedReader":
        """Begin to read. Called by the camera."""
        return PushedReader(self._changed, self._take, self._ends)

    def _take(self, ends: int) -> Grabbed | None:
        if ends != self._ends:
            raise SourceGone("nothing is pushed any more")
        taken, self._waiting = self._waiting, None
        return taken


class PushedReader:
    """Reads what is pushed."""

    interval_s: float | None = None
    skipped = 0

    def __init__(
        self, changed: Condition, take: Callable[[int], Grabbed | None], ends: int
    ) -> None:
        self._changed = changed
        self._take = take
        self._ends = ends
        self._stopped = False

    def read(self) -> Grabbed | None:
        """Wait for the next picture."""
        with self._changed:
            while not self._stopped:
                taken = self._take(self._ends)
                if taken is not None:
                    return taken
                self._changed.wait()
        return None

    def interrupt(self) -> None:
        """End a `read` that waits."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Free nothing: the pictures are the program's."""
