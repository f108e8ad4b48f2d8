"""Tokens that are as unlike each other as can be: max-min diversity, greedily."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.selectors.similarity import Columns, blocks, products
from tokprune.types import Array


def max_min(rows: Float32[Array, "m f"], chosen: Int64[Array, " c"] | None = None) -> Iterator[int]:
    """Yield tokens, each the least similar to its most similar one of those before.

    Args:
        rows: of unit length.
        chosen: tokens that were chosen before; None: begin with the token that is least similar
            to its nearest neighbour.
    """
    columns, taken = Columns(rows), 0
    if chosen is None or not len(chosen):
        nearest = _nearest_neighbours(rows)
        current = int(nearest.argmin())
        yield current
        nearest = np.array(columns(current, -nearest))
        nearest[current], taken = np.inf, 1
    else:
        nearest = products(rows, rows[chosen]).max(axis=1)
        nearest[chosen], taken = np.inf, len(chosen)
    for _ in range(len(rows) - taken):
        current = int(nearest.argmin())
        yield current
        np.maximum(nearest, columns(current, -nearest), out=nearest)
        nearest[current] = np.inf


def _nearest_neighbours(rows: Float32[Array, "m f"]) -> Float32[Array, " m"]:
    """Return each token's similarity to the one most like it."""
    nearest = np.empty(len(rows), np.float32)
    for part, similar in blocks(rows):
        similar[np.arange(part.stop - part.start), np.arange(part.start, part.stop)] = -np.inf
        nearest[part] = similar.max(axis=1)
    return nearest
