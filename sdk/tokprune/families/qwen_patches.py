"""Where patches lie in the pictures and videos of Qwen's models, and how some are shown alone.

Their vision encoders are told the place of every patch, so they take any of them.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.looking.parts import apart
from tokprune.types import (
    COLUMN,
    FRAME,
    PICTURE,
    ROW,
    Array,
    Feeds,
    MediumKind,
    Prepared,
    Region,
)


def patch_positions(rows: int, columns: int, merge: int) -> Int64[Array, "p 2"]:
    """Row and column of every patch, those of a vision token together. `rows` counts these."""
    grid = np.moveaxis(np.indices((rows * merge, columns * merge)), 0, -1)
    units = np.swapaxes(np.reshape(grid, (rows, merge, columns, merge, 2)), 1, 2)
    return np.ascontiguousarray(np.reshape(units, (-1, 2)), np.int64)


def from_patches(
    kind: MediumKind,
    index: int,
    patches: Float32[Array, "f p c"],
    grid: tuple[int, int],
    merge: int,
    size_hw: tuple[int, int],
) -> Prepared:
    """Lay out patches, their temporal ones as frames. `grid` counts vision tokens."""
    rows, columns = grid
    cells, frames = rows * columns, len(patches)
    where = np.zeros((frames * cells, 7), np.int32)
    where[:, PICTURE] = index
    where[:, FRAME] = np.repeat(np.arange(frames), cells)
    where[:, ROW], where[:, COLUMN] = np.tile(np.divmod(np.arange(cells), columns), frames)
    return Prepared(
        kind=kind,
        calls=({"pixel_values": patches, "positions": patch_positions(rows, columns, merge)},),
        pack=_pack,
        where=where,
        regions=tuple(Region(index, frame, 0, rows, columns) for frame in range(frames)),
        size_hw=size_hw,
        units=where[:, FRAME, None] == np.arange(frames),
    )


def _pack(outputs: list[Array]) -> Array:
    return np.concatenate([np.reshape(tokens, (-1, tokens.shape[-1])) for tokens in outputs])


def cut(shown: Prepared, tokens: Int64[Array, " m"]) -> Prepared:
    """Show the pixels of some vision tokens alone, each at its own place: a call for each frame.

    Args:
        shown: as `from_patches` lays it out, or with a call for each frame.
        tokens: ascending.
    """
    frames = apart(shown).calls
    cells = len(shown.where) // len(frames)
    calls: list[Feeds] = []
    there: list[int] = []
    for number, frame in enumerate(frames):
        mine = tokens[tokens // cells == number] - number * cells
        if len(mine):
            patches = len(frame["positions"]) // cells
            chosen = np.ravel(mine[:, None] * patches + np.arange(patches))
            pixels = np.ascontiguousarray(frame["pixel_values"][:, chosen])
            calls.append({"pixel_values": pixels, "positions": frame["positions"][chosen]})
            there.append(number)
    where = shown.where[tokens]
    return replace(
        shown,
        calls=tuple(calls),
        where=where,
        regions=tuple(shown.regions[number] for number in there),
        units=shown.units[tokens][:, there],
        part=True,
    )
