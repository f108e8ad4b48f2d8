"""Tokens that are least like a few pivots."""

import numpy as np
from jaxtyping import Float, Float32, Int64

from tokprune.selectors.similarity import products
from tokprune.types import Array


def loudest(rows: Float[Array, "m d"], count: int) -> Int64[Array, " c"]:
    """Return the rows of largest L1 norm."""
    norms = np.abs(np.asarray(rows, np.float32)).sum(axis=1)
    return np.argsort(-norms, kind="stable")[:count]


def least_like(
    rows: Float32[Array, "m f"], pivots: Float32[Array, "p f"], k: int
) -> Int64[Array, " k"]:
    """Return k tokens: for each pivot in turn its share of those least similar that are left.

    Args:
        rows: of unit length.
        pivots: of unit length, one or more.
        k: of which each pivot has an even share, rounded down or up so that all together have k.
    """
    similar = products(pivots, rows)
    kept: list[Int64[Array, " c"]] = []
    for number, row in enumerate(similar):
        share = (number + 1) * k // len(pivots) - number * k // len(pivots)
        mine = np.argsort(row, kind="stable")[:share]
        similar[:, mine] = np.inf
        kept.append(mine)
    return np.concatenate(kept)
