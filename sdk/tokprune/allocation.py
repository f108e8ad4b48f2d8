"""No picture, frame or tile goes blind: each keeps a few tokens, whatever the ranking prefers.

Where a budget in relevance or time decides how few tokens stay, every region is sure of some. On
3,000 drawn questions of the development split (videos and pictures, kept shares 0.5 to 0.125) that
changes accuracy by less than chance would for `relevance-spread`, which covers place and time by
itself, and adds up to 2.6 points to plain relevance over 16 frames. A count or share that the user
gives is spent as the ranking says, as docs/results/pruning.md has it.

Quotas in proportion to each region's relevance (`k_i = kmin + floor(s_i / sum s * (B - n kmin))`,
the ATA of arXiv:2604.08120) were tried on the same questions, and were no better at any share but
the smallest of pictures.
"""

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


def fair(ranking: Ranking, vision: VisionTokens, k: int) -> Take:
    """Return the ranking's `take` for k tokens, changed only where a region would get too few.

    A region that the ranking's own k tokens leave with less than `least_kept` gets its best by the
    scores, or without any those that cover its grid. They take the places of the last tokens of
    regions that have more.
    """
    regions = vision.regions
    least = least_kept(k, len(regions))
    if len(regions) == 1 or not least or k >= len(vision.embeds):
        return ranking.take
    own = ranking.take(k)
    inside = [members(vision.where, region) for region in regions]
    region_of = np.full(len(vision.where), -1, np.int64)
    for number, tokens in enumerate(inside):
        region_of[tokens] = number
    sure: list[Array] = []
    for number, (region, tokens) in enumerate(zip(regions, inside, strict=True)):
        mine = own[region_of[own] == number][:least]
        lacking = min(least, len(tokens)) - len(mine)
        sure.append(np.concatenate([mine, _best(ranking, vision, region, mine)[:lacking]]))
    if sum(len(each) for each in sure) == np.isin(np.concatenate(sure), own).sum():
        return ranking.take
    return _first(_in_turns(sure), ranking.take)


def _best(
    ranking: Ranking, vision: VisionTokens, region: Region, taken: Int64[Array, " t"]
) -> Int64[Array, " m"]:
    """Return the tokens of a region that are not taken, best first."""
    tokens = members(vision.where, region)
    if ranking.scores is not None:
        order = np.argsort(-ranking.scores[tokens], kind="stable")
    else:
        grid = np.zeros((region.rows, region.columns), np.int64)
        grid[vision.where[tokens, ROW], vision.where[tokens, COLUMN]] = np.arange(len(tokens))
        order = grid.ravel()[farthest_point_order(region.rows, region.columns)]
    ranked = tokens[order]
    return ranked[~np.isin(ranked, taken)]


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
