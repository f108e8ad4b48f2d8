"""Look at a stream of pictures: at what moved, and at the rest in turn; the rest is remembered.

The scene before a robot changes slowly. What has changed since it was encoded is where to look; a
share of every look goes to what was not looked at for longest, so nothing stays unseen for more
than a stated number of looks, whether or not it was noticed. The vision tokens of everything else
are those of its last look, as STC (arXiv:2512.00891) keeps features of unchanged patches: the first
layer and the scorer read the whole picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from threading import Lock
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tokprune.errors import RequestInvalid
from tokprune.looking.look import Asked, Look
from tokprune.looking.remembering import Outputs, Parts, parts_of
from tokprune.looking.showing import Cut
from tokprune.types import Array, Ranking, VisionTokens

MOVED = 0.12  # mean difference of a patch's pixels, as the encoder is fed, that is a movement
NOTICED = 0.06  # the same of parts that the last answer was read from
MATTERING = 0.75  # share of the relevance that these parts hold
CUT = 0.5  # share of the picture that moves when the camera looks elsewhere


class Following:
    """What one question has seen of one stream. Given as `encode` of every `ask` about it.

    The first picture is encoded as a whole, and so is one of another size, after another question,
    and when half of the picture has moved. For every other, what has moved since it was encoded is
    encoded again, and a share of the rest, what was encoded longest ago first. The other vision
    tokens are remembered.

        follow = tokprune.Following(within=8)
        for frame in frames:
            answer = vlm.ask(frame, "Is the path free?", 0.25, encode=follow)

    Where a family's encoder takes any part of a picture (Qwen's), parts are blocks of 2 x 2
    vision tokens; else they are tiles (LLaVA-OneVision), and the one that shows the whole picture
    is always encoded.

    Use it from any thread. Of answers that run at one time, the first to be done is remembered.
    """

    def __init__(self, within: int = 8) -> None:
        """Begin with nothing seen.

        Args:
            within: looks in which every part of the picture is encoded once, at least.

        Raises:
            RequestInvalid: it is below 1.
        """
        if within < 1:
            raise RequestInvalid(f"Following takes within=1 or more looks, got {within}")
        self.within = within
        self.seen: Seen | None = None
        self._turns = 0  # how often `seen` was changed
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"tokprune.Following(within={self.within})"

    def forget(self) -> None:
        """Look at the next picture as a whole, also while an answer is on its way."""
        with self._lock:
            self.seen, self._turns = None, self._turns + 1

    def recall(self) -> tuple["Seen | None", int]:
        """Return what was seen, and the turn that it is of."""
        with self._lock:
            return self.seen, self._turns

    def remember(self, seen: "Seen", turn: int) -> None:
        """Take over what came of a look, if nothing else was seen or forgotten since its turn."""
        with self._lock:
            if turn == self._turns:
                self.seen, self._turns = seen, turn + 1


class About(NamedTuple):
    """What tells one stream from others: what is remembered of one is nothing to another."""

    model: str
    question: bytes
    size_hw: tuple[int, int]
    where: bytes  # the places of the vision tokens
    parts: tuple[int, ...]  # shape of their pixels: tokens in one order may be of other crops


@dataclass
class Seen:
    """The parts of a picture as they were last encoded."""

    about: About
    pixels: Float32[Array, "m ..."]  # of each patch or tile
    age: Int64[Array, " parts"]  # looks since each was encoded
    worth: Float32[Array, " parts"]  # of each, to the last answer
    outputs: Outputs


@dataclass
class Follow:
    """One look at the stream."""

    follow: Following
    cut: Cut | None
    model: str = ""  # tells it from others: what one has encoded is nothing to another
    _before: Seen | None = field(default=None, init=False)  # as it was at the first look
    _turn: int = field(default=0, init=False)
    _parts: Parts | None = field(default=None, init=False)
    _encoded: Bool[Array, " parts"] | None = field(default=None, init=False)
    _outputs: Outputs = field(default_factory=Outputs, init=False)

    def first(self, asked: Asked) -> Look:
        """Return the look."""
        if len(asked.media) != 1 or asked.media[0].kind != "picture":
            raise RequestInvalid(
                f"A stream is followed picture by picture, got {len(asked.media)} pictures or "
                "videos at once: ask about one frame, or choose another encode"
            )
        parts = self._parts = parts_of(asked, self.cut)
        seen, self._turn = self.follow.recall()
        self._before = seen
        if parts.count == 1:
            return self._whole(asked, parts, "there is nothing to leave out")
        if seen is None or seen.about != self._about(asked, parts):
            return self._whole(asked, parts, "the first look at this question and picture")
        changes = parts.changes(seen.pixels)
        moved = changes > MOVED
        if moved.mean() > CUT:
            return self._whole(asked, parts, "most of the picture has changed")
        moved |= (changes > NOTICED) & _mattering(seen.worth)
        encoded = self._encoded = moved | parts.always | self._due(parts, seen, moved)
        picture, count = parts.shown(encoded, seen.outputs, self._outputs)
        reason = (
            f"{int(encoded.sum())} of {parts.count} parts: {int(moved.sum())} have moved, each is "
            f"seen once in {self.follow.within} looks"
        )
        return Look(asked.prompt, (picture,), None, asked.budget, count, reason=reason)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Remember what was seen, and return nothing."""
        del looks, vision  # `_outputs` has what was encoded
        parts, before, encoded = self._parts, self._before, self._encoded
        assert parts is not None
        pixels, age = np.array(parts.pixels), np.zeros(parts.count, np.int64)
        worth = np.zeros(parts.count, np.float32)
        if ranking.scores is not None:
            worth = parts.sums(np.maximum(ranking.scores, 0))
        if before is not None and encoded is not None:
            unseen = parts.rows(~encoded)
            pixels[unseen] = before.pixels[unseen]
            age[~encoded] = before.age[~encoded] + 1
        seen = Seen(self._about(asked, parts), pixels, age, worth, self._outputs)
        self.follow.remember(seen, self._turn)
        return None

    def _whole(self, asked: Asked, parts: Parts, reason: str) -> Look:
        picture, self._encoded = parts.whole(self._outputs), None
        return Look(asked.prompt, (picture,), None, asked.budget, asked.total, reason=reason)

    def _about(self, asked: Asked, parts: Parts) -> About:
        """Return which stream this is."""
        words, picture = asked.prompt.ids[asked.prompt.words].tobytes(), asked.media[0]
        where = picture.where.tobytes()
        return About(self.model, words, picture.size_hw, where, parts.pixels.shape)

    def _due(self, parts: Parts, seen: Seen, moved: Bool[Array, " parts"]) -> Bool[Array, " parts"]:
        """Mark what was encoded longest ago."""
        turns = ~parts.always & ~parts.padding  # take turns in being encoded, whatever they show
        count = ceil(int(turns.sum()) / self.follow.within)
        waiting = np.flatnonzero(turns & ~moved)
        oldest = np.lexsort((parts.nearby[waiting], -seen.age[waiting]))
        due = np.zeros(parts.count, np.bool_)
        due[waiting[oldest[:count]]] = True  # of equally old ones, neighbours
        return due


def _mattering(worth: Float32[Array, " parts"]) -> Bool[Array, " parts"]:
    """Mark the fewest parts that hold most of the relevance."""
    order: Array = np.argsort(-worth, kind="stable")
    sums: Array = worth[order]
    held: Array = np.cumsum(sums)
    enough = int(np.searchsorted(held, MATTERING * float(held[-1]))) + 1
    marked = np.zeros(len(worth), np.bool_)
    if held[-1] > 0:
        marked[order[:enough].tolist()] = True
    return marked
