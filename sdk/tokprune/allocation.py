"""No picture, frame or tile goes blind: each keeps a few tokens, whatever the ranking prefers.

Where a budget in relevance or time decides how few tokens stay, every region is sure of some. On
questions of the development split (tests/benchmarks/allocation.py) that changes accuracy by less
than chance would for `relevance-spread`, which covers place and time by itself, and adds to plain
relevance over many frames. A count or share that the user gives is spent as the ranking says, as
docs/results/pruning.md has it.

Quotas in proportion to each region's relevance (`k_i = kmin + floor(s_i / sum s * (B - n kmin))`,
the ATA of arXiv:2604.08120) were tried on the same questions, and were no better at any share but
the smallest of pictures.
"""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from jaxtyping import Int64

from tokprune.canvas import members
from tokprune.selectors.coverage import farthest_point_order
from tokprune.types import COLUMN, ROW, Array, Ranking, Region, Take, VisionTokens

MOST = 4  # tokens that a region is sure of; more would take from what the question needs
SHARE = 4  # of all kept tokens, one in this many is given out so at most; but see ONE_FROM
ONE_FROM = (
    2  # kept tokens a region, from which on each is sure of one: with 1, so little is left to
)
# choose that eight frames of eight tokens in all lost 15 points of accuracy


def least_kept(k: int, regions: int) -> int:
    """Return how many of k tokens each region is sure of; none where k is too few for all."""
    return max(min(MOST, k // (SHARE * regions)), int(k >= ONE_FROM * regions))


def fair(ranking: Ranking, vision: VisionTokens) -> Callable[[int], Take]:
    """Return what gives, for k tokens, the ranking's `take` with no region left too few.

    A region that the ranking's own k tokens leave with less than `least_kept` gets its best by the
    scores, or without any those that cover its grid. They take the places of the last tokens of
    regions that have more. Where nothing lacks, `take` is returned as it is.
    """
    regions = vision.regions
    if len(regions) == 1:
        return lambda k: ranking.take
    inside = [members(vision.where, region) for region in regions]
    region_of = np.full(len(vision.where), -1, np.int64)
    for number, tokens in enumerate(inside):
        region_of[tokens] = number
    best = [
        cache(partial(_best, ranking, vision, *each)) for each in zip(regions, inside, strict=True)
    ]

    def for_number(k: int) -> Take:
        least = least_kept(k, len(regions))
        if not least or k >= len(vision.where):
            return ranking.take
        own = ranking.take(k)
        sure: list[Array] = []
        lacking = 0
        for number, tokens in enumerate(inside):
            mine = own[region_of[own] == number][:least]
            if missing := min(least, len(tokens)) - len(mine):
                others = best[number]()
                mine = np.concatenate([mine, others[~np.isin(others, mine)][:missing]])
            sure.append(mine)
            lacking += missing
        return _first(_in_turns(sure), ranking.take) if lacking else ranking.take

    return for_number


def _best(
    ranking: Ranking, vision: VisionTokens, region: Region, tokens: Int64[Array, " m"]
) -> Int64[Array, " m"]:
    """Return the tokens of a region, best first."""
    if ranking.scores is not None:
        return tokens[np.argsort(-ranking.scores[tokens], kind="stable")]
    grid = np.zeros((region.rows, region.columns), np.int64)
    grid[vision.where[tokens, ROW], vision.where[tokens, COLUMN]] = tokens
    return grid.ravel()[farthest_point_order(region.rows, region.columns)]


def _in_turns(parts: list[Array]) -> Int64[Array, " g"]:
    """Join lists so that every prefix serves as many of them as it can."""
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    return np.concatenate(parts)[np.argsort(turn, kind="stable")].astype(np.int64)


def _first(sure: Int64[Array, " g"], take: Take) -> Take:
    """Return what takes these first, and then the ranking's own."""

    def fairly(k: int) -> Int64[Array, " k"]:
        if k <= len(sure):
            return sure[:k]
        own = take(k)
        return np.concatenate([sure, own[~np.isin(own, sure)][: k - len(sure)]])

    return fairly
