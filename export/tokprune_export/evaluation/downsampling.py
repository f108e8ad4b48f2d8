"""The baseline that needs no selector: a smaller picture, so that the encoder gives fewer tokens.

How a picture becomes smaller depends on the family. Where its encoder cannot give so few tokens,
those that it gives are averaged over cells of the grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log, sqrt
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image as Pillow

from tokprune.canvas import members
from tokprune.families import Processor
from tokprune.model import Model
from tokprune.prompting import Conversation, Shown, Turn
from tokprune.types import (
    COLUMN,
    KIND,
    NEWLINE,
    ROW,
    Array,
    Clip,
    Medium,
    Prepared,
    Prompt,
    Region,
)

How: TypeAlias = Literal["as it is", "resized", "fewer crops", "base tile", "pooled"]
MOST_STRETCH = log(1.35)  # how far a resized picture's aspect may be from its own
CROP_STEP, CROP_STEPS = 0.93, 60  # by which a picture shrinks until it has fewer crops


@dataclass(frozen=True)
class Smaller:
    """A prompt whose pictures have at most so many vision tokens, where that is possible."""

    prompt: Prompt
    prepared: tuple[Prepared, ...]
    how: How


Shrink: TypeAlias = Callable[[Model, Sequence[Medium], int], tuple[tuple[Prepared, ...], How]]


def downsampled(model: Model, media: Sequence[Medium], question: str, k: int) -> Smaller:
    """Lay out a question about smaller pictures with at most k vision tokens together.

    Every picture and every pair of frames keeps one token at least, so there may be more than k.
    """
    prepared, how = model.processor.prepare(media), "as it is"
    if _count(prepared) > k:
        prepared, how = DOWNSAMPLERS.get(model.bundle.manifest.family, pooled)(model, media, k)
    turn = Turn((*(Shown(index) for index in range(len(media))), question))
    return Smaller(model.prompt(Conversation((turn,)), prepared), prepared, how)


def resized(model: Model, media: Sequence[Medium], k: int) -> tuple[tuple[Prepared, ...], How]:
    """Resize pictures and frames to the largest grid within their share of k (bicubic)."""
    whole = model.processor.prepare(media)
    shares = shared([len(shown.where) for shown in whole], k)
    smaller = [
        _on_grid(medium, shown, share, model.processor.together)
        for medium, shown, share in zip(media, whole, shares, strict=True)
    ]
    made = model.processor.prepare(smaller)
    if _count(made) > max(k, len(media)):  # the processor enlarges what is that small
        return pooled(model, media, k)
    return made, "resized"


def fewer_crops(model: Model, media: Sequence[Medium], k: int) -> tuple[tuple[Prepared, ...], How]:
    """Cut a picture into fewer crops; then take its base tile alone, then the base pooled."""
    picture = media[0]
    if len(media) > 1 or isinstance(picture, Clip):  # these have no crops
        return pooled(model, media, k)
    base = _base_tile(model.processor.prepare(media)[0])
    sizes = _sizes(model.processor, picture.shape[0], picture.shape[1])
    fits = [count for count in sizes if len(base.where) < count <= k]
    if fits:
        return model.processor.prepare([_resize(picture, sizes[max(fits)])]), "fewer crops"
    if len(base.where) <= k:
        return (base,), "base tile"
    return (_pooled(base, k),), "pooled"


@lru_cache(maxsize=256)
def _sizes(processor: Processor, height: int, width: int) -> dict[int, tuple[int, int]]:
    """Return how large a picture of so many tokens is: width and height, the largest of each."""
    sizes: dict[int, tuple[int, int]] = {}
    for step in range(1, CROP_STEPS):
        scale = CROP_STEP**step
        size_wh = max(1, round(width * scale)), max(1, round(height * scale))
        (made,) = processor.prepare([np.zeros((size_wh[1], size_wh[0], 3), np.uint8)])
        sizes.setdefault(len(made.where), size_wh)
        if max(size_wh) <= made.calls[0]["pixel_values"].shape[-1]:
            break  # one crop from here on
    return sizes


def pooled(model: Model, media: Sequence[Medium], k: int) -> tuple[tuple[Prepared, ...], How]:
    """Average the encoder's tokens over cells of the grid. The encoder saves nothing by that.

    Where there are more frames than tokens, frames are left out evenly.
    """
    whole = model.processor.prepare(_fewer_frames(media, k, model.processor.together))
    shares = shared([len(shown.where) for shown in whole], k)
    return tuple(_pooled(s, share) for s, share in zip(whole, shares, strict=True)), "pooled"


# How the pictures of a family become smaller; those that are not named here are pooled.
DOWNSAMPLERS: dict[str, Shrink] = {
    "qwen2_vl": resized,
    "qwen2_5_vl": resized,
    "llava_onevision": fewer_crops,
    "vila": pooled,
}


def shared(counts: Sequence[int], k: int) -> list[int]:
    """Split k by size, rounded down, what is left to the first; at least one each."""
    total = sum(counts)
    shares = [max(1, k * count // total) for count in counts]
    for index in range(max(0, k - sum(shares))):
        shares[index % len(shares)] += 1
    return shares


def grid_within(rows: int, columns: int, k: int) -> tuple[int, int]:
    """Return the grid with the most cells, k at most, whose aspect is near that of the whole.

    Of equal ones the one that is stretched least; where none is near, the nearest.
    """
    shape = log(rows / columns)
    found = [(r, min(columns, k // r)) for r in range(1, min(rows, k) + 1)]
    stretch = {each: abs(log(each[0] / each[1]) - shape) for each in found}
    near = [each for each in found if stretch[each] <= MOST_STRETCH]
    if not near:
        return min(found, key=lambda each: (stretch[each], -each[0] * each[1]))
    return max(near, key=lambda each: (each[0] * each[1], -stretch[each]))


def _count(prepared: Sequence[Prepared]) -> int:
    return sum(len(shown.where) for shown in prepared)


def _resize(image: Array, size_wh: tuple[int, int]) -> Array:
    return np.asarray(Pillow.fromarray(image).resize(size_wh, Pillow.Resampling.BICUBIC))


def _on_grid(medium: Medium, shown: Prepared, k: int, together: int) -> Medium:
    """Resize a picture, or every frame of a video, to a grid of fewer tokens."""
    first, frames = shown.regions[0], len(shown.regions)
    if isinstance(medium, Clip) and frames > k:
        medium = _some_frames(medium, k * together)
        frames = k
    rows, columns = grid_within(first.rows, first.columns, max(1, k // frames))
    values = shown.calls[0]["pixel_values"][0].size  # of a frame, repeated as the encoder wants it
    side_px = round(sqrt(values / (3 * together * first.rows * first.columns)))
    size_wh = (columns * side_px, rows * side_px)
    if not isinstance(medium, Clip):
        return _resize(medium, size_wh)
    return replace(medium, frames=np.stack([_resize(frame, size_wh) for frame in medium.frames]))


def _some_frames(clip: Clip, count: int) -> Clip:
    """Leave frames out evenly; the rate is that of those which stay."""
    kept = np.linspace(0, len(clip.frames) - 1, count).round().astype(int)
    return replace(clip, frames=clip.frames[kept], fps=clip.fps * count / len(clip.frames))


def _fewer_frames(media: Sequence[Medium], k: int, together: int) -> list[Medium]:
    """Leave frames out where there are more of them (or pairs) than tokens."""
    counts = [-(-len(m.frames) // together) if isinstance(m, Clip) else 1 for m in media]
    shares = shared(counts, k)
    return [
        _some_frames(medium, share * together)
        if isinstance(medium, Clip) and count > share
        else medium
        for medium, count, share in zip(media, counts, shares, strict=True)
    ]


def _base_tile(shown: Prepared) -> Prepared:
    """Return a picture as its first tile and a newline, as one of several pictures has it."""
    region = shown.regions[0]
    cells = region.rows * region.columns
    where = np.array(shown.where[: cells + 1])
    where[cells] = where[cells - 1]
    where[cells, COLUMN], where[cells, KIND] = region.columns, NEWLINE
    return replace(
        shown,
        calls=({"pixel_values": shown.calls[0]["pixel_values"][:1]},),
        pack=lambda outputs: outputs[0][0],
        where=where,
        regions=(region,),
        units=np.ones((len(where), 1), np.bool_),
    )


def _pooled(shown: Prepared, k: int) -> Prepared:
    """Average the tokens of every region over a grid of at most k cells together."""
    newlines = np.flatnonzero(shown.where[:, KIND] == NEWLINE)  # here one, after everything
    each = max(1, (k - len(newlines)) // len(shown.regions))
    regions: list[Region] = []
    weights: list[Array] = []
    where: list[Array] = []
    for region in shown.regions:
        rows, columns = grid_within(
            region.rows, region.columns, min(each, region.rows * region.columns)
        )
        regions.append(region._replace(rows=rows, columns=columns))
        means, cells = _cells(shown, region, rows, columns)
        weights.append(means)
        where.append(cells)
    if len(newlines) and k > sum(map(len, where)):
        end = where[-1][-1].copy()
        end[ROW], end[COLUMN], end[KIND] = regions[-1].rows - 1, regions[-1].columns, NEWLINE
        where.append(end[None])
        weights.append(np.eye(len(shown.where), dtype=np.float32)[newlines[-1:]])
    mixed = np.concatenate(weights)
    return replace(
        shown,
        pack=lambda outputs: mixed @ shown.pack(outputs),
        where=np.concatenate(where),
        regions=tuple(regions),
        units=(mixed > 0).astype(np.float32) @ shown.units.astype(np.float32) > 0,
    )


def _cells(
    shown: Prepared, region: Region, rows: int, columns: int
) -> tuple[Float32[Array, "c n"], Int32[Array, "c 7"]]:
    """Return each cell's mean over the tokens of a region, and its place, in the LLM's order."""
    inside = members(shown.where, region)
    tokens = shown.where[inside]
    row, column = (
        tokens[:, ROW] * rows // region.rows,
        tokens[:, COLUMN] * columns // region.columns,
    )
    cells, first, cell = np.unique(row * columns + column, return_index=True, return_inverse=True)
    order = np.argsort(first)  # VILA's tokens run down the columns
    means = np.zeros((len(cells), len(shown.where)), np.float32)
    means[cell, inside] = 1
    means /= means.sum(axis=1, keepdims=True)
    where = np.zeros((len(cells), 7), np.int32)
    where[:] = tokens[0]
    where[:, ROW], where[:, COLUMN] = np.divmod(cells, columns)
    return means[order], where[order]
