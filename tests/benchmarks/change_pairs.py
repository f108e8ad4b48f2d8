"""Drawn pictures before and after something small has happened, as a camera would see them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from random import Random

import av
import numpy as np

from tokprune.scenes.drawing import draw_thing, shape_mask
from tokprune.scenes.painting import draw_background
from tokprune.scenes.scene import COLORS, DIGIT_PX, DIGIT_SHARE, Thing, make_scene
from tokprune.types import Array

MOVES_PX = (2, 4, 8, 14, 28)
CHANGES = (*(f"moved {px} px" for px in MOVES_PX), "appeared", "disappeared", "other colour",
           "other digit")  # fmt: skip
SIGMAS = (1.0, 2.0, 3.5, 5.0, 7.0)  # of tokprune.scenes.painting.draw_noise: 1 to 7
HARD = ("moved 1 px", "other digit of 8 px", "10 levels brighter spot of 20 px")  # no promise
FLICKER = 0.01  # brightness of a frame: so much more or less at most
SIZES_HW = ((448, 448), (672, 896), (720, 1280))
WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True)
class Room:
    """Things before a background; a clean picture of any of them is drawn alike."""

    size_hw: tuple[int, int]
    things: tuple[Thing, ...]
    seed: int

    def picture(self, things: tuple[Thing | None, ...]) -> Array:
        """Draw without noise; None is a thing that is not there."""
        rng = np.random.default_rng(self.seed)
        picture = draw_background(rng, *self.size_hw)
        for number, thing in enumerate(things):
            if thing is not None:
                draw_thing(picture, thing, np.random.default_rng((self.seed, number)))
        return picture


def make_room(chance: Random, size_hw: tuple[int, int]) -> Room:
    """Place things; one has a digit of 16 pixels."""
    height, width = size_hw
    while True:
        scene = make_scene(chance, height // 28, width // 28)
        if any(thing.digit for thing in scene.things):
            break
    radius = round(DIGIT_PX / DIGIT_SHARE)
    named = next(thing for thing in scene.things if thing.digit)
    small = replace(named, radius=radius, large=True)
    things = tuple(small if thing is named else thing for thing in scene.things)
    return Room(size_hw, things, scene.seed)


def changes(chance: Random, room: Room) -> Iterator[tuple[str, Array, Array]]:
    """Yield what happens, and the clean pictures before and after it."""
    whole = room.things
    before = room.picture(whole)
    for px in MOVES_PX:
        number = chance.randrange(len(whole))
        right, down = chance.choice(WAYS)
        thing = whole[number]
        moved = replace(thing, x=thing.x + right * px, y=thing.y + down * px)
        yield f"moved {px} px", before, room.picture(_with(whole, number, moved))
    number = chance.randrange(len(whole))
    without = room.picture(_with(whole, number, None))
    yield "appeared", without, before
    yield "disappeared", before, without
    number = chance.randrange(len(whole))
    color = chance.choice([color for color in COLORS if color != whole[number].color])
    turned = replace(whole[number], color=color, digit=whole[number].digit)
    yield "other colour", before, room.picture(_with(whole, number, turned))
    number = next(n for n, thing in enumerate(whole) if thing.digit)
    digit = chance.choice([digit for digit in "0123456789" if digit != whole[number].digit])
    other = replace(whole[number], digit=digit)
    yield "other digit", before, room.picture(_with(whole, number, other))


def hard_changes(chance: Random, room: Room) -> Iterator[tuple[str, Array, Array]]:
    """Yield the same for what is smaller or fainter."""
    number = next(n for n, thing in enumerate(room.things) if thing.digit)
    thing = room.things[number]
    right, down = chance.choice(WAYS)
    moved = replace(thing, x=thing.x + right, y=thing.y + down)
    before = room.picture(room.things)
    yield HARD[0], before, room.picture(_with(room.things, number, moved))
    small = replace(thing, radius=round(8 / DIGIT_SHARE))
    digit = chance.choice([digit for digit in "0123456789" if digit != thing.digit])
    two = (_with(room.things, number, replace(small, digit=each)) for each in (thing.digit, digit))
    first, second = (room.picture(things) for things in two)
    yield HARD[1], first, second
    spot = shape_mask("circle", 10, 0)
    height, width = room.size_hw
    y, x = chance.randrange(height - len(spot)), chance.randrange(width - len(spot))
    brighter = before.copy()
    brighter[y : y + len(spot), x : x + len(spot)] += 10 * spot[..., None]
    yield HARD[2], before, brighter


def _with(things: tuple[Thing, ...], number: int, thing: Thing | None) -> tuple[Thing | None, ...]:
    return tuple(thing if n == number else other for n, other in enumerate(things))


class Camera:
    """Noise of its own in every frame, and light that flickers."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._noise = self._rng.standard_normal((1800, 2600, 3), np.float32)

    def shot(self, clean: Array, sigma: float, flicker: float = FLICKER) -> Array:
        """Return a clean picture as the camera sees it."""
        height, width = clean.shape[:2]
        y = int(self._rng.integers(len(self._noise) - height + 1))
        x = int(self._rng.integers(self._noise.shape[1] - width + 1))
        gain = np.float32(self._rng.uniform(1 - flicker, 1 + flicker))
        noisy = clean * gain + self._noise[y : y + height, x : x + width] * np.float32(sigma)
        return noisy.clip(0, 255).astype(np.uint8)


def coded(frames: Sequence[Array], bits_per_s: int, *, fps: int = 30) -> list[Array]:
    """Return frames as they come out of an H.264 stream, a key frame a second."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", bits_per_s
        stream.options = {"preset": "veryfast", "tune": "zerolatency", "g": str(fps)}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
