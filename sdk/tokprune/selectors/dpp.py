"""Tokens that are good and unlike each other: a determinantal point process, greedily."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from tokprune.selectors.selector import highest
from tokprune.selectors.similarity import Columns
from tokprune.types import Array

EXHAUSTED = 1e-5  # of the largest gain, below which what is left is rounding


def most_likely(rows: Float32[Array, "m f"], quality: Float32[Array, " m"]) -> Iterator[int]:
    """Yield tokens, each raising det(diag(q) S diag(q)) of those chosen the most.

    The greedy maximum a posteriori by a Cholesky factor that grows by a row a token (Chen, Zhang
    and Zhou, arXiv:1709.05135). There are no more independent tokens than dimensions; the others
    follow by quality.

    Args:
        rows: of unit length; their products are S.
        quality: q, above 0.
    """
    columns = Columns(rows)
    gain = quality * quality * np.einsum("mf,mf->m", rows, rows)
    least = EXHAUSTED * float(gain.max(initial=0))
    factor = np.empty((64, len(rows)), np.float32)
    for step in range(len(rows)):
        current = int(gain.argmax())
        if not gain[current] > least:
            break
        yield current
        root = np.sqrt(gain[current])
        before = np.array(factor[:step, current])
        gain[current] = -np.inf
        row = columns(current, gain) * (quality * quality[current])
        row -= before @ factor[:step]
        row /= root
        if step == len(factor):
            factor = np.concatenate([factor, np.empty_like(factor)])
        factor[step] = row
        gain -= row * row
    left = highest(quality)
    yield from left[gain[left] > -np.inf].tolist()
