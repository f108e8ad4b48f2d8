"""A picture of what an answer was read from."""

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from tokprune.canvas import members
from tokprune.errors import RequestInvalid
from tokprune.types import COLUMN, ROW, Answer, Array, Image

DIMMED = 0.35  # brightness of what never entered the LLM
TINT = np.asarray((255, 176, 0), np.float32)  # orange: relevance
EDGE = np.asarray((255, 255, 255), np.float32)


def overlay(image: Image, answer: Answer, *, picture: int = 0) -> UInt8[Array, "h w 3"]:
    """Draw the kept patches over a picture: the rest dimmed, the most relevant tinted orange.

    Args:
        image: the picture as it was asked about, uint8 [h, w, 3] RGB.
        answer: what `ask` returned for it.
        picture: which picture of the question this is, from 0.

    Raises:
        RequestInvalid: the answer has no such picture.
    """
    regions = [region for region in answer.regions if region.picture == picture]
    if not regions:
        count = 1 + max(region.picture for region in answer.regions)
        raise RequestInvalid(f"picture must be 0..{count - 1} for this answer, got {picture}")
    region = regions[0]
    inside = members(answer.where, region)
    row, column = answer.where[inside, ROW], answer.where[inside, COLUMN]
    kept = np.zeros((region.rows, region.columns), np.bool_)
    kept[row, column] = np.isin(inside, answer.selection.keep)
    heat = np.zeros((region.rows, region.columns), np.float32)
    if answer.selection.scores is not None:
        heat[row, column] = answer.selection.scores[inside]
    return _painted(image, kept, heat)


def _painted(
    image: Image, kept: Bool[Array, "r c"], heat: Float32[Array, "r c"]
) -> UInt8[Array, "h w 3"]:
    height, width = image.shape[:2]
    rows = _spread(kept.shape[0], height)
    columns = _spread(kept.shape[1], width)
    shown = kept[rows][:, columns]
    light = np.where(shown, 1.0, DIMMED).astype(np.float32)[..., None]
    painted: Array = image.astype(np.float32) * light
    strength = np.sqrt(heat / max(float(heat.max()), np.finfo(np.float32).tiny)) * 0.25
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
