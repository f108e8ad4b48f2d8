"""Cosine similarities of vision tokens, as far as a selection looks at them.

On a CPU the matrix of all of them is what most selectors cost. A loop that chooses one token after
another reads the columns of the chosen alone; and a fixed random projection to fewer dimensions
(Johnson-Lindenstrauss) makes each column as cheap for an LLM of any width. What that changes is
measured in docs/results/selectors.md.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Int64

from tokprune.selectors.selector import patches
from tokprune.types import Array, VisionTokens

NARROW = 256  # up to this width, columns are computed one by one
AT_ONCE = 16  # else so many together: it is the rows that have to come from memory
BLOCK = 256  # rows of the matrix that are there at a time


def looks(vision: VisionTokens, width: int | None = None) -> Float32[Array, "m f"]:
    """Return the embeddings of all patches at unit length, so that products are cosines.

    Args:
        vision: the tokens.
        width: project to so many dimensions, if there are more; None: exact.
    """
    rows = np.asarray(vision.embeds[patches(vision)], np.float32)
    if width is not None and rows.shape[1] > width:
        rows = rows @ projection(rows.shape[1], width)
    return unit(rows)


def unit(rows: Float[Array, "m f"]) -> Float32[Array, "m f"]:
    """Scale rows to length 1; rows of zeros stay."""
    rows = np.asarray(rows, np.float32)
    lengths = np.sqrt(np.einsum("mf,mf->m", rows, rows))
    return rows / np.maximum(lengths, 1e-12)[:, None]


def products(rows: Float[Array, "m f"], others: Float[Array, "k f"]) -> Float[Array, "m k"]:
    """Return the inner product of each row with each of the others."""
    return rows @ np.swapaxes(others, 0, 1)


@lru_cache(maxsize=4)
def projection(width: int, to: int) -> Float32[Array, "d f"]:
    """Return the fixed random matrix that keeps distances by and large."""
    normal = np.random.default_rng(0).standard_normal((width, to), np.float32)
    normal /= np.float32(to**0.5)
    normal.flags.writeable = False
    return normal


def blocks(rows: Float32[Array, "m f"]) -> Iterator[tuple[slice, Float32[Array, "b m"]]]:
    """Yield the whole matrix of similarities, some rows at a time."""
    for start in range(0, len(rows), BLOCK):
        part = slice(start, min(start + BLOCK, len(rows)))
        yield part, products(rows[part], rows)


class Columns:
    """Columns of the matrix of similarities. Each may be asked for once."""

    def __init__(self, rows: Float32[Array, "m f"]) -> None:
        self._rows = rows
        self._wide = rows.shape[1] > NARROW
        self._known: dict[int, Float32[Array, " m"]] = {}

    def __call__(self, index: int, gain: Float32[Array, " m"]) -> Float32[Array, " m"]:
        """Return the similarities of a token to all.

        Args:
            index: the token.
            gain: what tokens promise, -inf for those that were asked for. Where rows are wide, the
                columns of the most promising are computed along.
        """
        if not self._wide:
            return self._rows @ self._rows[index]
        if index not in self._known:
            wanted = self._likely(index, gain)
            found = products(self._rows[wanted], self._rows)
            self._known.update(zip(wanted.tolist(), found, strict=True))
        return self._known.pop(index)

    def _likely(self, index: int, gain: Float32[Array, " m"]) -> Int64[Array, " b"]:
        gain = np.array(gain)
        gain[list(self._known)] = -np.inf
        gain[index] = np.inf
        best = np.argpartition(-gain, min(AT_ONCE, len(gain) - 1))[:AT_ONCE]
        return best[gain[best] > -np.inf]
