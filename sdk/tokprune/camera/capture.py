"""The thread that reads a camera, and the one picture that it holds."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from threading import Condition, Event, RLock, Thread, current_thread
from time import monotonic, time
from typing import TypeAlias

from tokprune.camera.health import CameraState, CameraStatus, Health
from tokprune.camera.reading.reader import Grabbed, Opener, Reader, SourceGone
from tokprune.camera.shots import Shot
from tokprune.types import Frame, FrameStamp

Clock: TypeAlias = Callable[[], float]
Listener: TypeAlias = Callable[[], object]
DEVICE_RETRIES_S = (0.5,)
NETWORK_RETRIES_S = (0.5, 1.0, 2.0, 4.0, 5.0)
JITTER = 0.2  # of a wait: many robots behind one switch do not come back at the same moment
MOST_ABANDONED = 2  # threads that hang in a driver
CLOSE_TIMEOUT_S = 2.0
_log = logging.getLogger("tokprune")


@dataclass(frozen=True)
class Plan:
    """How a source is read."""

    opener: Opener
    name: str
    shown: str  # the source without what is secret
    live: bool  # the newest picture wins; else every picture waits until it is taken
    loop: bool = False  # what has an end begins again
    paced: bool = False  # a file is played at its own speed
    retries_s: tuple[float, ...] = DEVICE_RETRIES_S
    give_up_s: float | None = 20.0  # a call into the source that takes longer hangs; None: may wait
    max_frame_age_s: float | None = None
    frozen_after_s: float | None = None


class _Session:
    """One thread's right to read. It ends when another takes its place."""

    def __init__(self) -> None:
        self.over = Event()
        self.reader: Reader | None = None
        self.calling_s: float | None = None  # since when it is in a call that may hang
        self.thread: Thread | None = None


