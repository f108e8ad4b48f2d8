"""A picture of what an answer was read from."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image as Pillow

from tokprune.canvas import members
from tokprune.errors import RequestInvalid
from tokprune.types import COLUMN, ROW, Answer, Array, Clip, Image, Images, Medium, Region

DIMMED = 0.35  # brightness of what never entered the LLM
TINT = np.asarray((255, 176, 0), np.float32)  # orange: relevance
EDGE = np.asarray((255, 255, 255), np.float32)
SHEET_PX = 1920  # widest contact sheet of a video
GAP_PX, GAP_GREY = 4, 96  # between frames


def overlay(medium: Medium, answer: Answer, *, picture: int = 0) -> UInt8[Array, "h w 3"]:
    """Draw the kept patches: the rest dimmed, the most relevant tinted orange.

    A video gives a contact sheet, in rows from left to right. Where the vision encoder takes
    several frames at once (Qwen: two), the first of them is shown. Where a picture is encoded
    at several scales, the finest grid is drawn.

    Args:
        medium: the picture or `Clip` as it was asked about; a picture is uint8 [h, w, 3] RGB.
        answer: what `ask` returned for it.
        picture: which picture or video of the question this is, from 0.

    Raises:
        RequestInvalid: the answer has no such picture, or `medium` is not the one.
    """
    regions = [region for region in answer.regions if region.picture == picture]
    if not regions:
        count = 1 + max(region.picture for region in answer.regions)
        raise RequestInvalid(f"picture must be 0..{count - 1} for this answer, got {picture}")
    frames = sorted({region.frame for region in regions})
    finest = [_finest([r for r in regions if r.frame == frame]) for frame in frames]
    layers = [_layer(answer, region) for region in finest]
    strongest = max(float(heat.max()) for _, heat in layers)  # so that frames can be compared
    images = _images(medium, len(frames), picture)
    painted = [
        _painted(image, kept, heat, strongest)
        for image, (kept, heat) in zip(images, layers, strict=True)
    ]
    return _sheet(painted) if isinstance(medium, Clip) else painted[0]


def _finest(tiles: Sequence[Region]) -> Region:
    """Return the finest of the grids that a picture or frame is encoded at."""
    return max(tiles, key=lambda region: region.rows * region.columns)


def _layer(answer: Answer, region: Region) -> tuple[Bool[Array, "r c"], Float32[Array, "r c"]]:
    """Return which cells of a grid were kept, and how relevant each is."""
    inside = members(answer.where, region)
    row, column = answer.where[inside, ROW], answer.where[inside, COLUMN]
    kept = np.zeros((region.rows, region.columns), np.bool_)
    kept[row, column] = np.isin(inside, answer.selection.keep)
    heat = np.zeros((region.rows, region.columns), np.float32)
    if answer.selection.scores is not None:
        heat[row, column] = answer.selection.scores[inside]
    return kept, heat


def _images(medium: Medium, count: int, picture: int) -> list[Image]:
    """Return the image that stands for each of the answer's `count` frames, small enough."""
    if not isinstance(medium, Clip):
        if count > 1:
            raise RequestInvalid(
                f"Number {picture} of this answer is a video of {count} frames: give its Clip, got "
                "a picture"
            )
        return [medium]
    held = len(medium.frames)
    together = ceil(held / count)  # frames that the vision encoder takes at once, but for the last
    if ceil(held / together) != count:
        raise RequestInvalid(
            f"Number {picture} of this answer has {count} frames, which a Clip of {held} cannot "
            "give: pass the one that was asked about"
        )
    height, width = medium.frames.shape[1:3]
    columns = _columns(count, height, width)
    scale = min(1.0, (SHEET_PX / columns - GAP_PX) / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    first = medium.frames[::together]
    return [np.asarray(Pillow.fromarray(frame).resize(size)) for frame in first]


def _sheet(painted: Images) -> UInt8[Array, "h w 3"]:
    """Lay out frames of one size in rows, as near to a square as can be."""
    height, width = painted[0].shape[:2]
    columns = _columns(len(painted), height, width)
    rows = ceil(len(painted) / columns)
    across, down = width + GAP_PX, height + GAP_PX
    shape = (rows * down - GAP_PX, columns * across - GAP_PX, 3)
    sheet = np.full(shape, GAP_GREY, np.uint8)
    for number, image in enumerate(painted):
        top, left = number // columns * down, number % columns * across
        sheet[top : top + height, left : left + width] = image
    return sheet


def _columns(count: int, height: int, width: int) -> int:
    return min(count, ceil((count * height / width) ** 0.5))


def _painted(
    image: Image, kept: Bool[Array, "r c"], heat: Float32[Array, "r c"], strongest: float
) -> UInt8[Array, "h w 3"]:
    height, width = image.shape[:2]
    rows = _spread(kept.shape[0], height)
    columns = _spread(kept.shape[1], width)
    shown = kept[rows][:, columns]
    light = np.where(shown, 1.0, DIMMED).astype(np.float32)[..., None]
    painted: Array = image.astype(np.float32) * light
    strength = np.sqrt(heat / max(strongest, np.finfo(np.float32).tiny)) * 0.25
    tint = (strength[rows][:, columns] * shown)[..., None]
    painted = painted * (1 - tint) + TINT * tint
    edge = np.zeros((height, width), np.bool_)
    edge[1:] |= shown[1:] != shown[:-1]
    edge[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    painted[edge] = EDGE
    return np.rint(np.minimum(painted, 255)).astype(np.uint8)


def _spread(cells: int, pixels: int) -> Int64[Array, " p"]:
    """Return the cell that each pixel of an axis lies in."""
    return np.floor(np.linspace(0, cells, pixels, endpoint=False) + 1e-9).astype(np.int64)
