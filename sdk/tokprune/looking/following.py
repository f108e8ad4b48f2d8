"""Look at a stream of pictures: at what mattered, at what moved, and at the rest in turn.

The scene before a robot changes slowly. What the last answer was read from, and what has changed
since it was encoded, is where to look; a share of every look goes to what was not looked at for
longest, so no part of the picture stays unseen for more than a stated number of looks, whether or
not anything was noticed there. STC (arXiv:2512.00891) keeps features of unchanged patches; here
unchanged places are not shown at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tokprune.budgets import KeepCount, KeepRatio
from tokprune.errors import RequestInvalid
from tokprune.looking.look import Asked, Look, keeps_everything, whole
from tokprune.looking.parts import units_among
from tokprune.looking.showing import Cut, show_tokens, show_units
from tokprune.types import Array, Ranking, Region, VisionTokens

MOVED = 0.12  # mean difference of a part's pixels, as the encoder is fed, that is a movement
BLOCK = 2  # side of the smallest part of a picture, in vision tokens
CUT = 0.5  # share of the picture that moves when the camera looks elsewhere
FADE = 0.8  # of what a part was worth, from one look to the next that leaves it out


class Following:
    """What one question has seen of one stream. Given as `encode` of every `ask` about it.

    The first picture is looked at as a whole, and so is one of another size, after another
    question, and when half of the picture has moved. Every other look shows what the last answers
    were read from, what has moved since it was shown, and a share of the rest.

        follow = tokprune.Following(within=8)
        for frame in frames:
            answer = vlm.ask(frame, "Is the path free?", 0.25, encode=follow)

    Where a family's encoder takes any part of a picture (Qwen2-VL), parts are blocks of 2 x 2
    vision tokens; else they are tiles (LLaVA-OneVision), and the one that shows the whole picture
    is always shown. Where crops are scaled down (more than nine tiles), tokens that lie between two
    crops are there only in looks at both.
    """

    def __init__(self, within: int = 8) -> None:
        """Begin with nothing seen.

        Args:
            within: looks in which every part of the picture is shown once, at least.

        Raises:
            RequestInvalid: it is below 1.
        """
        if within < 1:
            raise RequestInvalid(f"Following takes within=1 or more looks, got {within}")
        self.within = within
        self.seen: Seen | None = None

    def forget(self) -> None:
        """Look at the next picture as a whole."""
        self.seen = None


@dataclass
class Seen:
    """The parts of a picture as they were last shown."""

    question: bytes
    where: bytes  # of all tokens: what the picture is cut into
    pixels: Float32[Array, "m c"]  # of each token or tile
    age: Int64[Array, " parts"]  # looks since each was shown
    worth: Float32[Array, " parts"]


@dataclass(frozen=True)
class Follow:
    """One look at the stream."""

    follow: Following
    cut: Cut | None

    def first(self, asked: Asked) -> Look:
        """Return the look."""
        if not isinstance(asked.budget, (KeepRatio, KeepCount)):
            raise RequestInvalid(
                "A stream is followed with a budget that says how much may be kept: give a share "
                "or a count"
            )
        if len(asked.media) != 1 or asked.media[0].kind != "picture":
            raise RequestInvalid(
                f"A stream is followed picture by picture, got {len(asked.media)} pictures or "
                "videos at once: ask about one frame, or choose another encode"
            )
        parts = _Parts(asked, self.cut)
        seen, now = self.follow.seen, _fresh(asked, parts)
        if keeps_everything(asked) or parts.count == 1:
            return whole(asked, "there is nothing to leave out")
        if seen is None or (seen.question, seen.where) != (now.question, now.where):
            return whole(asked, "the first look at this question and picture")
        moved = parts.moved(seen.pixels)
        if moved.mean() > CUT:
            return whole(asked, "most of the picture has changed")
        shown = self._chosen(asked, parts, seen, moved)
        reason = (
            f"{int(shown.sum())} of {parts.count} parts: {int(moved.sum())} have moved, each is "
            f"seen once in {self.follow.within} looks"
        )
        return parts.look(shown, reason)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Remember what was seen, and return nothing."""
        del vision
        parts, look = _Parts(asked, self.cut), looks[-1]
        now, before = _fresh(asked, parts), self.follow.seen
        places = np.arange(asked.total) if look.places is None else look.places
        shown = parts.shown(places)
        if before is not None and look.places is not None:
            unseen = parts.pieces(~shown)
            now.pixels[unseen] = before.pixels[unseen]
            now.age[~shown] = before.age[~shown] + 1
            now.worth[:] = before.worth * FADE
        if ranking.scores is not None:
            found = np.zeros(asked.total, np.float32)
            # Scores share out 1 among the tokens of a look, however few these are.
            found[places] = np.maximum(ranking.scores, 0) * (len(places) / asked.total)
            now.worth[shown] = parts.sums(found)[shown]
        self.follow.seen = now
        return None

    def _chosen(
        self, asked: Asked, parts: "_Parts", seen: Seen, moved: Bool[Array, " parts"]
    ) -> Bool[Array, " parts"]:
        """Mark what is worth most within the budget, what has moved, and what is due."""
        assert isinstance(asked.budget, (KeepRatio, KeepCount))
        shown = moved | parts.always
        for part in np.argsort(-seen.worth, kind="stable").tolist():
            if parts.sizes[shown].sum() >= asked.budget.plan(asked.total).keep:
                break
            shown[part] = True
        turns = ~parts.always & ~parts.padding  # take turns in being shown, whatever they show
        due = ceil(int(turns.sum()) / self.follow.within)
        waiting = np.flatnonzero(turns & ~shown)
        oldest = np.lexsort((parts.nearby[waiting], -seen.age[waiting]))
        shown[waiting[oldest[:due]]] = True  # of equally old ones, neighbours
        return shown


