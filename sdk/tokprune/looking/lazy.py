"""Look at whole pictures and some frames first, then at the crops and frames that matter.

Exact: what is encoded is what the full look would give (parts.py). The relevance that falls on the
place of a crop in the whole picture, or on the frames around one that was skipped, says how much
is to be expected of it. GlobalCom2 (arXiv:2501.05179) shares tokens out among crops by the
thumbnail's saliency, after all have been encoded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tokprune.budgets import KeepCount, KeepRatio
from tokprune.canvas import members
from tokprune.errors import RequestInvalid
from tokprune.looking.look import Asked, Look, keeps_everything, whole
from tokprune.looking.parts import PADDING, Units, units_of
from tokprune.looking.showing import show_units
from tokprune.types import COLUMN, ROW, WHOLE, Array, Prepared, Ranking, Region, VisionTokens

STRIDE = 4  # every fourth frame of a video is looked at first
# Share of the relevance that is expected where nobody looked yet. Least of which answers stayed
# within a point of those to everything encoded (docs/encode.md).
ENOUGH = 0.85
NOTHING = "there is nothing to leave for later"
NO_SCORES = (
    "encode='lazy' looks where the scores are, and this selector gives none: choose one that "
    "scores, such as 'relevance-spread' or 'attention-spread', or encode='full'"
)

# Values in a unit's pixels, its tokens, tokens seen so far, units wanted -> units there is time for
Room: TypeAlias = Callable[[int, int, int, int], int]


@dataclass(frozen=True)
class Lazy:
    """Encode what the question points to.

    Args:
        most: crops and frames that the second look may add; None: as many as it takes.
        room: for how many there is time, where the budget is one in time.
        share: of what is expected, that those shall hold.
    """

    most: int | None = None
    room: Room | None = None
    share: float = ENOUGH

    def first(self, asked: Asked) -> Look:
        """Return whole pictures and every fourth frame."""
        if keeps_everything(asked):
            return whole(asked, "the budget keeps everything")
        units = units_of(asked.media)
        shown = first_units(units)
        if shown.all():
            return whole(asked, NOTHING)
        if not left_for_later(units).any():  # but padding, which no token is made of
            return show_units(asked, shown, reason=NOTHING)
        return show_units(asked, shown, last=False)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Return the same, and the crops and frames of which most is to be expected."""
        if looks[-1].last:
            return None
        if ranking.scores is None:
            raise RequestInvalid(NO_SCORES)
        units = units_of(asked.media)
        shown = first_units(units)
        expected = estimated(asked.media, vision, ranking.scores)
        values = np.asarray([expected[tokens].sum() for tokens in units.tokens])
        unseen = np.flatnonzero(left_for_later(units))
        order = unseen[np.argsort(-values[unseen], kind="stable")]
        before = len(vision.where)
        there = available(units, shown, order)
        count = self._count(asked, values[order], there)
        if self.room is not None:
            pixels = max(call["pixel_values"][:1].size for m in asked.media for call in m.calls)
            most = int(np.asarray([len(each) for each in units.tokens])[order].max())
            count = min(count, self.room(pixels, most, before, count))
        shown[order[:count]] = True
        reason = f"{count} of {len(order)} crops and frames, where the relevance is"
        return show_units(asked, shown, before, reason=reason)

    def _count(self, asked: Asked, values: Float32[Array, " v"], there: Int64[Array, " w"]) -> int:
        """Return how many more units to look at, in the order of what is expected of them.

        Args:
            asked: the request.
            values: what is expected of each.
            there: tokens that there are after none of them, one, two, and so on.
        """
        units = len(values)
        held = np.cumsum(values) / max(float(values.sum()), np.finfo(np.float32).tiny)
        enough = int(np.searchsorted(held, self.share * (1 - 1e-6))) + 1  # sums in any order
        if isinstance(asked.budget, (KeepRatio, KeepCount)):
            keep = asked.budget.plan(asked.total).keep
            enough = max(enough, int(np.searchsorted(there, keep)))
        return min(enough, units, self.most or units)


def available(
    units: Units, shown: Bool[Array, " u"], order: Int64[Array, " v"]
) -> Int64[Array, " w"]:
    """Count the patches that can be made after none of the units in `order`, one, two, and so on.

    One that lies between two crops is there once both are.
    """
    turn = np.full(len(shown), len(order) + 1, np.int64)
    turn[shown] = 0
    turn[order] = np.arange(len(order)) + 1
    tokens = np.concatenate(units.tokens)
    latest = np.zeros(int(tokens.max()) + 1, np.int64)
    np.maximum.at(latest, tokens, np.repeat(turn, [len(each) for each in units.tokens]))
    known = latest[np.unique(tokens)]
    return np.cumsum(np.bincount(known, minlength=len(order) + 2))[: len(order) + 1]


def first_units(units: Units) -> Bool[Array, " u"]:
    """Mark whole pictures, and of each video every fourth frame."""
    base = units.tile == WHOLE
    for picture in set(units.picture.tolist()):
        mine = units.picture == picture
        frames = np.unique(units.frame[mine])
        skipped = frames[np.arange(len(frames)) % STRIDE != 0]
        base &= ~(mine & np.isin(units.frame, skipped))
    return base


def left_for_later(units: Units) -> Bool[Array, " u"]:
    """Mark what may be worth a second look."""
    return ~first_units(units) & (units.tile != PADDING)


def estimated(
    media: Sequence[Prepared], vision: VisionTokens, scores: Float32[Array, " m"]
) -> Float32[Array, " n"]:
    """Return what each token of the whole media may be worth, from the scores of those seen.

    A token is worth what the one at its place is, in the same frame or between the two nearest that
    were looked at; a larger number of tokens at one place shares that worth.
    """
    grids = {
        (region.picture, region.frame): _grid(vision, region, scores)
        for region in vision.regions
        if region.tile == WHOLE
    }
    worth: list[Array] = []
    for shown in media:
        mine = np.zeros(len(shown.where), np.float32)
        for region in shown.regions:
            inside = members(shown.where, region)
            seen = _between(grids, region)
            row = (shown.where[inside, ROW] + 0.5) * seen.shape[0] / region.rows
            column = (shown.where[inside, COLUMN] + 0.5) * seen.shape[1] / region.columns
            share = seen.size / (region.rows * region.columns)
            mine[inside] = seen[row.astype(np.int64), column.astype(np.int64)] * share
        worth.append(mine)
    return np.concatenate(worth)


def _grid(
    vision: VisionTokens, region: Region, scores: Float32[Array, " m"]
) -> Float32[Array, "r c"]:
    grid = np.zeros((region.rows, region.columns), np.float32)
    inside = members(vision.where, region)
    grid[vision.where[inside, ROW], vision.where[inside, COLUMN]] = np.maximum(scores[inside], 0)
    return grid


def _between(
    grids: dict[tuple[int, int], Float32[Array, "_ _"]], region: Region
) -> Float32[Array, "_ _"]:
    """Return the worth of places in a frame: its own, or between the frames around it."""
    frames = sorted(frame for picture, frame in grids if picture == region.picture)
    before = max((frame for frame in frames if frame <= region.frame), default=frames[0])
    after = min((frame for frame in frames if frame >= region.frame), default=frames[-1])
    first, second = grids[region.picture, before], grids[region.picture, after]
    share = (region.frame - before) / (after - before) if after > before else 0.0
    return ((1 - share) * first + share * second).astype(np.float32)
