"""A camera, as programs use it."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from types import TracebackType
from typing import NoReturn

from tokprune.camera.capture import Capture, Clock, Listener
from tokprune.camera.health import CameraState, CameraStatus
from tokprune.camera.shots import Shot
from tokprune.errors import CameraFrozen, CameraLost, Closed, FrameTooOld
from tokprune.types import Frame
from tokprune.waiting import until_told

_LONGEST_SLEEP_S = 0.25  # a thread that hangs in a driver is noticed so soon


class Camera:
    """The newest picture of a source; made by `tokprune.open_camera`. Use it from any thread.

    A camera takes the place of a picture in `VLM.ask` and its kin: the newest frame is then taken
    when the request's turn has come. `for frame in camera` gives every frame of a file, and of a
    live source the newest that was not given yet.
    """

    def __init__(self, capture: Capture, *, clock: Clock = monotonic) -> None:
        """Show what a capture holds; see `tokprune.open_camera`."""
        self._capture = capture
        self._clock = clock
        self._given = -1  # number of the frame that `wait` gave last
        self._last: Frame | None = None  # of a file: the frame that `wait` gave last
        self._closing = weakref.finalize(self, capture.close)

    @property
    def name(self) -> str:
        """What it is called in answers and logs."""
        return self._capture.plan.name

    @property
    def live(self) -> bool:
        """Whether frames get old: of a file that is read frame by frame they do not."""
        return self._capture.plan.live

    @property
    def state(self) -> CameraState:
        """CONNECTING, LIVE, STALE, FROZEN, LOST, ENDED (files) or CLOSED."""
        return self._capture.state()

    @property
    def newest(self) -> Frame | None:
        """The newest frame whatever its age and the camera's state: to be shown, not asked about.

        Raises:
            PictureInvalid: it cannot be decoded.
        """
        shot = self._capture.newest()
        return None if shot is None else self._capture.seen(shot.frame())

    def status(self) -> CameraStatus:
        """Return the state with numbers. Nothing in it is secret."""
        return self._capture.status()

    def look(self) -> Frame:
        """Return the newest frame at once; of a file, the one that `wait` or iteration gave last.

        Raises:
            CameraLost: it is not there, or has not shown anything yet.
            CameraFrozen: it repeats one picture.
            FrameTooOld: the newest frame is older than the limit.
            PictureInvalid: the frame cannot be decoded.
            Closed: `close` was called.
        """
        if not self.live:
            return self._last or self._refuse()
        shot = self._capture.newest()
        if shot is None or self.state != "LIVE":
            self._refuse()
        return self._capture.seen(shot.frame())

    def wait(self, after: int | None = None, timeout_s: float | None = None) -> Frame:
        """Wait for a frame that may be asked about, and return the newest.

        Args:
            after: its number shall be above this; None: above that of the last `wait`.
            timeout_s: None waits for ever, through outages too.

        Raises:
            CameraLost, CameraFrozen, FrameTooOld: there was none in time; or a file has ended.
            PictureInvalid: the frame cannot be decoded.
            Closed: `close` was called, before or meanwhile.
        """
        due_s = None if timeout_s is None else self._clock() + timeout_s
        changed = self._capture.changed
        with changed:
            while (shot := self.fresh(after)) is None:
                left_s = _LONGEST_SLEEP_S if due_s is None else due_s - self._clock()
                if left_s <= 0 or self.state in ("ENDED", "CLOSED"):
                    self._refuse()
                changed.wait(min(left_s, _LONGEST_SLEEP_S))
            self._give(shot)
        return self._shown(shot)

    async def wait_async(self, after: int | None = None, timeout_s: float | None = None) -> Frame:
        """Like `wait`, without holding up the event loop."""
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(news.set)

        due_s = None if timeout_s is None else self._clock() + timeout_s
        end = self._capture.listen(tell)
        try:
            while (shot := self.fresh(after)) is None:
                left_s = _LONGEST_SLEEP_S if due_s is None else due_s - self._clock()
                if left_s <= 0 or self.state in ("ENDED", "CLOSED"):
                    self._refuse()
                news.clear()
                if self.fresh(after) is None:
                    await until_told(news, min(left_s, _LONGEST_SLEEP_S))
            self._give(shot)
        finally:
            end()
        return await asyncio.to_thread(self._shown, shot)

    def held(self) -> Shot | None:
        """Return the newest picture before it is RGB, whatever its age; to be called often."""
        return self._capture.newest()

    def fresh(self, after: int | None) -> Shot | None:
        """Return the newest picture, if it may be asked about and its number is above `after`.

        None: above that of the last `wait`. The picture is not RGB yet.
        """
        shot = self._capture.newest()
        number = self._given if after is None else after
        if shot is None or shot.stamp.number <= number:
            return None
        return shot if not self.live or self.state == "LIVE" else None

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` when a picture came or the state may be another. Return what ends it.

        It runs on the capture thread, and must be quick.
        """
        return self._capture.listen(listener)

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        try:
            return self.wait()
        except (CameraLost, Closed):
            if self.state in ("ENDED", "CLOSED"):
                raise StopIteration from None
            raise

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self

    async def __anext__(self) -> Frame:
        try:
            return await self.wait_async()
        except (CameraLost, Closed):
            if self.state in ("ENDED", "CLOSED"):
                raise StopAsyncIteration from None
            raise

    def close(self) -> None:
        """Let go of the source. Who waits for a frame gets `Closed`."""
        self._closing()

    def __enter__(self) -> "Camera":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        status = self.status()
        return f"<Camera {status.name} ({status.source}) {status.state}>"

    def _give(self, shot: Shot) -> None:
        self._given = max(self._given, shot.stamp.number)
        self._capture.take()

    def _shown(self, shot: Shot) -> Frame:
        frame = self._capture.seen(shot.frame())
        if not self.live:
            self._last = frame
        return frame

    def _refuse(self) -> NoReturn:
        status = self._capture.status()
        what = f"Camera {status.name!r} ({status.source})"
        match status.state:
            case "CLOSED":
                raise Closed(f"{what} is closed: open it again")
            case "ENDED":
                raise CameraLost(f"{what} has ended")
            case "FROZEN":
                raise CameraFrozen(
                    f"{what} repeats one picture: check it, or open it with frozen_after_s=None if "
                    "it shows what never changes"
                )
            case "LOST":
                raise CameraLost(f"{what} is lost: {status.error}. It is tried again")
            case "CONNECTING":
                raise CameraLost(f"{what} has not shown anything yet: `wait` waits for it")
            case _:
                age = "none yet" if status.age_s is None else f"{status.age_s:.2f} s old"
                raise FrameTooOld(
                    f"{what}: the newest frame is {age}, the limit max_frame_age_s is "
                    f"{status.max_frame_age_s:.2f} s"
                )