class _Parts:
    """The parts that a picture can be shown in: tokens, or tiles."""

    def __init__(self, asked: Asked, cut: Cut | None) -> None:
        self._asked, self._cut = asked, cut
        (shown,) = asked.media
        calls = [call["pixel_values"] for call in shown.calls]
        if cut is not None:
            self._of, self.nearby = _blocks(shown.regions[0])
            rows = np.concatenate([np.reshape(call, (-1, call.shape[-1])) for call in calls])
            self.pixels: Array = np.reshape(rows, (asked.total, -1)).astype(np.float32)
            self.count = len(self.nearby)
            self.always = self.padding = np.zeros(self.count, np.bool_)
        else:
            self._of, self.always = units_among(shown)
            tiles = np.concatenate(calls)
            self.pixels = np.reshape(tiles, (len(tiles), -1)).astype(np.float32)
            self.count = len(self.always)
            self.padding = ~shown.units.any(axis=0)  # no token is made of it
            self.nearby = np.arange(self.count)
        self.sizes = np.bincount(self._of[self._of >= 0], minlength=self.count)

    def moved(self, before: Float32[Array, "m c"]) -> Bool[Array, " parts"]:
        """Mark the parts of which any token or tile differs from how it was shown."""
        moved = np.abs(self.pixels - before).mean(axis=1) > MOVED
        marked = np.zeros(self.count, np.bool_)
        marked[self._of[moved] if self._cut is not None else np.flatnonzero(moved)] = True
        return marked

    def pieces(self, parts: Bool[Array, " parts"]) -> Bool[Array, " m"]:
        """Mark the rows of `pixels` that belong to some parts."""
        return parts[self._of] if self._cut is not None else parts

    def shown(self, places: Int64[Array, " m"]) -> Bool[Array, " parts"]:
        """Mark the parts of some tokens."""
        marked = np.zeros(self.count, np.bool_)
        marked[self._of[places][self._of[places] >= 0]] = True
        return marked

    def sums(self, values: Float32[Array, " n"]) -> Float32[Array, " parts"]:
        """Add up the values of each part's tokens."""
        real = self._of >= 0
        sums = np.bincount(self._of[real], weights=values[real], minlength=self.count)
        return sums.astype(np.float32)

    def look(self, shown: Bool[Array, " parts"], reason: str) -> Look:
        """Return the look at some parts."""
        if self._cut is None:
            return show_units(self._asked, shown, reason=reason)
        return show_tokens(self._asked, np.flatnonzero(shown[self._of]), self._cut, reason=reason)


def _blocks(region: Region) -> tuple[Int64[Array, " n"], Int64[Array, " parts"]]:
    """Return the block that each token lies in, and for each block which are beside each other.

    An encoder makes nothing of a single token without its surroundings.
    """
    row, column = np.divmod(np.arange(region.rows * region.columns), region.columns)
    wide = -(-region.columns // BLOCK)
    of = row // BLOCK * wide + column // BLOCK
    down, across = np.divmod(np.arange(int(of.max()) + 1), wide)
    return of, down // 2 * wide + across // 2


def _fresh(asked: Asked, parts: _Parts) -> Seen:
    words = asked.prompt.ids[asked.prompt.words].tobytes()
    cells = asked.media[0].where.tobytes()
    ages, worth = np.zeros(parts.count, np.int64), np.zeros(parts.count, np.float32)
    return Seen(words, cells, np.array(parts.pixels), ages, worth)
