"""What each vision token shows: labels for the dense auxiliary task of the vision encoder."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokprune.scenes import Scene
from tokprune.scenes.film import DIRECTIONS, Event, Film
from tokprune.scenes.scene import COLORS, SHAPES, Thing
from tokprune.types import COLUMN, FRAME, KIND, PATCH, ROW, TILE, Prepared

IGNORED = -100
CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, 3, 11)  # shape, colour, size, digit; 0 is none
EVENTS = ("stays", "appears", "disappears", "turns", *DIRECTIONS)
LONGEST_FILM, LONGEST_SIDE = 16, 24  # frames, vision tokens
PLACE = (LONGEST_FILM, LONGEST_SIDE, LONGEST_SIDE)  # frame, row and column of a token
EVENT = (len(EVENTS), LONGEST_FILM)  # what a thing does, and from which frame on
SLIVER = 0.12  # of a cell or a thing: less than that is nothing to learn from


class Box(NamedTuple):
    """What part of a picture a grid of vision tokens covers, in pixels; it may stick out."""

    top: float
    left: float
    height: float
    width: float


def box_of(prepared: Prepared) -> Box:
    """Whole pictures, but a family may put one of several in the middle of a square.

    LLaVA-OneVision does; such a picture is one grid and a newline.
    """
    height, width = prepared.size_hw
    newlines = int((prepared.where[:, KIND] != PATCH).sum())
    if prepared.kind == "picture" and len(prepared.regions) == newlines == 1:
        side = max(height, width)
        return Box((height - side) / 2, (width - side) / 2, side, side)
    return Box(0, 0, height, width)


def labels_of(
    shown: Scene | Film | None, prepared: Prepared
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each vision token shows [n, 4], what has happened there [n, 2], where it is [n, 3]."""
    return label_tokens(shown, prepared), label_events(shown, prepared), label_places(prepared)


def label_tokens(shown: Scene | Film | None, prepared: Prepared) -> np.ndarray:
    """Classes [n, 4] of what covers most of each vision token; IGNORED where that is not known."""
    labels = np.full((len(prepared.where), 4), IGNORED, np.int64)
    if shown is None:
        return labels
    box = box_of(prepared)
    for region in prepared.regions:
        frames = _frames(shown, prepared, region.frame)
        grids = [label_grid(things, box, region.rows, region.columns) for things in frames]
        grid = grids[0]
        for other in grids[1:]:  # a token of several frames shows what all of them show
            grid = np.where(grid == other, grid, IGNORED)
        if region.tile == 0 and prepared.regions[-1].tile:  # the crops show digits, the whole none
            grid[..., 3] = np.where(grid[..., 3] > 0, IGNORED, grid[..., 3])
        where = prepared.where
        mine = (where[:, TILE] == region.tile) & (where[:, FRAME] == region.frame)
        mine &= where[:, KIND] == PATCH
        labels[mine] = grid[where[mine, ROW], where[mine, COLUMN]]
    return labels


def _frames(shown: Scene | Film, prepared: Prepared, number: int) -> list[Sequence[Thing]]:
    """The things of each frame that a region shows."""
    if isinstance(shown, Scene):
        return [shown.things]
    frames = _span(shown, prepared, number)
    return [[thing for _, thing in shown.at(frame)] for frame in frames]


def _span(film: Film, prepared: Prepared, number: int) -> range:
    """The frames of the film that one frame of vision tokens shows."""
    count = max(region.frame for region in prepared.regions) + 1
    each = -(-film.frames // count)
    return range(number * each, min((number + 1) * each, film.frames))


def label_events(shown: Scene | Film | None, prepared: Prepared) -> np.ndarray:
    """What the thing in each vision token of a film has done so far, and since which frame [n, 2].

    IGNORED elsewhere. Where a thing was and is no more, that is what it has done.
    """
    labels = np.full((len(prepared.where), 2), IGNORED, np.int64)
    if not isinstance(shown, Film):
        return labels
    box = box_of(prepared)
    for region in prepared.regions:
        frame = _span(shown, prepared, region.frame)[-1]
        present = dict(shown.at(frame))
        gone = [
            n for n, e in enumerate(shown.events) if e.kind == "disappears" and n not in present
        ]
        grid = np.full((region.rows, region.columns, 2), IGNORED, np.int64)
        for number in (*gone, *present):
            thing = present.get(number, shown.things[number])
            covered = label_grid([thing], box, region.rows, region.columns)[..., 0] > 0
            grid[covered] = _so_far(shown.events[number], frame)
        where = prepared.where
        mine = (where[:, TILE] == region.tile) & (where[:, FRAME] == region.frame)
        mine &= where[:, KIND] == PATCH
        labels[mine] = grid[where[mine, ROW], where[mine, COLUMN]]
    return labels


def label_places(prepared: Prepared) -> np.ndarray:
    """Frame, row and column [n, 3] of every vision token; IGNORED for newlines."""
    places = prepared.where[:, [FRAME, ROW, COLUMN]].astype(np.int64)
    places = np.minimum(places, np.array(PLACE) - 1)
    places[prepared.where[:, KIND] != PATCH] = IGNORED
    return places


def _so_far(event: Event, frame: int) -> tuple[int, int]:
    begun = frame > event.start if event.kind == "moves" else frame >= event.start
    if not begun or event.kind == "stays":
        return EVENTS.index("stays"), IGNORED
    return EVENTS.index(event.direction or event.kind), min(event.start, LONGEST_FILM - 1)


def label_grid(things: Sequence[Thing], box: Box, rows: int, columns: int) -> np.ndarray:
    """Classes [rows, columns, 4] of what covers most of each cell; slivers are ignored."""
    height, width = box.height / rows, box.width / columns
    y, x = np.mgrid[:rows, :columns]
    y, x = box.top + (y + 0.5) * height, box.left + (x + 0.5) * width
    labels = np.zeros((rows, columns, 4), np.int64)
    most = np.zeros((rows, columns))
    both_sizes = len({thing.large for thing in things}) == 2
    for thing in things:
        down, right = np.abs(thing.y - y), np.abs(thing.x - x)
        half = thing.radius * 0.75
        area = _overlap(down, half, height) * _overlap(right, half, width)
        covers = area > most
        most = np.maximum(most, area)
        share = area / min(height * width, (2 * half) ** 2)
        size = 1 + thing.large if both_sizes else IGNORED
        classes = [SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1, size, 0]
        labels[covers] = classes
        if thing.digit is not None:
            central = np.hypot(down, right) <= 0.64 * max(height, width)
            labels[..., 3][covers] = np.where(central, int(thing.digit) + 1, IGNORED)[covers]
        labels[covers & (share < SLIVER)] = IGNORED
    return labels


def _overlap(distance: np.ndarray, half: float, side: float) -> np.ndarray:
    """Overlap of a cell with a thing along one axis, in pixels."""
    upper = np.minimum(side / 2, distance + half)
    return np.clip(upper - np.maximum(-side / 2, distance - half), 0, None)
