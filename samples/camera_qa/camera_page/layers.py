"""What was kept of the pictures, as the page draws it."""

from collections.abc import Sequence

import msgspec
import numpy as np

from tokprune.canvas import members
from tokprune.types import COLUMN, ROW, Answer, Region

_DIGITS = 4


class Layer(msgspec.Struct, frozen=True):
    """The finest grid of one frame. Cells are counted row by row."""

    rows: int
    columns: int
    kept: list[int]
    scores: list[float] | None  # one a cell; None where the selector gives none


def layers_of(answer: Answer) -> list[Layer]:
    """Return one layer a frame, as `tokprune.overlay` draws them."""
    frames = sorted({(region.picture, region.frame) for region in answer.regions})
    return [_layer(answer, _finest(answer.regions, frame)) for frame in frames]


def _finest(regions: Sequence[Region], frame: tuple[int, int]) -> Region:
    tiles = [region for region in regions if (region.picture, region.frame) == frame]
    return max(tiles, key=lambda region: region.rows * region.columns)


def _layer(answer: Answer, region: Region) -> Layer:
    inside = members(answer.where, region)
    cells = answer.where[inside, ROW] * region.columns + answer.where[inside, COLUMN]
    kept = sorted(cells[np.isin(inside, answer.selection.keep)].tolist())
    scores = None
    if answer.selection.scores is not None:
        flat = np.zeros(region.rows * region.columns, np.float32)
        flat[cells] = answer.selection.scores[inside]
        scores = [float(f"{value:.{_DIGITS}g}") for value in flat.tolist()]
    return Layer(region.rows, region.columns, kept, scores)
