"""Orders and lattices that cover a grid evenly, whatever the question."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Int32, Int64

from tokprune.canvas import members
from tokprune.types import COLUMN, KIND, NEWLINE, ROW, Array, Region


def coverage_order(where: Int32[Array, "n 7"], regions: tuple[Region, ...]) -> Int64[Array, " n"]:
    """Order tokens so that every prefix covers all regions evenly, each by its share of tokens.

    Newlines stand last: they cover nothing.
    """
    tokens: list[Array] = []
    depth: list[Array] = []
    for region in regions:
        inside = members(where, region)
        by_cell = np.full((region.rows, region.columns), -1, np.int64)
        by_cell[where[inside, ROW], where[inside, COLUMN]] = inside
        visited = by_cell.ravel()[farthest_point_order(region.rows, region.columns)]
        tokens.append(visited[visited >= 0])  # of a grid that is not wholly encoded, what there is
        depth.append((np.arange(len(inside)) + 0.5) / len(inside))
    order = np.argsort(np.concatenate(depth), kind="stable")
    ends = np.flatnonzero(where[:, KIND] == NEWLINE)
    return np.concatenate([np.concatenate(tokens)[order], ends])


@lru_cache(maxsize=32)
def farthest_point_order(rows: int, columns: int) -> Int64[Array, " n"]:
    """Visit cells so that each is as far as can be from all before it, from the centre on."""
    row, column = np.divmod(np.arange(rows * columns, dtype=np.float32), np.float32(columns))
    order = np.empty(rows * columns, np.int64)
    nearest = np.full(rows * columns, np.inf, np.float32)
    current = rows // 2 * columns + columns // 2
    for step in range(len(order)):
        order[step] = current
        distance = (row - row[current]) ** 2 + (column - column[current]) ** 2
        np.minimum(nearest, distance, out=nearest)
        nearest[current] = -1
        current = int(nearest.argmax())
    order.flags.writeable = False
    return order


def lattice(rows: int, columns: int, count: int) -> Int64[Array, " k"]:
    """Return `count` cells on an even two-dimensional lattice, ascending."""
    counts = line_counts(rows, columns, count)
    cells = [
        int((line + 0.5) * rows / len(counts)) * columns + even(columns, number)
        for line, number in enumerate(counts)
    ]
    return np.concatenate(cells).astype(np.int64)


def line_counts(rows: int, columns: int, count: int) -> list[int]:
    """Divide `count` cells into lines of nearly as many, as far apart as the cells in a line."""
    lines = round((count * rows / columns) ** 0.5)
    lines = min(max(lines, -(-count // columns), 1), rows, count)
    bounds = [line * count // lines for line in range(lines + 1)]
    return [end - start for start, end in pairwise(bounds)]


def even(span: int, count: int) -> Int64[Array, " k"]:
    """Return `count` of `span` places, evenly spread."""
    return ((np.arange(count) + 0.5) * span / count).astype(np.int64)


def shares(sizes: list[int], count: int) -> list[int]:
    """Split `count` in proportion to `sizes`, largest remainders first, none above its size."""
    exact = np.asarray(sizes) * (count / sum(sizes))
    parts = np.floor(exact + 1e-9).astype(np.int64)
    for index in np.argsort(parts - exact, kind="stable")[: count - int(parts.sum())]:
        parts[index] += 1
    return [int(part) for part in parts]
