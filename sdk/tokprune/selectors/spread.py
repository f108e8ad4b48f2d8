"""Highly scored tokens that are far from each other, in looks, place and time.

Greedy farthest-first traversal (Gonzalez 1985, "Clustering to minimize the maximum intercluster
distance") with weighted points: the next token is the one of largest score times squared distance
to its nearest chosen one. What looks like a token that is kept already, stands beside it and was
seen at the same time adds little, however relevant it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.canvas import members
from tokprune.types import (
    COLUMN,
    FRAME,
    KIND,
    NEWLINE,
    PICTURE,
    ROW,
    Array,
    Scores,
    VisionTokens,
)

REACH = 2.0  # distances count up to here: what is farther away does not stand for a token at all
LOOKS = 32  # dimensions that are kept of the embeddings


@dataclass(frozen=True)
class Scale:
    """What distances and scores weigh, where unlike looks are sqrt(2) apart.

    Chosen on drawn scenes of the development split (CONTRIBUTING.md, "Settings of the selectors").
    """

    place: float = 4.0  # length of a picture's longer side
    time: float = 4.0  # length of a video
    score_power: float = 2.0
    least_score: float = 1e-4  # of the largest: what has none is ordered by distance


DEFAULT = Scale()


class Spread:
    """The order, made as far as it is asked for."""

    def __init__(self, points: Float32[Array, "m f"], weights: Float32[Array, " m"]) -> None:
        squares = np.einsum("mf,mf->m", points, points)[:, None]
        ones = np.ones_like(squares)
        # |a - b|^2 as one product: (-2 a, |a|^2, 1) . (b, 1, |b|^2)
        self._from = np.concatenate([-2 * points, squares, ones], axis=1)
        self._to = np.concatenate([points, ones, squares], axis=1)
        self._weights = weights
        self._nearest = np.full(len(points), REACH**2, np.float32)
        self._order: list[int] = []

    def head(self, k: int) -> Int64[Array, " k"]:
        """Return the first k tokens. Ties go to the earlier token."""
        distance, gain = np.empty_like(self._nearest), np.empty_like(self._nearest)
        while len(self._order) < k:
            chosen = int(np.multiply(self._weights, self._nearest, out=gain).argmax())
            self._order.append(chosen)
            np.matmul(self._from, self._to[chosen], out=distance)
            np.minimum(self._nearest, distance, out=self._nearest)
            self._nearest[chosen] = -np.inf
        return np.asarray(self._order[:k], np.int64)


def spread(
    scores: Scores, vision: VisionTokens, scale: Scale = DEFAULT
) -> Callable[[int], Int64[Array, " k"]]:
    """Return `take` of a nested ranking; newlines stand last.

    Args:
        scores: higher is kept first; only their ratios matter.
        vision: the tokens.
        scale: of distances and scores.
    """
    patches = np.flatnonzero(vision.where[:, KIND] != NEWLINE)
    ends = np.flatnonzero(vision.where[:, KIND] == NEWLINE)
    largest = max(float(scores.max(initial=0)), np.finfo(np.float32).tiny)
    weights = (np.maximum(scores[patches] / largest, 0) + scale.least_score) ** scale.score_power
    order = Spread(points(vision, scale)[patches], weights.astype(np.float32))

    def take(k: int) -> Int64[Array, " k"]:
        head = order.head(min(k, len(patches)))
        return np.concatenate([patches[head], ends[: k - len(head)]])

    return take


def points(vision: VisionTokens, scale: Scale = DEFAULT) -> Float32[Array, "n f"]:
    """Return looks (unit length), row, column and time of each patch, to be compared by distance.

    Looks are projected to 32 dimensions, which changes distances by a tenth or less
    (Johnson-Lindenstrauss) and makes a step as cheap for an LLM of any width.
    """
    looks = np.asarray(vision.embeds, np.float32)
    if looks.shape[1] > LOOKS:
        looks = looks @ _projection(looks.shape[1])
    norms = np.linalg.norm(looks, axis=1, keepdims=True)
    where = vision.where
    place = np.zeros((len(where), 3), np.float32)
    for region in vision.regions:
        inside = members(where, region)
        cells = where[inside][:, [ROW, COLUMN]] + np.float32(0.5)
        place[inside, :2] = cells * (scale.place / max(region.rows, region.columns))
    for picture in {region.picture for region in vision.regions}:
        mine = where[:, PICTURE] == picture
        frames = where[mine, FRAME]
        place[mine, 2] = frames * (scale.time / max(int(frames.max()), 1)) + REACH * picture
    return np.concatenate([looks / np.maximum(norms, 1e-12), place], axis=1)


@lru_cache(maxsize=4)
def _projection(width: int) -> Float32[Array, "d f"]:
    normal = np.random.default_rng(0).standard_normal((width, LOOKS), np.float32)
    return normal / np.float32(LOOKS**0.5)
