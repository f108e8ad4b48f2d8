"""What each vision token shows: labels for the dense auxiliary task of the vision encoder."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from tokprune.scenes import Form, Page, Scene
from tokprune.scenes.film import DIRECTIONS, Event, Film
from tokprune.scenes.glyphs import CHARACTERS
from tokprune.scenes.pages import FIELDS
from tokprune.scenes.scene import COLORS, SHAPES, Thing
from tokprune.scenes.writing import Letter
from tokprune.types import COLUMN, FRAME, KIND, PATCH, ROW, TILE, Prepared, Region

IGNORED = -100
KINDS = (*SHAPES, "sign", "bar", "line")  # what may cover a vision token
READ = 2  # characters of a vision token that are asked for
LONGEST_TEXT = 5  # characters
# Kind, colour, size, digit, the first and the second character, the field of a form, and the
# place of the first character in its text, by which it is found again while a text is spelled.
# 0 is none.
CLASSES = (
    len(KINDS) + 1,
    len(COLORS) + 1,
    3,
    11,
    *(len(CHARACTERS) + 1,) * READ,
    len(FIELDS) + 1,
    LONGEST_TEXT + 1,
)
DIGIT, FIRST, SECOND, FIELD, ORDER = range(3, len(CLASSES))
Shown: TypeAlias = Scene | Film | Page
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


def token_at(prepared: Prepared, y: int, x: int) -> int | None:
    """Which vision token of the finest grid shows a place of the picture; None: it sees none."""
    region, box = prepared.regions[-1], box_of(prepared)
    row = int((y - box.top) / box.height * region.rows)
    column = int((x - box.left) / box.width * region.columns)
    wanted = {TILE: region.tile, FRAME: region.frame, KIND: PATCH, ROW: row, COLUMN: column}
    found = np.all([prepared.where[:, name] == value for name, value in wanted.items()], axis=0)
    return int(found.argmax()) if found.any() else None


def labels_of(shown: Shown | None, prepared: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each vision token shows [n, 8], what has happened there [n, 2], where it is [n, 3]."""
    return label_tokens(shown, prepared), label_events(shown, prepared), label_places(prepared)


def label_tokens(shown: Shown | None, prepared: Prepared) -> np.ndarray:
    """Classes [n, 8] of what covers most of each vision token; IGNORED where that is not known."""
    labels = np.full((len(prepared.where), len(CLASSES)), IGNORED, np.int64)
    if shown is None:
        return labels
    box = box_of(prepared)
    for region in prepared.regions:
        grid = _region_grid(shown, prepared, region, box)
        if region.tile == 0 and prepared.regions[-1].tile:  # the crops can be read, the whole not
            grid[..., DIGIT:] = np.where(grid[..., DIGIT:] > 0, IGNORED, grid[..., DIGIT:])
        where = prepared.where
        mine = (where[:, TILE] == region.tile) & (where[:, FRAME] == region.frame)
        mine &= where[:, KIND] == PATCH
        labels[mine] = grid[where[mine, ROW], where[mine, COLUMN]]
    return labels


def _region_grid(shown: Shown, prepared: Prepared, region: Region, box: Box) -> np.ndarray:
    """Classes [rows, columns, 8] of one region."""
    rows, columns = region.rows, region.columns
    if isinstance(shown, Page):
        return label_page(shown, box, rows, columns)
    if isinstance(shown, Scene):
        grid = label_grid(shown.things, box, rows, columns)
        for sign in shown.signs:
            top, left, bottom, right = sign.box
            place = (sign.y, sign.x, (bottom - top) / 2, (right - left) / 2)
            kind = KINDS.index("sign") + 1
            _cover(grid, box, place, (kind, list(COLORS).index(sign.color) + 1))
            _read(grid, box, sign.letters)
        return grid
    grids = [
        label_grid([thing for _, thing in shown.at(frame)], box, rows, columns)
        for frame in _span(shown, prepared, region.frame)
    ]
    grid = grids[0]
    for other in grids[1:]:  # a token of several frames shows what all of them show
        grid = np.where(grid == other, grid, IGNORED)
    return grid


