"""Even blocks of a grid, each become one token: what averaging pictures down would keep."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from tokprune.canvas import canvas, members
from tokprune.selectors.coverage import line_counts, shares
from tokprune.selectors.merging import by_place, means
from tokprune.selectors.selector import check_whole, patches_first
from tokprune.types import COLUMN, ROW, Array, First, Merged, Prompt, Ranking, VisionTokens


class Blocks(NamedTuple):
    """A grid cut into blocks, row by row."""

    centres: Int64[Array, " k"]  # the cell nearest the centre of each, the earlier of equal ones
    block: Int64[Array, " cells"]  # of each cell


@lru_cache(maxsize=64)
def even_blocks(rows: int, columns: int, count: int) -> Blocks:
    """Cut a grid into exactly so many blocks of nearly equal sides."""
    counts = line_counts(rows, columns, count)
    centres: list[int] = []
    block = np.empty((rows, columns), np.int64)
    for line, number in enumerate(counts):
        top, bottom = line * rows // len(counts), (line + 1) * rows // len(counts)
        bounds = [part * columns // number for part in range(number + 1)]
        for left, right in pairwise(bounds):
            block[top:bottom, left:right] = len(centres)
            centres.append((top + bottom - 1) // 2 * columns + (left + right - 1) // 2)
    return Blocks(np.asarray(centres, np.int64), block.ravel())


def pool(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep the mean of even blocks, of each grid by its share of tokens, at the block's centre.

    Where a budget or newlines change which cells are kept, each stands for the cells nearest it.
    """
    del prompt, first
    check_whole("pool", vision)
    grids = canvas(vision.where, vision.regions).tokens
    sizes = [region.rows * region.columns for region in vision.regions]

    def take(k: int) -> Int64[Array, " k"]:
        kept: list[Array] = [np.empty(0, np.int64)]
        for region, grid, count in zip(vision.regions, grids, shares(sizes, k), strict=True):
            if count:
                cells = even_blocks(region.rows, region.columns, count).centres
                kept.append(grid[np.divmod(cells, region.columns)])
        return np.searchsorted(own, np.concatenate(kept))

    own = np.sort(grids[grids >= 0])
    return Ranking(patches_first(vision, take), merge=lambda keep: _means(vision, keep))


def _means(vision: VisionTokens, keep: Int64[Array, " k"]) -> Merged:
    group = by_place(vision, keep)
    for region in vision.regions:
        inside = members(vision.where, region)
        mine = np.flatnonzero(np.isin(keep, inside))
        if not len(mine):
            continue
        cells = vision.where[:, ROW] * region.columns + vision.where[:, COLUMN]
        even = even_blocks(region.rows, region.columns, len(mine))
        order = np.argsort(cells[keep[mine]], kind="stable")
        if (np.sort(even.centres) == cells[keep[mine]][order]).all():
            place = np.empty(len(mine), np.int64)
            place[np.argsort(even.centres, kind="stable")] = mine[order]
            group[inside] = place[even.block[cells[inside]]]
    return means(vision, keep, group)