class Capture:
    """Reads a source on a thread of its own, for as long as it is not closed."""

    def __init__(self, plan: Plan, clock: Clock = monotonic, wall: Clock = time) -> None:
        """Start to read."""
        self.plan = plan
        self.changed = Condition(RLock())
        self._clock, self._wall = clock, wall
        self._health = Health(
            live=plan.live,
            now_s=clock(),
            max_frame_age_s=plan.max_frame_age_s,
            frozen_after_s=plan.frozen_after_s,
        )
        self._shot: Shot | None = None
        self._size_wh: tuple[int, int] | None = None
        self._count = 0
        self._skipped = 0  # by readers that are closed
        self._taken = True  # the held picture was given; of a file, the next may be read
        self._closed_s: float | None = None
        self._listeners: list[Listener] = []
        self._abandoned: list[_Session] = []
        self._session = self._started()

    def newest(self) -> Shot | None:
        """Return the picture that is held, whatever its age."""
        with self.changed:
            return self._shot

    def take(self) -> None:
        """Say that the held picture was given to somebody."""
        with self.changed:
            self._taken = True
            self.changed.notify_all()

    def state(self) -> CameraState:
        """Return the state now."""
        return self._judged()[0]

    def status(self) -> CameraStatus:
        """Return all that is known."""
        with self.changed:
            state, since_s = self._judged()
            reader = self._session.reader
            interval_s = self._health.interval_s
            return CameraStatus(
                name=self.plan.name,
                source=self.plan.shown,
                state=state,
                since_s=since_s,
                age_s=self._shot.stamp.age_s(self._clock()) if self._shot else None,
                max_frame_age_s=self._health.limit_s,
                fps=1 / interval_s if interval_s else None,
                size_wh=self._size_wh,
                frames=self._count,
                skipped=self._skipped + (reader.skipped if reader is not None else 0),
                reconnects=self._health.reconnects,
                error=self._health.error,
            )

    def seen(self, frame: Frame) -> Frame:
        """Take note of a picture's size."""
        height, width = frame.image.shape[:2]
        with self.changed:
            self._size_wh = (width, height)
        return frame

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` on every change, on the capture thread. Return what ends it."""
        with self.changed:
            self._listeners.append(listener)

        def end() -> None:
            with self.changed:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    def close(self) -> None:
        """End the thread, and free the source."""
        with self.changed:
            if self._closed_s is None:
                self._closed_s = self._clock()
            session = self._session
            self._shot = None
        self._end(session)
        self._tell()
        if session.thread is not None and session.thread is not current_thread():
            session.thread.join(CLOSE_TIMEOUT_S)
            if session.thread.is_alive():
                _log.warning("camera %s: its driver does not let go of its thread", self.plan.name)

    def _judged(self) -> tuple[CameraState, float]:
        with self.changed:
            if self._closed_s is not None:
                return "CLOSED", self._closed_s
            self._tend()
            return self._health.judge(self._clock())

    def _tend(self) -> None:
        """Read on another thread where this one hangs in the source."""
        session, give_up_s = self._session, self.plan.give_up_s
        began_s = session.calling_s
        if give_up_s is None or began_s is None or self._clock() - began_s < give_up_s:
            return
        self._abandoned = [s for s in self._abandoned if s.thread and s.thread.is_alive()]
        self._health.lost(self._clock(), "the source does not answer")
        if len(self._abandoned) >= MOST_ABANDONED:
            return
        self._abandoned.append(session)
        self._end(session)
        self._session = self._started()

    def _end(self, session: _Session) -> None:
        session.over.set()
        reader = session.reader
        if reader is not None:
            reader.interrupt()

    def _started(self) -> _Session:
        session = _Session()
        name = f"tokprune-camera-{self.plan.name}"
        session.thread = Thread(target=self._run, args=(session,), name=name, daemon=True)
        session.thread.start()
        return session

    def _run(self, session: _Session) -> None:
        failures = 0
        chance = Random()
        while not session.over.is_set():
            before = self._count
            ended = self._read_once(session)
            if session.over.is_set():
                return
            if ended and not self._begins_again(session):
                return
            if ended and self.plan.loop:
                continue
            failures = 0 if self._count > before else failures
            retries = self.plan.retries_s
            rest_s = retries[min(failures, len(retries) - 1)]
            failures += 1
            if len(retries) > 1:
                rest_s *= 1 + JITTER * chance.uniform(-1, 1)
            session.over.wait(rest_s)

    def _read_once(self, session: _Session) -> bool:
        """Open the source and read until it is gone; tell whether it came to its end."""
        reader: Reader | None = None
        try:
            session.calling_s = self._clock()
            reader = self.plan.opener()
            session.calling_s = None
            session.reader = reader
            if session.over.is_set():
                return False
            with self.changed:
                self._health.opened(reader.interval_s)
            self._read_all(session, reader)
            return True
        except SourceGone as error:
            self._lost(session, str(error))
        except Exception as error:  # its text may hold an address
            self._lost(session, f"reading failed with {type(error).__name__}")
            _log.error("camera %s: %s while reading", self.plan.name, type(error).__name__)
        finally:
            session.calling_s, session.reader = None, None
            if reader is not None:
                with self.changed:
                    self._skipped += reader.skipped
                reader.close()
        return False

    def _read_all(self, session: _Session, reader: Reader) -> None:
        began_s: float | None = None
        while not session.over.is_set():
            session.calling_s = self._clock()
            grabbed = reader.read()
            session.calling_s = None
            if grabbed is None:
                self._wait_until_taken(session)
                return
            if self.plan.paced and grabbed.media_s is not None:
                began_s = self._clock() - grabbed.media_s if began_s is None else began_s
                session.over.wait(max(0.0, began_s + grabbed.media_s - self._clock()))
            self._wait_until_taken(session)
            self._hold(session, grabbed)

    def _hold(self, session: _Session, grabbed: Grabbed) -> None:
        with self.changed:
            if session.over.is_set():
                return
            now_s, wall_s = self._clock(), self._wall()
            came_s = now_s if grabbed.captured_s is None else min(grabbed.captured_s, now_s)
            wall_s -= now_s - came_s
            self._health.arrived(came_s, grabbed.plane, grabbed.media_s)
            stamp = FrameStamp(self.plan.name, self._count, came_s, wall_s, grabbed.media_s)
            self._shot = Shot(grabbed, stamp)
            self._count += 1
            self._taken = False
        self._tell()

    def _wait_until_taken(self, session: _Session) -> None:
        """Wait, where no picture may be missed, until the last one was given to somebody."""
        if self.plan.live:
            return
        with self.changed:
            while not self._taken and not session.over.is_set():
                self.changed.wait()

    def _lost(self, session: _Session, why: str) -> None:
        why = why.removeprefix(f"{self.plan.shown}: ")  # it stands before it in every message
        with self.changed:
            if session.over.is_set():
                return
            if self._health.error is None:
                _log.warning("camera %s (%s) is lost: %s", self.plan.name, self.plan.shown, why)
            self._health.lost(self._clock(), why)
        self._tell()

    def _begins_again(self, session: _Session) -> bool:
        """Decide what the end of a source means: a stream is lost by it, a file is over."""
        if self.plan.loop:
            return True
        if self.plan.live and not self.plan.paced:
            self._lost(session, "the stream has ended")
            return True
        with self.changed:
            self._health.ended(self._clock())
        self._tell()
        return False

    def _tell(self) -> None:
        with self.changed:
            self.changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