def label_page(page: Page, box: Box, rows: int, columns: int) -> np.ndarray:
    """Classes [rows, columns, 8] of a form or chart."""
    grid = np.zeros((rows, columns, len(CLASSES)), np.int64)
    line = KINDS.index("line") + 1
    if isinstance(page, Form):
        for field in page.fields:
            for text in (page.key_letters(field), page.value_letters(field)):
                _cover(grid, box, _around(text), (line, 0), FIELDS.index(field.key) + 1)
                _read(grid, box, text)
        return grid
    for bar in page.bars:
        color = list(COLORS).index(bar.color) + 1
        half = max(1.0, (page.base - bar.top) / 2)
        place = (bar.top + half, bar.x, half, page.bar_width / 2)
        _cover(grid, box, place, (KINDS.index("bar") + 1, color))
        text = page.number_letters(bar)
        _cover(grid, box, _around(text), (line, color))
        _read(grid, box, text)
    return grid


def _around(text: Sequence[Letter]) -> tuple[float, float, float, float]:
    """Centre and half the size of a text: y, x, height, width."""
    left, right = text[0].x - text[0].width / 2, text[-1].x + text[-1].width / 2
    return text[0].y, (left + right) / 2, text[0].height / 2, (right - left) / 2


def _cover(
    grid: np.ndarray,
    box: Box,
    place: tuple[float, float, float, float],
    classes: tuple[int, int],
    field: int = 0,
) -> None:
    """Write kind and colour into the cells that a rectangle covers; slivers are ignored."""
    rows, columns = grid.shape[:2]
    height, width = box.height / rows, box.width / columns
    y, x = np.mgrid[:rows, :columns]
    y, x = box.top + (y + 0.5) * height, box.left + (x + 0.5) * width
    down, right, half_height, half_width = place
    area = _overlap(np.abs(down - y), half_height, height)
    area = area * _overlap(np.abs(right - x), half_width, width)
    covers = area > 0
    share = area / min(height * width, 4 * half_height * half_width)
    grid[covers] = (*classes, 0, 0, 0, 0, field, 0)
    grid[covers & (share < SLIVER)] = IGNORED


def _read(grid: np.ndarray, box: Box, text: Sequence[Letter]) -> None:
    """Write the characters whose centres lie in a cell, from the left; of more, the first two."""
    rows, columns = grid.shape[:2]
    for place, letter in reversed(list(enumerate(text, start=1))):
        row = int((letter.y - box.top) / box.height * rows)
        column = int((letter.x - box.left) / box.width * columns)
        if 0 <= row < rows and 0 <= column < columns:
            cell = grid[row, column]
            cell[SECOND] = max(cell[FIRST], 0)
            cell[FIRST], cell[ORDER] = CHARACTERS.index(letter.character) + 1, place


def _span(film: Film, prepared: Prepared, number: int) -> range:
    """The frames of the film that one frame of vision tokens shows."""
    count = max(region.frame for region in prepared.regions) + 1
    each = -(-film.frames // count)
    return range(number * each, min((number + 1) * each, film.frames))


def label_events(shown: Shown | None, prepared: Prepared) -> np.ndarray:
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
    """Classes [rows, columns, 8] of what covers most of each cell; slivers are ignored."""
    height, width = box.height / rows, box.width / columns
    y, x = np.mgrid[:rows, :columns]
    y, x = box.top + (y + 0.5) * height, box.left + (x + 0.5) * width
    labels = np.zeros((rows, columns, len(CLASSES)), np.int64)
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
        color = list(COLORS).index(thing.color) + 1
        labels[covers] = (KINDS.index(thing.shape) + 1, color, size, 0, 0, 0, 0, 0)
        if thing.digit is not None:
            central = np.hypot(down, right) <= 0.64 * max(height, width)
            labels[..., DIGIT][covers] = np.where(central, int(thing.digit) + 1, IGNORED)[covers]
            labels[..., FIRST : SECOND + 1][covers] = IGNORED  # the digit's head asks for it
        labels[covers & (share < SLIVER)] = IGNORED
    return labels


def _overlap(distance: np.ndarray, half: float, side: float) -> np.ndarray:
    """Overlap of a cell with a thing along one axis, in pixels."""
    upper = np.minimum(side / 2, distance + half)
    return np.clip(upper - np.maximum(-side / 2, distance - half), 0, None)
