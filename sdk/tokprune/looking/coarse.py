"""Look at the picture at half its size first, then in full at the places that matter.

Approximate: the encoder's patches attend to those that are shown alone, and what is small may be
missed at half size. Units: a quarter, and the K that are kept; attention falls with their squares.
The aim is that of Q-Zoom (arXiv:2604.06912) and AwaRes (arXiv:2603.16932), without a change to the
VLM: the scorer says where to look.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.budgets import Auto, Budget, Deadline, KeepCount, KeepMass, KeepRatio, floor_of
from tokprune.canvas import members
from tokprune.errors import RequestInvalid
from tokprune.looking.look import Asked, Look, keeps_everything, whole
from tokprune.looking.showing import Cut, show_tokens
from tokprune.types import (
    COLUMN,
    ROW,
    Array,
    Prepared,
    Prompt,
    Ranking,
    Region,
    VisionTokens,
)

NOWHERE = -1
TIMES = 1.0  # tokens that are encoded in full for each that is kept


class Small(NamedTuple):
    """The same media at half their size, and a prompt that shows them instead."""

    prompt: Prompt
    media: tuple[Prepared, ...]


@dataclass(frozen=True)
class Coarse:
    """Encode a small picture, and of the large one what the question needs.

    Attributes:
        small: makes the same request about the small pictures.
        cut: shows some tokens' pixels alone.
        times: tokens that are encoded in full for each that is kept: of more than one, the second
            look chooses again, and each has more of its surroundings.
        room: of the fewest and the most tokens that may be encoded in full, how many there is time
            for; None where time is no matter.
    """

    small: Callable[[], Small]
    cut: Cut
    times: float = TIMES
    room: Callable[[int, int], int] | None = None

    def first(self, asked: Asked) -> Look:
        """Return the small pictures."""
        if keeps_everything(asked):
            return whole(asked, "the budget keeps everything")
        small = self.small()
        count = len(small.prompt.slots)
        if count + self.fewest(asked) >= asked.total:
            return whole(asked, "two looks would encode no less than one at everything")
        budget = KeepCount(count)
        return Look(small.prompt, small.media, None, budget, count, last=False)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Return the places in full that the small picture's best tokens show."""
        if looks[-1].last:
            return None
        under = below(asked.media, vision)
        places = _chosen(ranking, under, self._count(asked, ranking, under))
        reason = (
            f"{len(places)} of {asked.total} tokens in full, where half the size shows what matters"
        )
        look = show_tokens(asked, places, self.cut, reason=reason)
        worth = None if ranking.scores is None else _shared(ranking.scores, under)
        return replace(look, worth=worth, budget=self._closer(look.budget, len(places)))

    def fewest(self, asked: Asked) -> int:
        """Return how many tokens are encoded in full, or the fewest where scores or time decide."""
        budget = asked.budget
        if isinstance(budget, (KeepRatio, KeepCount)):
            kept = budget.plan(asked.total).keep
        else:
            kept = floor_of(budget, len(frames_in(asked)), asked.total)
        return min(ceil(self.times * kept), asked.total)

    def _count(self, asked: Asked, ranking: Ranking, under: Int64[Array, " n"]) -> int:
        """Return how many tokens to encode in full."""
        budget, fewest = asked.budget, self.fewest(asked)
        match budget:
            case KeepRatio() | KeepCount():
                return fewest
            case Deadline():
                wanted = asked.total
            case KeepMass() | Auto():
                wanted = _holding(budget.p, ranking, under)
        if isinstance(budget, KeepMass) and budget.cap is not None:
            wanted = min(wanted, budget.cap)
        wanted = max(fewest, min(ceil(self.times * wanted), asked.total))
        return wanted if self.room is None else self.room(fewest, wanted)

    def _closer(self, budget: Budget, shown: int) -> Budget:
        """Return the budget of the second look, where the first one's scores have chosen."""
        if self.times > 1:
            return budget
        match budget:
            case KeepMass():
                return KeepCount(shown)
            case Auto():  # time may be shorter than it seemed
                return Deadline(budget.ttft_ms, best_effort=budget.best_effort)
            case _:
                return budget


