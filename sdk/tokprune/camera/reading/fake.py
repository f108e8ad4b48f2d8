"""A camera that is not there: drawn scenes whose things move, and failures at given times.

`fake://scenes?seed=7&fps=15&motion=40` draws what `tokprune.scenes` draws, each thing circling in
the room that it has. Equal addresses show equal pictures at equal times.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import cos, sin
from random import Random
from threading import Event
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from tokprune.camera.reading.reader import Grabbed, Opener, SourceGone
from tokprune.errors import RequestInvalid, unknown
from tokprune.scenes.drawing import draw_thing
from tokprune.scenes.painting import draw_background, draw_noise
from tokprune.scenes.scene import TOKEN_PX, Scene, Thing, make_scene
from tokprune.types import Array, Image

PREFIX = "fake://"
SMALLEST_PX, LARGEST_PX = 4 * TOKEN_PX, 22 * TOKEN_PX
WIDEST_ORBIT_PX = 60.0
FASTEST_FPS = 240.0


class Failure(NamedTuple):
    """When something goes wrong, in seconds since the camera was opened, and for how long."""

    at_s: float
    for_s: float


class Resize(NamedTuple):
    """When pictures have another size, and which."""

    at_s: float
    for_s: float
    size_wh: tuple[int, int]


@dataclass(frozen=True)
class FakeSettings:
    """What a `fake://` address says."""

    seed: int = 0
    fps: float = 15.0
    motion: float = 20.0  # pixels a second
    size: tuple[int, int] = (448, 448)  # width and height in pixels, multiples of 28
    noise: float = 2.0  # standard deviation of the camera's noise, of 255
    change: float = 0.0  # another scene every so many seconds; 0: never
    freeze: Failure | None = None  # one picture is repeated
    drop: Failure | None = None  # as if it were unplugged
    stall: Failure | None = None  # reading does not return
    resize: Resize | None = None
    every: float = 0.0  # failures come again after so many seconds; 0: never


def fake_settings(address: str) -> FakeSettings:
    """Read an address such as "fake://scenes?seed=7&fps=30&drop=5:2".

    Raises:
        RequestInvalid: it says something else than `FakeSettings` has.
    """
    what, _, query = address.removeprefix(PREFIX).partition("?")
    if what.strip("/") != "scenes":
        raise RequestInvalid(unknown("fake camera", what, ["scenes"]))
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        message = f"Expected fake://scenes?NAME=VALUE&NAME=VALUE, got {query!r:.200}"
        raise RequestInvalid(message) from None
    given: dict[str, Any] = {}
    known = [field.name for field in fields(FakeSettings)]
    for name, value in pairs:
        if name not in known:
            raise RequestInvalid(unknown("option of fake://scenes", name, known))
        given[name] = _value(name, value)
    return _checked(FakeSettings(**given))


def fake_opener(settings: FakeSettings, clock: Callable[[], float] = monotonic) -> Opener:
    """Return what opens the camera. Its time begins now, and goes on while it is unplugged."""
    began_s = clock()

    def elapsed_s() -> float:
        return clock() - began_s

    return lambda: FakeReader(settings, elapsed_s)


class FakeReader:
    """Draws what the camera would see."""

    skipped = 0

    def __init__(self, settings: FakeSettings, elapsed_s: Callable[[], float]) -> None:
        """Open the camera.

        Raises:
            SourceGone: it is unplugged now.
        """
        self.interval_s: float | None = 1 / settings.fps
        self._settings = settings
        self._elapsed_s = elapsed_s
        self._stopped = Event()
        self._number = int(elapsed_s() * settings.fps)
        self._view = _View(settings, 0, settings.size)
        self._last: Image | None = None
        self._check_plugged()

    def read(self) -> Grabbed | None:
        """Wait until the next picture is due, and draw it."""
        settings = self._settings
        self._wait_out_stall()
        self._number += 1
        now_s = self._elapsed_s()
        if self._number / settings.fps < now_s - 1:  # a suspended machine does not catch up
            self._number = int(now_s * settings.fps)
        self._stopped.wait(max(0.0, self._number / settings.fps - now_s))
        if self._stopped.is_set():
            return None
        self._wait_out_stall()
        self._check_plugged()
        now_s = self._elapsed_s()
        if self._last is None or not within(settings.freeze, now_s, settings.every):
            self._last = self._drawn(now_s)
        image = self._last
        return Grabbed(lambda: image, image)

    def interrupt(self) -> None:
        """End a `read` that waits."""
        self._stopped.set()

    def close(self) -> None:
        """Free nothing."""

    def _drawn(self, now_s: float) -> Image:
        settings = self._settings
        resized = settings.resize is not None and within(settings.resize, now_s, settings.every)
        size = settings.resize.size_wh if settings.resize and resized else settings.size
        turn = int(now_s / settings.change) if settings.change else 0
        if (self._view.turn, self._view.size_wh) != (turn, size):
            self._view = _View(settings, turn, size)
        return self._view.at(now_s, self._number)

    def _check_plugged(self) -> None:
        if within(self._settings.drop, self._elapsed_s(), self._settings.every):
            raise SourceGone("it is unplugged")

    def _wait_out_stall(self) -> None:
        while within(self._settings.stall, self._elapsed_s(), self._settings.every):
            if self._stopped.wait(0.01):
                return


def within(failure: "Failure | Resize | None", now_s: float, every_s: float) -> bool:
    """Tell whether a failure lasts at a moment."""
    if failure is None:
        return False
    phase = now_s % every_s if every_s else now_s
    return failure[0] <= phase < failure[0] + failure[1]


class _View:
    """One drawn scene, its things circling."""

    def __init__(self, settings: FakeSettings, turn: int, size_wh: tuple[int, int]) -> None:
        self.turn, self.size_wh = turn, size_wh
        self._settings = settings
        rows, columns = size_wh[1] // TOKEN_PX, size_wh[0] // TOKEN_PX
        self._scene = make_scene(Random(f"{settings.seed} {turn}"), rows, columns)
        self._rooms = [_room(self._scene, number) for number in range(len(self._scene.things))]
        rng = np.random.default_rng(self._scene.seed)
        self._background = draw_background(rng, *self._scene.size_hw)
        self._seeds = rng.integers(2**31, size=len(self._scene.things))

    def at(self, now_s: float, number: int) -> Image:
        """Draw the scene at a moment; the noise is that of picture `number`."""
        picture: Array = np.array(self._background)
        for index, thing in enumerate(self._scene.things):
            rng = np.random.default_rng(self._seeds[index])  # a thing keeps its looks
            draw_thing(picture, self._moved(index, thing, now_s), rng)
        noise = np.random.default_rng((self._settings.seed, number))
        image = draw_noise(picture, noise, strength=self._settings.noise)
        image.flags.writeable = False
        return image

    def _moved(self, index: int, thing: Thing, now_s: float) -> Thing:
        room = self._rooms[index]
        if room < 1 or not self._settings.motion:
            return thing
        angle = self._settings.motion / room * now_s * (1 if index % 2 else -1) + index
        return replace(
            thing, x=thing.x + round(room * cos(angle)), y=thing.y + round(room * sin(angle))
        )


def _room(scene: Scene, number: int) -> float:
    """Return how far a thing can go from its place, whatever the others do."""
    thing = scene.things[number]
    height, width = scene.size_hw
    margin = thing.radius + 3
    walls = min(thing.x, thing.y, width - thing.x, height - thing.y) - margin
    gaps = [
        (((thing.x - o.x) ** 2 + (thing.y - o.y) ** 2) ** 0.5 - thing.radius - o.radius - 3) / 2
        for o in scene.things
        if o is not thing
    ]
    return max(0.0, min(WIDEST_ORBIT_PX, float(walls), *gaps))


def _value(name: str, text: str) -> object:
    try:
        match name:
            case "seed":
                return int(text)
            case "size":
                return _size(text)
            case "freeze" | "drop" | "stall":
                at, span = text.split(":")
                return Failure(_number(at), _number(span))
            case "resize":
                at, span, size = text.split(":")
                return Resize(_number(at), _number(span), _size(size))
            case _:
                return _number(text)
    except ValueError:
        shapes = {
            "size": "WIDTHxHEIGHT",
            "resize": "AT:FOR:WIDTHxHEIGHT (seconds)",
            "seed": "a whole number",
        }
        times = dict.fromkeys(("freeze", "drop", "stall"), "AT:FOR (seconds)")
        expected = {**shapes, **times}.get(name, "a number, 0 or more")
        raise RequestInvalid(f"fake://scenes: {name} is {expected}, got {text!r:.100}") from None


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError(text)
    return value


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return width, height


def _checked(settings: FakeSettings) -> FakeSettings:
    sizes = [settings.size, *([settings.resize.size_wh] if settings.resize else [])]
    for size in sizes:
        if any(side % TOKEN_PX or not SMALLEST_PX <= side <= LARGEST_PX for side in size):
            raise RequestInvalid(
                f"fake://scenes: sides are multiples of {TOKEN_PX} from {SMALLEST_PX} to "
                f"{LARGEST_PX} pixels, got {size[0]} x {size[1]}"
            )
    if not 0 < settings.fps <= FASTEST_FPS:
        raise RequestInvalid(
            f"fake://scenes: fps must be above 0 and at most {FASTEST_FPS:g}, got {settings.fps}"
        )
    return settings
