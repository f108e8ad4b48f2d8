"""Drawn videos: things that move, appear, disappear or change colour before a still background."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from tokprune.scenes.drawing import draw_thing
from tokprune.scenes.painting import draw_background, draw_noise
from tokprune.scenes.scene import COLORS, TOKEN_PX, Scene, Thing, make_scene
from tokprune.types import Array

Happening = Literal["stays", "moves", "appears", "disappears", "turns"]
HAPPENINGS: tuple[Happening, ...] = ("moves", "moves", "appears", "disappears", "turns")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FEWEST, MOST = 2, 4  # things of a film
SHORTEST_WAY_PX = TOKEN_PX  # what moves goes at least so far


class Event(NamedTuple):
    """What one thing does. `start` and `stop` are the frames before and after which it does not."""

    kind: Happening
    start: int = 0
    stop: int = 0
    direction: str = ""  # of a move
    way_px: int = 0  # of a move
    color: str = ""  # that it turns


@dataclass(frozen=True)
class Film:
    """One video before it is drawn: things as the first frame would show them, and their events."""

    rows: int  # vision tokens of a frame
    columns: int
    frames: int
    things: tuple[Thing, ...]
    events: tuple[Event, ...]  # one a thing
    seed: int  # of the background

    def at(self, frame: int) -> tuple[tuple[int, Thing], ...]:
        """Return the things of one frame, each with its number."""
        shown = ((n, moved(t, e, frame)) for n, (t, e) in enumerate(self._pairs()))
        return tuple((number, thing) for number, thing in shown if thing is not None)

    def _pairs(self) -> Sequence[tuple[Thing, Event]]:
        return list(zip(self.things, self.events, strict=True))


def moved(thing: Thing, event: Event, frame: int) -> Thing | None:
    """Return a thing as one frame shows it, or None where it is not there."""
    match event.kind:
        case "appears":
            return thing if frame >= event.start else None
        case "disappears":
            return thing if frame < event.start else None
        case "turns":
            return replace(thing, color=event.color) if frame >= event.start else thing
        case "moves":
            done = min(max((frame - event.start) / (event.stop - event.start), 0.0), 1.0)
            right, down = DIRECTIONS[event.direction]
            way = round(done * event.way_px)
            return replace(thing, x=thing.x + right * way, y=thing.y + down * way)
        case "stays":
            return thing


def make_film(rng: Random, rows: int, columns: int, frames: int) -> Film:
    """Make a film in which one thing or more does something.

    Args:
        rng: source of all chance.
        rows: vision tokens of a frame (28 pixels each).
        columns: vision tokens of a frame.
        frames: 4 or more.
    """
    while True:
        scene = make_scene(rng, rows, columns)
        things = scene.things[: rng.randint(FEWEST, MOST)]
        if len(things) < FEWEST:
            continue
        starts = rng.sample(range(1, frames), min(len(things), frames - 1))  # no two at once
        busy = rng.randint(min(2, len(starts)), len(starts))
        events = [Event("stays")] * len(things)
        for number, start in zip(rng.sample(range(len(things)), busy), starts, strict=False):
            events[number] = _event(rng, scene, number, start, frames)
        film = Film(rows, columns, frames, things, tuple(events), scene.seed)
        if any(event.kind != "stays" for event in events) and _apart(film):
            return film


def _event(rng: Random, scene: Scene, number: int, start: int, frames: int) -> Event:
    thing = scene.things[number]
    kind = rng.choice(HAPPENINGS)
    if kind == "turns":
        taken = {other.color for other in scene.things if other.shape == thing.shape}
        free = [color for color in COLORS if color not in taken]
        return Event(kind, start, start, color=rng.choice(free)) if free else Event("stays")
    if kind != "moves":
        return Event(kind, start, start)
    height, width = scene.size_hw
    margin = thing.radius + 3
    rooms = {
        "left": thing.x - margin,
        "right": width - margin - thing.x,
        "up": thing.y - margin,
        "down": height - margin - thing.y,
    }
    ways = [direction for direction, room in rooms.items() if room >= SHORTEST_WAY_PX]
    if not ways:
        return Event("stays")
    direction = rng.choice(ways)
    first = rng.randint(0, frames // 3)
    last = rng.randint(frames - 1 - frames // 3, frames - 1)
    return Event(kind, first, last, direction, rng.randint(SHORTEST_WAY_PX, rooms[direction]))


def _apart(film: Film) -> bool:
    """Whether no two things ever touch, nor look the same while both are there."""
    for frame in range(film.frames):
        shown = [thing for _, thing in film.at(frame)]
        for number, one in enumerate(shown):
            for other in shown[:number]:
                gap = one.radius + other.radius + 3
                if one.name == other.name:
                    return False
                if (one.x - other.x) ** 2 + (one.y - other.y) ** 2 < gap * gap:
                    return False
    return True


def draw_film(film: Film) -> UInt8[Array, "f h w 3"]:
    """Draw all frames as RGB: one background, every frame with its own noise."""
    rng = np.random.default_rng(film.seed)
    background = draw_background(rng, film.rows * TOKEN_PX, film.columns * TOKEN_PX)
    seeds = rng.integers(2**31, size=len(film.things))  # a thing looks the same in every frame
    frames: list[Array] = []
    for frame in range(film.frames):
        picture: Array = np.array(background)
        for number, thing in film.at(frame):
            draw_thing(picture, thing, np.random.default_rng(seeds[number]))
        frames.append(draw_noise(picture, rng))
    return np.stack(frames)