def frames_in(asked: Asked) -> set[tuple[int, int]]:
    """Return the pictures and frames that were asked about."""
    return {(region.picture, region.frame) for shown in asked.media for region in shown.regions}


def _holding(p: float, ranking: Ranking, under: Int64[Array, " n"]) -> int:
    """Return how many tokens lie under the fewest small ones that hold share `p` of the scores."""
    if ranking.scores is None:
        raise RequestInvalid(
            "encode='coarse' with a budget of relevance needs a selector that scores vision "
            "tokens: take relevance-spread or attention-spread, or give a share or a count"
        )
    scores: Array = np.maximum(ranking.scores.astype(np.float64), 0.0)
    if not scores.any():
        return len(under)
    order = np.argsort(-scores, kind="stable")
    held: Array = np.cumsum(scores[order])
    wanted = p * float(held[-1]) * (1 - 1e-9)  # the share as written, sums in any order
    enough = int(np.searchsorted(held, wanted)) + 1
    lying: Int64[Array, " m"] = np.bincount(under, minlength=len(scores))
    return int(lying[order[:enough]].sum())


def below(media: Sequence[Prepared], vision: VisionTokens) -> Int64[Array, " n"]:
    """Return the token of a first look that shows the place of each token of the whole pictures.

    Args:
        media: the whole pictures and videos.
        vision: what was looked at: they at half their size, or without their crops.

    Returns:
        The tokens' numbers; -1 for newlines, which show no place.
    """
    found: list[Array] = []
    grids = {(region.picture, region.frame): _grid(vision, region) for region in vision.regions}
    for shown in media:
        mine = np.full(len(shown.where), NOWHERE, np.int64)
        for region in shown.regions:
            inside = members(shown.where, region)
            grid = grids[region.picture, region.frame]
            row = (2 * shown.where[inside, ROW] + 1) * grid.shape[0] // (2 * region.rows)
            column = (2 * shown.where[inside, COLUMN] + 1) * grid.shape[1] // (2 * region.columns)
            mine[inside] = grid[row, column]
        found.append(mine)
    return np.concatenate(found)


def _shared(scores: Float32[Array, " m"], under: Int64[Array, " n"]) -> Float32[Array, " n"]:
    """Divide the score of each small token among the tokens that lie under it."""
    counts = np.bincount(under, minlength=len(scores))
    return (scores / np.maximum(counts, 1))[under].astype(np.float32)


def _grid(vision: VisionTokens, region: Region) -> Int64[Array, "r c"]:
    inside = members(vision.where, region)
    grid = np.zeros((region.rows, region.columns), np.int64)
    grid[vision.where[inside, ROW], vision.where[inside, COLUMN]] = inside
    return grid


def _chosen(ranking: Ranking, under: Int64[Array, " n"], kept: int) -> Int64[Array, " k"]:
    """Return the places under the best small tokens, ascending; of the last of them, some."""
    order = np.argsort(under, kind="stable")
    starts = np.searchsorted(under[order], np.arange(int(under.max()) + 2))
    # Of odd rows and columns some show two tokens, and one shows one: those may be the best.
    lying: Int64[Array, " m"] = np.sort(np.diff(starts))
    fewest = int(np.searchsorted(np.cumsum(lying), kept)) + 1
    take = min(max(ceil(kept / 2), fewest), len(lying))
    places: list[Array] = []
    count = 0
    for small in _in_order(ranking, take):
        mine = order[starts[small] : starts[small + 1]]
        places.append(mine[: kept - count])
        count += len(places[-1])
        if count == kept:
            break
    return np.sort(np.concatenate(places))


def _in_order(ranking: Ranking, count: int) -> list[int]:
    """Return tokens from the best on: by their scores, for that is what scorers learn of glances.

    Without scores as they are ranked, as far as the ranking is nested.
    """
    if ranking.scores is not None:
        order: Int64[Array, " k"] = np.argsort(-ranking.scores, kind="stable")[:count]
        return order.tolist()
    seen: dict[int, None] = {}
    step = 1
    while len(seen) < count:
        step = min(2 * step, count)
        seen |= dict.fromkeys(ranking.take(step).tolist())
        if step == count:
            break
    return list(seen)
