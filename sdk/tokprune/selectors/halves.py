"""Two orders that share what may be kept."""

import numpy as np
from jaxtyping import Int64

from tokprune.types import Array


def mixed(
    first: Int64[Array, " n"], second: Int64[Array, " n"], k: int, share: float
) -> Int64[Array, " k"]:
    """Take k tokens: the head of `first`, then `share` of k from `second`, none twice."""
    head = first[: k - round(k * share)]
    rest = second[~np.isin(second, head)][: k - len(head)]
    return np.concatenate([head, rest])
