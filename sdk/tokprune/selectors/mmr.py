"""Important tokens that are unlike what is kept: maximal marginal relevance."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from tokprune.selectors.similarity import Columns
from tokprune.types import Array


def marginal(
    rows: Float32[Array, "m f"], importance: Float32[Array, " m"], share: float
) -> Iterator[int]:
    """Yield tokens, each of largest `share` x importance - (1 - share) x largest similarity.

    That is the similarity to those before. The first is the most important. Carbonell and
    Goldstein 1998; as a rule for vision tokens, arXiv:2602.13315.

    Args:
        rows: of unit length.
        importance: 0..1, as similarities are.
        share: of importance, 0..1.
    """
    columns = Columns(rows)
    weighted = importance * np.float32(share)
    nearest = np.full(len(rows), -np.inf, np.float32)
    gain = np.array(weighted)
    for _ in range(len(rows)):
        current = int(gain.argmax())
        yield current
        weighted[current] = gain[current] = -np.inf
        np.maximum(nearest, columns(current, gain), out=nearest)
        np.multiply(nearest, np.float32(share - 1), out=gain)
        gain += weighted
