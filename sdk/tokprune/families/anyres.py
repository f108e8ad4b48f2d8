"""Pictures of any resolution as square tiles, and how rows of tiles become tokens of a picture.

Follows transformers' LlavaOnevisionImageProcessorPil, LlavaOnevisionModel.pack_image_features and
LlavaOnevisionModel.apply_pooling (5.23).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from tokprune.types import (
    COLUMN,
    FRAME,
    KIND,
    NEWLINE,
    PICTURE,
    ROW,
    SCALE,
    TILE,
    WHOLE,
    Array,
    Region,
)

SCALED_FROM = 1.1  # a grid of crops is scaled down where its side is that much above the bound
CROPS = 1  # beside WHOLE, what a picture's tokens show: its region's tile and their scale


class Hw(NamedTuple):
    """A size."""

    height: int
    width: int


@dataclass(frozen=True)
class Tiler:
    """How one checkpoint cuts pictures. Its encoder gives a tile's tokens, then one newline."""

    tile_px: int
    side: int  # of a tile, in vision tokens
    pinpoints: tuple[Hw, ...]  # pixels that a picture may be fitted into, in multiples of a tile
    most_tiles: int  # area of the grid of crops, above which it is scaled down

    @property
    def newline(self) -> int:
        """Its row in the encoder's output: that of the first tile, for all are equal."""
        return self.side**2

    def crops(self, size: Hw) -> Hw:
        """Return rows and columns of the tiles that a picture of `size` pixels is cut into."""
        fit = best_resolution(size, self.pinpoints)
        return Hw(fit.height // self.tile_px, fit.width // self.tile_px)

    def cells(self, first: int, rows: int = 1, columns: int = 1) -> Int64[Array, "_ _"]:
        """Return the encoder's rows that show a grid of tiles, the first one's number given."""
        row, column = np.indices((rows * self.side, columns * self.side))
        tile = first + row // self.side * columns + column // self.side
        return tile * (self.newline + 1) + row % self.side * self.side + column % self.side


class Tokens(NamedTuple):
    """Vision tokens as weighted sums of rows of the encoder's output."""

    rows: Int64[Array, "m taps"]
    weights: Float32[Array, "m taps"]
    where: Int32[Array, "m 7"]


@dataclass(frozen=True)
class Layout:
    """All vision tokens of a picture or video, in the LLM's order."""

    tokens: Tokens
    regions: tuple[Region, ...]
    tile_rows: int  # of the encoder's output

    def pack(self, outputs: list[Array]) -> Array:
        """Return the embeddings. Each output holds some tiles [t, side * side + 1, d]."""
        encoded = np.concatenate([np.reshape(each, (-1, each.shape[-1])) for each in outputs])
        rows, weights, _ = self.tokens
        packed = encoded[rows[:, 0]]
        if rows.shape[1] == 1:
            return packed
        packed *= weights[:, :1]
        for tap in range(1, rows.shape[1]):
            packed += encoded[rows[:, tap]] * weights[:, tap, None]
        return packed

    def tiles(self, count: int) -> Bool[Array, "m t"]:
        """Return which of `count` tiles each token is made of; a newline of none."""
        rows, weights, where = self.tokens
        made = np.zeros((len(rows), count), np.bool_)
        patch = where[:, KIND] != NEWLINE
        for tap in range(rows.shape[1]):
            used = np.flatnonzero(patch & (weights[:, tap] > 0))
            made[used, rows[used, tap] // self.tile_rows] = True
        return made


def best_resolution(size: Hw, pinpoints: Sequence[Hw]) -> Hw:
    """Return the pinpoint that keeps most of a picture's pixels, and of those the smallest."""

    def merit(pinpoint: Hw) -> tuple[int, int]:
        scale = min(pinpoint.width / size.width, pinpoint.height / size.height)
        shown = int(size.width * scale) * int(size.height * scale)
        kept = min(shown, size.width * size.height)
        return kept, kept - pinpoint.width * pinpoint.height

    return max(pinpoints, key=merit)  # the first of equal ones


def fitted(size: Hw, target: Hw) -> Hw:
    """Return the largest size of the same aspect within `target`, in pixels."""
    across, down = target.width / size.width, target.height / size.height
    if across < down:
        return Hw(min(ceil(size.height * across), target.height), target.width)
    return Hw(target.height, min(ceil(size.width * down), target.width))


def alone(tiler: Tiler, picture: int, size: Hw) -> Layout:
    """Lay out a prompt's only picture: the whole, then a grid of crops with newlines."""
    crops = tiler.crops(size)
    cells = unpadded(tiler.cells(1, *crops), size)
    height, width = bounded(Hw(*cells.shape), tiler)
    whole = Region(picture, 0, WHOLE, tiler.side, tiler.side)
    fine = Region(picture, 0, CROPS, height, width)
    return _layout(
        tiler,
        [
            _tokens(_single(tiler.cells(0)), whole),
            _tokens(_resized(cells, height, width), fine, tiler.newline),
        ],
        [whole, fine],
    )


def among_others(tiler: Tiler, picture: int) -> Layout:
    """Lay out one of several pictures: one tile, then a newline."""
    whole = Region(picture, 0, WHOLE, tiler.side, tiler.side)
    return _layout(tiler, [_tokens(_single(tiler.cells(0)), whole), _end(tiler, whole)], [whole])


def film(tiler: Tiler, video: int, frames: int) -> Layout:
    """Lay out a video: every frame pooled to half a tile's side, then one newline."""
    side = ceil(tiler.side / 2)
    regions = [Region(video, frame, WHOLE, side, side) for frame in range(frames)]
    pooled = [
        _tokens(_resized(tiler.cells(frame), side, side), region)
        for frame, region in enumerate(regions)
    ]
    return _layout(tiler, [*pooled, _end(tiler, regions[-1])], regions)


def unpadded(cells: Int64[Array, "_ _"], size: Hw) -> Int64[Array, "_ _"]:
    """Cut off what lies beyond a picture of `size` pixels that was fitted into these cells."""
    rows, columns = cells.shape
    if size.width / size.height > columns / rows:
        inner = int(round(size.height * (columns / size.width), 7))
        margin = (rows - inner) // 2
        return cells[margin : rows - margin]
    inner = int(round(size.width * (rows / size.height), 7))
    margin = (columns - inner) // 2
    return cells[:, margin : columns - margin]


def bounded(grid: Hw, tiler: Tiler) -> Hw:
    """Return the size of a grid of crops that is no larger than its bound, nearly."""
    ratio = sqrt(grid.height * grid.width / (tiler.most_tiles * tiler.side**2))
    if ratio <= SCALED_FROM:
        return grid
    return Hw(int(grid.height // ratio), int(grid.width // ratio))


class _Grid(NamedTuple):
    rows: Int64[Array, "r c taps"]
    weights: Float32[Array, "r c taps"]


def _single(cells: Int64[Array, "r c"]) -> _Grid:
    return _Grid(cells[..., None], np.ones((*cells.shape, 1), np.float32))


def _resized(cells: Int64[Array, "_ _"], height: int, width: int) -> _Grid:
    """Interpolate as torch's `interpolate(mode="bilinear")` does: four taps, no antialiasing."""
    if cells.shape == (height, width):
        return _single(cells)
    top, bottom, down = _between(cells.shape[0], height)
    left, right, across = _between(cells.shape[1], width)
    corners = [(a, b) for a in (top, bottom) for b in (left, right)]
    shares = [(a, b) for a in (1 - down, down) for b in (1 - across, across)]
    return _Grid(
        np.stack([cells[np.ix_(a, b)] for a, b in corners], axis=-1),
        np.stack([a[:, None] * b for a, b in shares], axis=-1),
    )


def _between(size: int, count: int) -> tuple[Array, Array, Float32[Array, " count"]]:
    """Return each of `count` places' two neighbours of `size` cells, and the second's share."""
    step = np.float32(size / count)
    place = np.maximum((np.arange(count, dtype=np.float32) + 0.5) * step - 0.5, 0)
    low = np.minimum(place.astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32)


def _tokens(grid: _Grid, region: Region, newline: int | None = None) -> Tokens:
    """Return the tokens of a region row by row, each row ended by a newline where one is given."""
    rows, weights = grid
    height, width, taps = rows.shape
    ends = int(newline is not None)
    where = np.zeros((height, width + ends, 7), np.int32)
    where[..., [PICTURE, FRAME, TILE, SCALE]] = (*region[:3], region.tile)
    where[..., ROW], where[..., COLUMN] = np.indices((height, width + ends))
    where[:, width:, KIND] = NEWLINE
    if newline is not None:
        rows = np.pad(rows, ((0, 0), (0, 1), (0, 0)), constant_values=newline)
        weights = np.pad(weights, ((0, 0), (0, 1), (0, 0)))
        weights[:, width, 0] = 1
    flat = (np.reshape(rows, (-1, taps)), np.reshape(weights, (-1, taps)))
    return Tokens(*flat, np.reshape(where, (-1, 7)))


def _end(tiler: Tiler, region: Region) -> Tokens:
    """Return the one newline after everything: it stands at the end of the last row."""
    where = np.zeros((1, 7), np.int32)
    where[0, [PICTURE, FRAME, TILE, ROW, COLUMN, KIND]] = (
        *region[:3], region.rows - 1, region.columns, NEWLINE,
    )  # fmt: skip
    return Tokens(np.full((1, 1), tiler.newline), np.ones((1, 1), np.float32), where)


def _layout(tiler: Tiler, parts: Sequence[Tokens], regions: Sequence[Region]) -> Layout:
    """Join parts; those of fewer taps get more, of no weight. Of empty regions none is listed."""
    taps = max(part.rows.shape[1] for part in parts)
    missing = [((0, 0), (0, taps - part.rows.shape[1])) for part in parts]
    joined = Tokens(
        np.concatenate([np.pad(p.rows, m) for p, m in zip(parts, missing, strict=True)]),
        np.concatenate([np.pad(p.weights, m) for p, m in zip(parts, missing, strict=True)]),
        np.concatenate([part.where for part in parts]),
    )
    there = tuple(region for region in regions if region.rows * region.columns)
    return Layout(joined, there, tiler.newline + 1)
