"""A source whose every step a test decides."""

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, TypeAlias

import numpy as np
from stub_model import a_picture

from tokprune.camera.camera import Camera
from tokprune.camera.capture import Capture, Plan
from tokprune.camera.reading.reader import Grabbed, SourceGone
from tokprune.types import Array

END = "end"
Step: TypeAlias = "int | Array | Grabbed | BaseException | str"


def plain(value: int) -> Array:
    return np.full((8, 12, 3), value % 256, np.uint8)


def grabbed(image: Array, media_s: float | None = None) -> Grabbed:
    return Grabbed(lambda: image, image, media_s)


class Script:
    """What the source does next. `give` from the test, everything else is the camera's."""

    def __init__(self) -> None:
        self.steps: SimpleQueue[Step] = SimpleQueue()
        self.refusals: list[BaseException] = []  # of the next openings
        self.opened = self.closed = 0
        self.hang = Event()  # set: reading and opening do not return, whatever happens
        self.released = Event()
        self.hanging = 0  # calls that hang, or did

    def give(self, *steps: Step) -> None:
        for step in steps:
            self.steps.put(step)

    def wait_for_release(self) -> None:
        self.hanging += 1
        self.released.wait(60)

    def open(self) -> "ScriptedReader":
        if self.hang.is_set():
            self.wait_for_release()
        if self.refusals:
            raise self.refusals.pop(0)
        self.opened += 1
        return ScriptedReader(self)


class ScriptedReader:
    interval_s: float | None = 0.1
    skipped = 0

    def __init__(self, script: Script) -> None:
        self.script = script
        self.stopped = False

    def read(self) -> Grabbed | None:
        while not self.stopped:
            if self.script.hang.is_set():
                self.script.wait_for_release()
                return None
            try:
                step = self.script.steps.get(timeout=0.005)
            except Empty:
                continue
            match step:
                case Grabbed():
                    return step
                case BaseException():
                    raise step
                case str():
                    return None
                case int():
                    return grabbed(plain(step))
                case _:
                    return grabbed(step)
        return None

    def interrupt(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.script.closed += 1


def camera_of(script: Script, clock: Callable[[], float] | None = None, **plan: Any) -> Camera:
    """Return a camera on the script. Reconnects at once, unless told otherwise."""
    settings: dict[str, Any] = {
        "opener": script.open,
        "name": "eye",
        "shown": "script",
        "live": True,
        "retries_s": (0.001,),
        **plan,
    }
    if clock is None:
        return Camera(Capture(Plan(**settings)))
    return Camera(Capture(Plan(**settings), clock), clock=clock)


GONE = SourceGone("it was pulled out")


def until(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.001)


def shown(script: Script, camera: Camera, picture: int | Array) -> None:
    before = camera.status().frames
    script.give(a_picture(picture) if isinstance(picture, int) else picture)
    until(lambda: camera.status().frames > before)
