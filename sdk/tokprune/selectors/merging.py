"""What becomes of the tokens that are not kept: nothing, or a part of a mean.

A group tells, for each token, which of the kept ones stands for it (its place among them), -1 for
nobody. A kept token always stands for itself, so where all are kept nothing changes. Newlines are
never averaged.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.canvas import members
from tokprune.selectors.selector import Selector
from tokprune.selectors.similarity import BLOCK, products, unit
from tokprune.types import (
    COLUMN,
    KIND,
    NEWLINE,
    PICTURE,
    ROW,
    Array,
    First,
    Merged,
    Prompt,
    Ranking,
    VisionTokens,
)

Group: TypeAlias = Callable[[VisionTokens, Int64[Array, " k"]], Int64[Array, " n"]]
ROUNDS = 8  # of k-means


def merged(
    selector: Selector, group: Group, *, median_position: bool = False, size_bias: bool = False
) -> Selector:
    """Return a selector whose kept tokens are the means of those that they stand for.

    Args:
        selector: says which are kept.
        group: says for which others each stands.
        median_position: a mean carries the position of the median of its tokens, not that of the
            kept one.
        size_bias: the attention to a mean is corrected for the number of its tokens.
    """

    def corrected(kept_share: float) -> bool:
        del kept_share
        return size_bias

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        ranking = selector(prompt, vision, first)

        def merge(keep: Int64[Array, " k"]) -> Merged:
            return means(vision, keep, group(vision, keep), median_position=median_position)

        return replace(ranking, merge=merge, size_bias=corrected)

    return select


def means(
    vision: VisionTokens,
    keep: Int64[Array, " k"],
    group: Int64[Array, " n"],
    *,
    median_position: bool = False,
) -> Merged:
    """Average the tokens that each kept one stands for."""
    given = np.flatnonzero(group >= 0)
    order = given[np.argsort(group[given], kind="stable")]
    sizes = np.bincount(group[given], minlength=len(keep))
    starts = np.cumsum(sizes) - sizes
    embeds = np.asarray(vision.embeds[order], np.float32)
    sums = np.add.reduceat(embeds, starts, axis=0) if len(keep) else embeds
    return Merged(
        embeds=sums / sizes[:, None].astype(np.float32),
        at=order[starts + (sizes - 1) // 2] if median_position else None,
        sizes=sizes,
    )


def by_place(vision: VisionTokens, keep: Int64[Array, " k"]) -> Int64[Array, " n"]:
    """Give each token to the kept one that is nearest on the grid of their region.

    Ties go to the earlier kept token.
    """
    group = _alone(vision, keep)
    for region in vision.regions:
        inside = members(vision.where, region)
        mine = np.flatnonzero(np.isin(keep, inside))
        if len(mine):
            kept = vision.where[keep[mine]][:, [ROW, COLUMN]].astype(np.float32)
            cells = vision.where[inside][:, [ROW, COLUMN]].astype(np.float32)
            distance = (kept**2).sum(axis=1) - 2 * products(cells, kept)  # whole numbers: exact
            group[inside] = mine[distance.argmin(axis=1)]
    return group


def by_looks(vision: VisionTokens, keep: Int64[Array, " k"]) -> Int64[Array, " n"]:
    """Give each token to the kept one of its picture that is most similar, by cosine."""
    group = _alone(vision, keep)
    for mine, others in _pictures(vision, keep):
        kept = unit(vision.embeds[keep[mine]])
        group[others] = mine[_most_similar(unit(vision.embeds[others]), kept)]
    return group


def by_clusters(vision: VisionTokens, keep: Int64[Array, " k"]) -> Int64[Array, " n"]:
    """Give each token to a cluster of its picture: k-means by cosine from the kept tokens on.

    Eight rounds, so that the cost is known (arXiv:2411.15453 clusters what it does not keep,
    arXiv:2504.17892 everything). Kept tokens stay in their own cluster.
    """
    group = _alone(vision, keep)
    for mine, others in _pictures(vision, keep):
        own, rows = unit(vision.embeds[keep[mine]]), unit(vision.embeds[others])
        centres = own
        for _ in range(ROUNDS):
            nearest = _most_similar(rows, centres)
            sums = np.array(own)
            np.add.at(sums, nearest, rows)
            centres = unit(sums)
        group[others] = mine[_most_similar(rows, centres)]
    return group


def _alone(vision: VisionTokens, keep: Int64[Array, " k"]) -> Int64[Array, " n"]:
    group = np.full(len(vision.where), -1, np.int64)
    group[keep] = np.arange(len(keep))
    return group


def _pictures(
    vision: VisionTokens, keep: Int64[Array, " k"]
) -> list[tuple[Int64[Array, " _"], Int64[Array, " _"]]]:
    """Return, of each picture: which of `keep` are its patches, and its other patches."""
    patch = vision.where[:, KIND] != NEWLINE
    dropped = np.array(patch)
    dropped[keep] = False
    pairs: list[tuple[Int64[Array, " _"], Int64[Array, " _"]]] = []
    for picture in {region.picture for region in vision.regions}:
        shown = vision.where[:, PICTURE] == picture
        mine = np.flatnonzero((shown & patch)[keep])
        others = np.flatnonzero(shown & dropped)
        if len(mine) and len(others):
            pairs.append((mine, others))
    return pairs


def _most_similar(rows: Float32[Array, "m f"], kept: Float32[Array, "k f"]) -> Int64[Array, " m"]:
    """Return the place of the most similar of `kept`, some rows at a time."""
    starts = range(0, len(rows), BLOCK)
    nearest = [products(rows[start : start + BLOCK], kept).argmax(axis=1) for start in starts]
    return np.concatenate(nearest)
