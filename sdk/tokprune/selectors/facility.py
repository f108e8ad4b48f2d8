"""Tokens that stand for all others: facility location, weighted, greedily."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

import numpy as np
from jaxtyping import Float32

from tokprune.selectors.similarity import blocks
from tokprune.types import Array


def covering_most(rows: Float32[Array, "m f"], weights: Float32[Array, " m"]) -> Iterator[int]:
    """Yield tokens v, each of largest w_v x sum over u of max(0, S_uv - m_u).

    m_u is the largest similarity of u to those before, 0 where there is none. A gain never grows,
    so one that was computed earlier is a bound, and few are computed again (Minoux 1978). Holds
    all similarities: 4 bytes for each pair of tokens.

    Args:
        rows: of unit length; their products are S.
        weights: 0 or more.
    """
    similar = np.empty((len(rows), len(rows)), np.float32)
    for part, found in blocks(rows):
        np.maximum(found, 0, out=similar[part])
    covered = np.zeros(len(rows), np.float32)
    more = np.empty_like(covered)

    def gain(token: int) -> float:
        np.subtract(similar[token], covered, out=more)
        np.maximum(more, 0, out=more)
        return float(weights[token] * more.sum())

    bounds = [(-gain(token), token, 0) for token in range(len(rows))]
    heapify(bounds)
    for step in range(len(rows)):
        while bounds[0][2] != step:
            _, token, _ = heappop(bounds)
            heappush(bounds, (-gain(token), token, step))
        _, token, _ = heappop(bounds)
        yield token
        np.maximum(covered, similar[token], out=covered)
