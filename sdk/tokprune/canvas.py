"""Vision tokens as grids, for scorers that convolve over rows and columns."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from tokprune.types import COLUMN, KIND, NEWLINE, PICTURE, ROW, TILE, Array, Region


class Canvas(NamedTuple):
    """One layer a region, padded to the largest."""

    tokens: Int64[Array, "r rows columns"]  # the token in each cell, -1 where there is none
    cells: Int64[Array, " n"]  # the flat cell of each token; 0 for newlines


def follows(regions: Sequence[Region]) -> Float32[Array, " r"]:
    """Return 1 where a region is a later frame of the video that the region before it is of."""
    told = np.zeros(len(regions), np.float32)
    for number, (before, region) in enumerate(pairwise(regions), start=1):
        same = (before.picture, before.tile) == (region.picture, region.tile)
        told[number] = same and region.frame > before.frame
    return told


def members(where: Int32[Array, "n 7"], region: Region) -> Int64[Array, " m"]:
    """Return the patch tokens of one region, in the LLM's order."""
    same = (where[:, PICTURE : TILE + 1] == np.asarray(region[:3])).all(axis=1)
    return np.flatnonzero(same & (where[:, KIND] != NEWLINE))


def newlines_last(order: Int64[Array, " k"], where: Int32[Array, "n 7"]) -> Int64[Array, " k"]:
    """Put newlines behind all patches: `select` keeps them with their rows."""
    return order[np.argsort(where[order, KIND] == NEWLINE, kind="stable")]


def row_ends(where: Int32[Array, "n 7"]) -> Int64[Array, " n"]:
    """Return the newline that ends each patch token's row, -1 where none does.

    A newline ends all tokens of its picture and tile since the newline before it: a row of crops,
    or everything where there is one newline only.
    """
    ends = np.append(np.flatnonzero(where[:, KIND] == NEWLINE), -1)
    following = ends[np.searchsorted(ends[:-1], np.arange(len(where)))]
    same = (where[:, [PICTURE, TILE]] == where[following][:, [PICTURE, TILE]]).all(axis=1)
    return np.where(same & (where[:, KIND] != NEWLINE), following, -1)


def canvas(where: Int32[Array, "n 7"], regions: tuple[Region, ...]) -> Canvas:
    """Lay the tokens out on the grids of their regions."""
    rows = max(region.rows for region in regions)
    columns = max(region.columns for region in regions)
    index = np.full((len(regions), rows, columns), -1, np.int64)
    cells = np.zeros(len(where), np.int64)
    for layer, region in enumerate(regions):
        tokens = members(where, region)
        row, column = where[tokens, ROW], where[tokens, COLUMN]
        index[layer, row, column] = tokens
        cells[tokens] = (layer * rows + row) * columns + column
    return Canvas(index, cells)
