"""Look at everything but what repeats pixels that are encoded already.

Exact where a whole tile or frame repeats another. Below that approximate: what is left out stands
in nobody's attention, and its token is a copy of one at another place. After PixelPrune
(arXiv:2604.00886), which leaves such tokens out of the LLM too; here they stay to be chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.looking.look import Asked, Look
from tokprune.looking.showing import Cut
from tokprune.types import (
    COLUMN,
    FRAME,
    ROW,
    Array,
    Feeds,
    Prepared,
    Ranking,
    VisionTokens,
)

SAMPLED = 211  # every so many values are compared first


@dataclass(frozen=True)
class Repeats:
    """Encode pixels once.

    Args:
        cut: shows some tokens' pixels alone; None: whole tiles and frames only.
        tau: by how much a pixel may differ from what it is taken to repeat, on the scale that the
            encoder is fed (a grey level of 255 is about 0.015).
    """

    cut: Cut | None
    tau: float = 0.0

    def first(self, asked: Asked) -> Look:
        """Return everything that is new."""
        split, encoded = once(asked.split, self.tau)
        if self.cut is not None:
            split, encoded = self._shorter(split, self.cut)
        reason = f"{asked.total - encoded} of {asked.total} tokens repeat others"
        return Look(asked.prompt, split, None, asked.budget, encoded, reason=reason)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Return nothing."""
        del asked, looks, vision, ranking
        return None

    def _shorter(self, media: Sequence[Prepared], cut: Cut) -> tuple[tuple[Prepared, ...], int]:
        """Leave out tokens whose pixels repeat others; count those that are left.

        A picture that repeats a whole other one is given that one's calls.
        """
        known: dict[tuple[int, ...], Prepared] = {}
        made: list[Prepared] = []
        encoded = 0
        for shown in media:
            calls = tuple(map(id, shown.calls))
            if calls not in known:
                known[calls], count = _without(shown, repeated(shown, self.tau), cut)
                encoded += count
            same = known[calls]
            made.append(replace(shown, calls=same.calls, pack=same.pack, part=same.part))
        return tuple(made), encoded


def _without(shown: Prepared, of: Int64[Array, " n"], cut: Cut) -> tuple[Prepared, int]:
    """Encode those tokens alone that stand for themselves, and copy them to the others' places."""
    kept = np.flatnonzero(of == np.arange(len(of)))
    if len(kept) == len(of):
        return shown, len(of)
    made, index = cut(shown, kept), np.searchsorted(kept, of)

    def pack(outputs: list[Array]) -> Array:
        return made.pack(outputs)[index]

    return replace(shown, calls=made.calls, pack=pack, part=True), len(kept)


def once(media: Sequence[Prepared], tau: float) -> tuple[tuple[Prepared, ...], int]:
    """Give tiles and frames that repeat an earlier one that one's call; count the tokens left.

    A call that is given twice runs once (`CachedEncoder`).
    """
    calls: list[Feeds] = []
    made: list[Prepared] = []
    encoded = 0
    for shown in media:
        own: list[Feeds] = []
        new = np.zeros(len(shown.calls), np.bool_)
        for number, call in enumerate(shown.calls):
            same = [seen for seen in calls if _alike(seen, call, tau)]
            new[number] = not same
            if not same:
                calls.append(call)
            own.append(same[0] if same else call)
        encoded += int((shown.units & new).any(axis=1).sum())
        encoded += int((~shown.units.any(axis=1)).sum()) if new.any() else 0  # newlines
        made.append(replace(shown, calls=tuple(own)))
    return tuple(made), encoded


def _alike(one: Feeds, other: Feeds, tau: float) -> bool:
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return False
    first, second = one["pixel_values"], other["pixel_values"]
    few = np.ravel(first)[::SAMPLED] - np.ravel(second)[::SAMPLED]  # most differ everywhere
    if np.abs(few).max() > tau or np.abs(first - second).max() > tau:
        return False
    return all(np.array_equal(one[name], other[name]) for name in one if name != "pixel_values")


def repeated(shown: Prepared, tau: float) -> Int64[Array, " n"]:
    """Return for each token the one whose pixels it repeats: itself, where they are new.

    Frames that have an earlier one's call (`once`) repeat all of it. Else a token's pixels are
    compared with those that the token on its left stands for, the one above, and the one at its
    place a frame before.
    """
    pixels = np.concatenate([call["pixel_values"][0] for call in shown.calls])
    units: Float32[Array, "n c"] = np.reshape(pixels, (len(shown.where), -1))
    number = {tuple(cell): token for token, cell in enumerate(_cells(shown))}
    of = np.arange(len(units))
    first = [next(i for i, c in enumerate(shown.calls) if c is call) for call in shown.calls]
    for (frame, row, column), token in number.items():
        if first[frame] < frame:
            of[token] = of[number[first[frame], row, column]]
            continue
        left, above = (frame, row, column - 1), (frame, row - 1, column)
        for beside in (left, above, (frame - 1, row, column)):
            if beside in number:
                stands = of[number[beside]]
                if np.abs(units[token] - units[stands]).max() <= tau:
                    of[token] = stands
                    break
    return of


def _cells(shown: Prepared) -> list[tuple[int, int, int]]:
    return [tuple(cell) for cell in shown.where[:, [FRAME, ROW, COLUMN]].tolist()]
