"""Pictures that are shown whole and as crops: how many tokens each crop may keep."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.canvas import canvas
from tokprune.errors import RequestInvalid
from tokprune.selectors.quotas import best_of_each, proportional, softmax
from tokprune.selectors.scores import saliency
from tokprune.selectors.selector import check_whole, patches, patches_first
from tokprune.selectors.similarity import products
from tokprune.types import WHOLE, Array, First, Prompt, Ranking, Region, VisionTokens

CROP_TEMPERATURE = 0.1


class Part(NamedTuple):
    """The whole picture or one of its crops."""

    tokens: Int64[Array, " m"]  # numbered among the patches
    weight: float  # of its kept share


def globalcom2(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep the most salient of each crop, more of crops that the whole picture finds salient.

    The quota of a crop is in proportion to 1 + s - mean s, where s is the softmax over crops of
    10 x their share of the whole picture's saliency; the whole picture has its even share
    (arXiv:2501.05179). Crops are cut where the grid of all of them is: into squares of about the
    size of the whole picture's.
    """
    del prompt, first
    check_whole("globalcom2", vision)
    scores = saliency(vision)
    parts = [
        part for whole, fine in _pictures(vision) for part in _parts(vision, scores, whole, fine)
    ]
    groups = [part.tokens for part in parts]
    sizes = [len(group) for group in groups]
    wanted = np.asarray([part.weight * len(part.tokens) for part in parts], np.float32)

    def take(k: int) -> Int64[Array, " k"]:
        return best_of_each(scores, groups, proportional(k, wanted, sizes).tolist())

    return Ranking(patches_first(vision, take))


def _parts(
    vision: VisionTokens, scores: Float32[Array, " m"], whole: Region, fine: Region
) -> list[Part]:
    """Return a picture and its crops."""
    own = patches(vision)
    grids = dict(zip(vision.regions, canvas(vision.where, vision.regions).tokens, strict=True))
    place = np.zeros(len(vision.where), np.int64)
    place[own] = np.arange(len(own))
    numbers = place[grids[whole][: whole.rows, : whole.columns]]
    fine_numbers = place[grids[fine][: fine.rows, : fine.columns]]
    down, across = -(-fine.rows // whole.rows), -(-fine.columns // whole.columns)
    mass = products(overlap(down, whole.rows) @ scores[numbers], overlap(across, whole.columns))
    shares = softmax(mass.ravel() / max(float(mass.sum()), 1e-12), CROP_TEMPERATURE)
    weights = 1 + shares - shares.mean()
    crops = [
        np.reshape(fine_numbers[top:bottom, left:right], -1)
        for top, bottom in pairwise(_edges(fine.rows, down))
        for left, right in pairwise(_edges(fine.columns, across))
    ]
    parts = [Part(crop, float(weight)) for crop, weight in zip(crops, weights, strict=True)]
    return [Part(np.reshape(numbers, -1), 1.0), *parts]


def overlap(parts: int, cells: int) -> Float32[Array, "parts cells"]:
    """Return how much of each cell of a line lies in each of its even parts; columns add to 1."""
    edges = np.arange(parts + 1) * (cells / parts)
    starts = np.arange(cells, dtype=np.float64)
    ends_in: Array = np.minimum(edges[1:, None], starts + 1)
    starts_in: Array = np.maximum(edges[:-1, None], starts)
    return np.maximum(ends_in - starts_in, 0).astype(np.float32)


def _edges(cells: int, parts: int) -> list[int]:
    return [part * cells // parts for part in range(parts + 1)]


def _pictures(vision: VisionTokens) -> list[tuple[Region, Region]]:
    """Return the two grids of each picture.

    Raises:
        RequestInvalid: a picture has no crops.
    """
    pairs: list[tuple[Region, Region]] = []
    for picture in sorted({region.picture for region in vision.regions}):
        grids = [region for region in vision.regions if region.picture == picture]
        if (
            len(grids) != 2
            or sorted(grid.tile for grid in grids)[0] != WHOLE
            or (grids[0].tile == grids[1].tile)
        ):
            raise RequestInvalid(
                "The selector 'globalcom2' compares a picture with its crops, and number "
                f"{picture + 1} of what was given has none: give one picture alone to a model that "
                "cuts it into crops (LLaVA-OneVision), or choose another selector, such as "
                "'vtc-cls'"
            )
        whole, fine = sorted(grids, key=lambda grid: grid.tile)
        pairs.append((whole, fine))
    return pairs
